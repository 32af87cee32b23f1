"""Schemes whose equations are solved to rounding, for tests of what is behind the solves."""

import odenets


def tight(name):
    """The scheme, its equations solved to rounding."""
    if name == "adaptive":
        return odenets.get_scheme("adaptive(rtol=1e-9,atol=1e-10)")
    return odenets.get_scheme(f"{name}(tol=1e-13,max_iterations=200)" if odenets.get_scheme(name).solves else name)
