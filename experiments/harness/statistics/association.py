"""Does a measure go with an outcome across groups of nets? A rank correlation, its interval and its test, for few groups."""

from collections.abc import Collection, Hashable
from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtr
from scipy.stats import rankdata

from experiments.harness.statistics.estimates import LEVEL, Estimate
from odenets.errors import InputError

FEWEST = 5  # groups: of k there are k! orders, so that no p-value is below 2/k!, and 2/4! = 0.083
EXACT = 8  # groups up to which all orders are enumerated
DRAWS, SEED = 10_000, 0
# Correlations of a normal distribution at which that of ranks is tabulated: evenly spaced by Fisher's transform.
GRID = np.tanh(np.linspace(0, 3.2, 65))


def rank_association(
    x: ArrayLike,
    y: ArrayLike,
    groups: Collection[Hashable],
    level: float = LEVEL,
    *,
    over: str = "schemes",
    given: ArrayLike | None = None,
) -> Estimate | None:
    """Spearman's correlation of group means, with an interval and a verdict that hold for few groups.

    Nets of one group, such as the seeds of one scheme, are alike: what chance gave the scheme it gave to all of them. They
    are therefore one observation, their mean, and the number of groups is that of the sample.

    The interval inverts a test: it holds the correlations under which a rank correlation as far out as this one has a
    probability above (1 - level)/2, on the side it lies. For ranks of a bivariate normal sample, be it distorted by any
    increasing functions, it covers with at least its level at any number of groups, and it has a width where all groups stand
    in the same order. Zero is outside only where the exact permutation test, valid for any distribution, says so too; below
    `FEWEST` groups it never is.

    Args:
        x, y: A number for each net.
        groups: Which group each net belongs to.
        level: Of the interval; the test is two-sided at 1 - level.
        over: What the groups are, in the plural, for tables.
        given: A number for each net that both sides may depend on, such as its clean accuracy. The correlation is then the
            partial one, of what the normal scores of its group means leave of the other scores; it counts as one group less.
            Ranks hide a part of a confounder: where it correlates by 0.9 with both sides, 7 % of tests at 5 % claim a rest.

    Returns:
        An `Estimate` whose n counts groups; its verdict is the claim. None below 3 groups (4 with `given`), where a side is
        constant, and where it is `given` itself in another unit.

    Source: Clopper & Pearson (1934), Biometrika 26, for intervals that invert a discrete test; Pitman (1937), Supplement to
    the JRSS 4, for the permutation test; Hurlbert (1984), Ecological Monographs 54, for why replicates of one treatment are no
    sample of treatments; Kruskal (1958), JASA 53, for Spearman's correlation of a normal distribution, (6/pi) asin(rho/2);
    Fisher (1924), Metron 3, for a partial correlation as one of a smaller sample; Kennedy (1995), Journal of Business and
    Economic Statistics 13, for its permutation test.
    """
    lengths = [np.size(x), np.size(y), len(groups)]
    if len(set(lengths)) > 1:
        raise InputError("x, y and groups must be equally long, got {}, {} and {}".format(*lengths))
    a, b = (rankdata(group_means(values, groups).round(12)) for values in (x, y))
    n = len(a)
    if given is not None:
        a, b, third = (ndtri((v - 0.5) / n) for v in (a, b, rankdata(group_means(given, groups).round(12))))
        a, b, n = _without(a, third), _without(b, third), n - 1
    if n < 3 or np.ptp(a) < 1e-9 or np.ptp(b) < 1e-9:
        return None
    value, tail = float(np.corrcoef(a, b)[0, 1]), (1 - level) / 2
    p = permutation_p(a, b)
    if given is not None and n > 2:
        # Residuals are not exchangeable: with few groups their permutations alone are too generous.
        p = max(p, 2 * float(stdtr(n - 2, -abs(value) * np.sqrt((n - 2) / max(1 - value**2, 1e-12)))))
    low, high = _interval(round(value, 9), n, tail, p)
    if p > 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Estimate(value, low, high, len(a), over, level)


def cluster_bootstrap(x: ArrayLike, y: ArrayLike, groups: Collection[Hashable], level: float = LEVEL) -> Estimate | None:
    """Spearman's correlation of group means with the percentiles of it over groups drawn anew: an `Estimate`, or None.

    Beside `rank_association`, whose test it does not have: it needs no distribution, and says nothing of fewer than `FEWEST`.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    x, y = means = group_means(x, groups), group_means(y, groups)
    if len(x) < FEWEST or min(map(np.ptp, means)) == 0:
        return None
    drawn = np.random.default_rng(SEED).integers(0, len(x), (DRAWS // 5, len(x)))
    a, b = (rankdata(values[drawn], axis=1) - (len(x) + 1) / 2 for values in means)
    with np.errstate(invalid="ignore"):
        found = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(found, ((1 - level) / 2, (1 + level) / 2))
    value = float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    return Estimate(value, float(low), float(high), len(x), "schemes", level)


def group_means(values: ArrayLike, groups: Collection[Hashable]) -> NDArray:
    """Of each group, in the order in which the groups first appear: one observation for all nets of a group."""
    found: dict[Hashable, list[float]] = {}
    for value, group in zip(np.asarray(values, dtype=float), groups):
        found.setdefault(group, []).append(value)
    return np.array([np.mean(own) for own in found.values()])


def permutation_p(a: NDArray, b: NDArray) -> float:
    """Two-sided p-value of the correlation of ranks a and b under all orders (beyond `EXACT` of them, under random ones)."""
    null, added = _null(tuple(np.sort(a)), tuple(np.sort(b)))
    statistic = a @ b
    tails = ((null >= statistic - 1e-9).sum(), (null <= statistic + 1e-9).sum())
    return float(min(1.0, 2 * (min(tails) + added) / (len(null) + added)))


def _without(values: NDArray, third: NDArray) -> NDArray:
    """What a line through `third` leaves of values; nothing where it is the same order."""
    third = third - third.mean()
    size = third @ third
    return values - values.mean() - (third * (third @ values) / size if size else 0.0)


@lru_cache(maxsize=16)
def _null(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[NDArray, int]:
    """(sums of products of ranks under permutations, 1 where these are a sample, among which the data count too)."""
    if len(a) <= EXACT:
        return np.array(list(permutations(b))) @ np.array(a), 0
    random = np.random.default_rng(SEED)
    return random.permuted(np.tile(b, (10 * DRAWS, 1)), axis=1) @ np.array(a), 1


@lru_cache(maxsize=8)
def _tabulated(n: int) -> NDArray:
    """(grid, draws): for each correlation of `GRID`, Spearman's of samples of n from a bivariate normal."""
    random = np.random.default_rng(SEED)
    x, noise = np.sort(random.normal(size=(DRAWS, n))), random.normal(size=(DRAWS, n))
    table = np.empty((len(GRID), DRAWS), dtype=np.float32)
    for row, rho in zip(table, GRID):
        # x ascends, so that its ranks are the places j; the sum of j * rank is that of order * j.
        order = np.argsort(rho * x + np.sqrt(1 - rho**2) * noise)
        row[:] = 12 * (order @ np.arange(n)) / (n**3 - n) - 3 * (n - 1) / (n + 1)
    return table


@lru_cache(maxsize=1024)
def _interval(value: float, n: int, tail: float, p: float) -> tuple[float, float]:
    """Of Spearman's correlation in the population; p is that of the test of zero."""
    table, grid = _tabulated(n), 6 / np.pi * np.arcsin(np.concatenate([-GRID[:0:-1], GRID]) / 2)

    def lowest(value: float) -> float:
        """Where the share of draws at least as large as `value`, which rises with the correlation, crosses the tail."""
        above, below = (table >= value - 1e-5).mean(1), (table <= 1e-5 - value).mean(1)
        share = np.concatenate([below[:0:-1], above])
        share[len(GRID) - 1] = p / 2 if value > 0 else 1 - p / 2  # known better than by draws
        left_out = np.flatnonzero(share <= tail)
        if not len(left_out):
            return -1.0
        at = left_out[-1]
        return float(np.interp(tail, share[at : at + 2], grid[at : at + 2])) if at + 1 < len(grid) else float(grid[at])

    return lowest(value), -lowest(-value)
