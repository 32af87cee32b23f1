"""Variances between seeds of many schemes, each told by the others: few seeds say little of one, thirty schemes much of all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

FEWEST, SEEDS = 10, 5  # schemes, with the reference, and seeds, from which the others tell something
# Of so many degrees of freedom for each scheme the others count at most: they differ in more than their variances show.
SHARE = 1 / 4


@dataclass(frozen=True)
class Between:
    """Variance between seeds of a difference of two means, one of each seed, and its degrees of freedom."""

    variance: float
    degrees: float


def between_seeds(values: NDArray) -> list[Between]:
    """Of each scheme's difference to the first, by the seeds of all of them.

    value(scheme, seed) = scheme + seed + e, where e has a variance of the scheme's own. These variances are drawn towards one
    another, as far as their spread says that they are alike, and none below what its own seeds say; that of the first, which
    all differences share, is its own alone. A difference has the sum of two, with Satterthwaite's degrees of freedom, and two
    in so many schemes more for what the estimates of the seeds' effects leave open; no less than what is measured of it. Seeds
    that act on some schemes otherwise than on the rest, or two scales of noise among schemes, are against this: at 5 seeds 7 %
    of families were missed in place of 5 in the worst that was tried (`coverage.py --only moderated`).

    Args:
        values: (schemes, seeds), `FEWEST` schemes and `SEEDS` seeds at least.

    Source: Smyth (2004), Statistical Applications in Genetics and Molecular Biology 3, sections 4 and 6.2; what is on the
    safe side of it (no smaller than its own, `SHARE`, the reference, the last factor) is by simulation: benchmarks/coverage.py.
    """
    schemes, seeds = values.shape
    degrees = seeds - 1
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    squares = (rest**2).sum(1) / degrees
    typical = squares.sum() / (schemes - 1)
    # What the seeds' means take of a scheme's own noise is given back; at least a twentieth of what is typical is left.
    own = np.maximum((squares - typical / schemes) / (1 - 2 / schemes), typical / 20)
    if not typical > 0:
        return [Between(0.0, degrees)] * (schemes - 1)
    others, common = _prior(own, degrees)
    others = min(others, SHARE * schemes)
    scheme = np.maximum((others * common + degrees * own) / (others + degrees), own)[1:]
    freedom = (scheme + own[0]) ** 2 / (scheme**2 / (others + degrees) + own[0] ** 2 / degrees)
    measured = (values[1:] - values[0]).var(1, ddof=1)
    return [Between(float(v), float(d)) for v, d in zip(np.maximum((scheme + own[0]) * (1 + 2 / schemes), measured), freedom)]


def _prior(variances: NDArray, degrees: int) -> tuple[float, float]:
    """(degrees of freedom, variance) of the scaled inverse chi-square that they come from, by moments of their logs."""
    logs = np.log(variances) - digamma(degrees / 2) + np.log(degrees / 2)
    excess = logs.var(ddof=1) - polygamma(1, degrees / 2)
    if excess <= 0:  # no more spread than that of the estimates
        return np.inf, float(np.exp(logs.mean()))
    half = _inverse_trigamma(excess)
    return 2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half)))


def _inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y, by Newton's method on 1 / trigamma, which converges monotonically from here (Smyth, appendix)."""
    x = 0.5 + 1 / y
    for _ in range(50):
        there = polygamma(1, x)
        step = there * (1 - there / y) / polygamma(2, x)
        x += step
        if abs(step) < 1e-10 * x:
            break
    return float(x)
