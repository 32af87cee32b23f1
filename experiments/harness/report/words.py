"""How norms and radii are written in tables, sentences and figures."""


def norm_symbol(config):
    """The norm of a run's attacks; runs of before there was a choice used L-infinity."""
    return {"linf": "L\u221e", "l2": "L\u2082"}[config.get("threat", "linf")]


def radius(epsilon):
    """A radius for tables and figures: 0.1; 8/255 where it is that and three digits do not say it."""
    levels, short = 255 * epsilon, f"{epsilon:.3g}"
    return f"{levels:.0f}/255" if float(short) != epsilon and abs(levels - round(levels)) < 1e-6 else short
