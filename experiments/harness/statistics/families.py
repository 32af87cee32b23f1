"""Several comparisons at once: at which level each has to be read so that all of them hold together."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from experiments.harness.statistics.estimates import LEVEL
from odenets.errors import InputError

DRAWS, SEED, CHUNK = 40_000, 0, 4_000_000
# Seeds that are simulated where there are more: of 24 comparisons at correlations 0, 0.5 and 0.9 the level with 50 is within
# 2.3 % of that with 100, which is what the simulation itself leaves open; with 12 it is up to 18 % smaller, on the safe side.
ENOUGH = 50


def pointwise_level(values: ArrayLike, level: float = LEVEL, looks: Sequence[int] = (), draws: int = DRAWS) -> float:
    """The level of each interval at which all of them cover together with probability `level`.

    The smallest p-value among comparisons (and looks) of data without any difference is simulated: normal values by seed with
    the correlation that the comparisons show, each with a variance of its own. That is the max-t method with p-values in place
    of t, so that comparisons with different degrees of freedom count alike.

    With S seeds a correlation is known from S - 1 numbers; it is drawn towards 0, the safe side, by the share 2/S.

    Args:
        values: (seeds, comparisons), the difference of each seed in each comparison.
        level: Of all together.
        looks: Numbers of seeds, ascending, after which intervals are read; none: once, with all seeds there are. They are
            decided before: what they cost is part of the level.
        draws: Of the simulation.

    Returns:
        A level between `level` and Bonferroni's.

    Source: Westfall & Young (1993), Resampling-Based Multiple Testing, section 2.5, min-P; Hothorn, Bretz, Westfall (2008),
    Biometrical Journal 50, for simultaneous intervals; Pocock (1977), Biometrika 64, for one level at all looks; Jennison &
    Turnbull (2000), Group Sequential Methods, section 4.4, for looks at Student's t.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise InputError(f"a family needs values by seed and comparison, two seeds at least, got shape {values.shape}")
    looks = tuple(looks) or (len(values),)
    if min(looks) < 2 or list(looks) != sorted(set(looks)):
        raise InputError(f"looks must be ascending numbers of seeds, two at least, got {looks}")
    if not 0 < level < 1:
        raise InputError(f"a level lies between 0 and 1, got {level}")
    distinct = np.unique(values - values.mean(0), axis=1)  # the same comparison twice is one
    if distinct.shape[1] * len(looks) == 1:
        return level
    # A p-value is uniform whatever the number of seeds, and how several depend on one another hardly changes beyond these.
    simulated = looks if len(looks) > 1 else (min(looks[0], ENOUGH),)
    return 1 - _smallest_p(_root(distinct), simulated, 1 - level, draws)


def _root(deviations: NDArray) -> tuple:
    """The shrunken correlation of the columns, as hashable rows of its symmetric root."""
    seeds, comparisons = deviations.shape
    scale = np.sqrt((deviations**2).sum(0))
    scale[scale == 0] = 1  # what does not vary depends on nothing
    correlation = deviations.T @ deviations / np.outer(scale, scale)
    shrunk = (1 - 2 / seeds) * correlation
    np.fill_diagonal(shrunk, 1.0)
    values, vectors = np.linalg.eigh(shrunk)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return tuple(map(tuple, root.round(3)))


@lru_cache(maxsize=256)
def _smallest_p(rows: tuple, looks: tuple[int, ...], alpha: float, draws: int) -> float:
    """The alpha-quantile of the smallest p-value."""
    root, last = np.array(rows, dtype=np.float32), looks[-1]
    random, found = np.random.default_rng(SEED), []
    size = max(1, min(draws, CHUNK // (last * len(root))))
    for _ in range(-(-draws // size)):
        values = random.standard_normal((size, last, len(root)), dtype=np.float32) @ root
        # The largest |t| for each number of degrees of freedom decides: one tail probability for each draw and look.
        smallest = np.ones(size)
        for n in looks:
            mean, spread = values[:, :n].mean(1), values[:, :n].std(1, ddof=1)
            with np.errstate(divide="ignore"):  # of two float32 seeds that are the same number
                t = (np.abs(mean) / spread).max(1) * np.sqrt(n)
            smallest = np.minimum(smallest, 2 * stdtr(n - 1, -t))
        found.append(smallest)
    # Two standard errors of the simulation on the safe side.
    return float(np.quantile(np.concatenate(found), alpha - 2 * np.sqrt(alpha * (1 - alpha) / draws)))
