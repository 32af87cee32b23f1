"""Every scheme by name: `get_scheme` reads a spec, `list_schemes` lists the real names."""

import inspect
from copy import copy
from dataclasses import replace
from typing import Any, cast

from odenets.errors import InputError
from odenets.own import Own, find_own, is_own
from odenets.schemes.adaptive import Adaptive
from odenets.schemes.ie_skip import IESkip
from odenets.schemes.linearly_implicit import ROS2, ExponentialEuler, RosenbrockEuler
from odenets.schemes.multistep import AB2, BDF2, LMResNet
from odenets.schemes.runge_kutta import RungeKutta
from odenets.schemes.scheme import Scheme
from odenets.schemes.solving import SOLVE_DEFAULTS
from odenets.schemes.splitting import Splitting
from odenets.schemes.tableau import Tableau
from odenets.schemes.tableaux import CATALOGUE
from odenets.specs import canonical, read_arguments, read_name

CLASSES = {cls.name: cls for cls in (RosenbrockEuler, ROS2, ExponentialEuler, AB2, BDF2, LMResNet, Splitting, IESkip, Adaptive)}
FIXED = {entry.name: entry for entry in CATALOGUE if isinstance(entry, Tableau)}
FAMILIES = {entry.__name__: entry for entry in CATALOGUE if not isinstance(entry, Tableau)}
ALIASES = {"explicit": "explicit_euler", "implicit": "implicit_euler", "euler": "explicit_euler", "ssprk22": "heun"}


def list_schemes() -> list[str]:
    """Real names of all schemes, in the order of the catalogue; each constructs without parameters."""
    return [*(entry.name if isinstance(entry, Tableau) else entry.__name__ for entry in CATALOGUE), *CLASSES]


def get_scheme(spec: str | Scheme | Tableau) -> Scheme:
    """The scheme that a spec names.

    Args:
        spec: A name or alias, with parameters in parentheses where wanted: "rk4", "implicit_euler(tol=1e-10)",
            "ie_skip(gamma=0.05,iterations=2)". A `Scheme` is returned as it is, a `Tableau` of one's own becomes a scheme, and
            "path/to/file.py:NAME" is one of these, a class of schemes, or a function that returns one.

    Raises:
        ValueError: Malformed spec, unknown name or parameter, or a value of the wrong type or out of range.
    """
    if isinstance(spec, Scheme):
        return spec
    if isinstance(spec, Tableau):
        return RungeKutta(spec)
    if is_own(spec):
        return _own(find_own(spec, "scheme"))
    name, arguments = read_name(spec, "scheme", list_schemes(), ALIASES)
    given = read_arguments(spec, "scheme", arguments, declared := _declared(name))
    if name in CLASSES:
        return CLASSES[name](**given)
    solve = {key: given[key] for key in given if key in SOLVE_DEFAULTS}
    if name in FIXED:
        return RungeKutta(FIXED[name], **solve)
    defaults = {key: default for key, default in declared.items() if key not in SOLVE_DEFAULTS}
    family = {key: (given.get(key, default), default) for key, default in defaults.items()}
    return RungeKutta(FAMILIES[name](**{key: value for key, (value, _) in family.items()}), family, **solve)


def _own(part: Own) -> Scheme:
    """The scheme of a user's own, under the spec that finds it again."""
    makes = callable(part.found) and not isinstance(part.found, Scheme)
    declared = part.declared() if makes else {}
    sample = part.call() if makes else part.found
    if isinstance(sample, Tableau):
        solve = SOLVE_DEFAULTS if sample.implicit else {}
    elif isinstance(sample, Scheme):
        solve = {} if makes else {key: value for key, (value, _) in sample.parameters.items()}
    else:
        raise InputError(f"{part.spec} is a {type(sample).__name__}; a scheme is a Tableau or a Scheme, or returns one")
    given = part.settings(declared | solve)
    made = part.call(**{key: value for key, value in given.items() if key in declared}) if makes else sample
    solving = {key: value for key, value in given.items() if key in solve}
    scheme = RungeKutta(made, **solving) if isinstance(made, Tableau) else copy(made)
    if solving and isinstance(made, Scheme):
        scheme = replace(cast(Any, made), **solving)
    spec = canonical(part.spec, {key: (given.get(key, default), default) for key, default in (declared | solve).items()})
    object.__setattr__(scheme, "origin", spec)
    return scheme


def _declared(name: str) -> dict[str, Any]:
    """{parameter: default} of a scheme, in declared order."""
    if name in FIXED:
        return SOLVE_DEFAULTS if FIXED[name].implicit else {}
    function = CLASSES.get(name) or FAMILIES[name]
    own = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
    return {**own, **SOLVE_DEFAULTS} if name in FAMILIES and FAMILIES[name]().implicit else own
