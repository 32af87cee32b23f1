"""How norms and radii are written in tables, sentences and figures."""


def norm_symbol(threat):
    """The norm of a threat, by its name on the command line."""
    return {"linf": "L\u221e", "l2": "L\u2082"}[threat]


def radius(epsilon):
    """A radius for tables and figures: 0.1; 8/255 where it is that and three digits do not say it."""
    levels, short = 255 * epsilon, f"{epsilon:.3g}"
    return f"{levels:.0f}/255" if float(short) != epsilon and abs(levels - round(levels)) < 1e-6 else short
