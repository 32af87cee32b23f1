"""How norms, radii, numbers of things, times, shares and intervals are written in tables, sentences and figures."""

import re
from collections.abc import Iterable

from experiments.harness.statistics.estimates import Estimate


def norm_symbol(threat: str) -> str:
    """The norm of a threat, by its name on the command line."""
    return {"linf": "L\u221e", "l2": "L\u2082"}[threat]


def radius(epsilon: float) -> str:
    """A radius for tables and figures: 0.1; 8/255 where it is that and three digits do not say it."""
    levels, short = 255 * epsilon, f"{epsilon:.3g}"
    return f"{levels:.0f}/255" if float(short) != epsilon and abs(levels - round(levels)) < 1e-6 else short


def count(number: int, noun: str) -> str:
    """3 seeds, 1 seed."""
    return f"{number} {noun}{'s' * (number != 1)}"


def listed(values: Iterable[object]) -> str:
    """Values with commas between; floats by four digits."""
    return ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def duration(seconds: float) -> str:
    """45 s, 4 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60 if whole < 3600 else 0, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def file_name(spec: str) -> str:
    """A spec as a part of a file's name."""
    return re.sub(r"[(,:/\\]", "_", spec).replace(")", "")


def percent(share: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference in percentage points with its sign; no minus sign on a rounded zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\u2212") if difference else "0.0"


def interval(estimate: Estimate, sign: str = "") -> str:
    """An interval in percent or, with sign="+", in points."""
    show = points if sign else percent
    return f"[{show(estimate.low)}, {show(estimate.high)}]"
