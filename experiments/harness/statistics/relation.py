"""Does a predictor go with robustness? Between schemes, within them, given what else differs, and on schemes not seen."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtri, stdtrit
from scipy.stats import rankdata

from experiments.harness.statistics.association import EXACT, FEWEST, cluster_bootstrap, group_means, rank_association
from experiments.harness.statistics.estimates import LEVEL, Estimate
from odenets.errors import InputError

SUPPORTED, REFUTED, UNKNOWN = "supported", "refuted", "cannot tell"
WEAK = 0.3  # a rank correlation below which a predictor explains less than a tenth of the variance of the ranks
DRAWS, SEED = 5000, 0


@dataclass(frozen=True)
class Nets:
    """Nets of a study, an entry each. robust: what is to be predicted. scheme: what the claim is about. stratum: what they are
    compared within, such as a field and a training. seed: shared by nets that have initial weights and batches in common."""

    robust: NDArray
    scheme: Sequence[Hashable]
    stratum: Sequence[Hashable]
    seed: Sequence[Hashable]

    def __post_init__(self) -> None:
        sizes = {len(part) for part in (self.robust, self.scheme, self.stratum, self.seed)}
        if len(sizes) != 1 or 0 in sizes:
            raise InputError(f"nets need a robustness, scheme, stratum and seed each, got lengths {sorted(sizes)}")


@dataclass(frozen=True)
class Relation:
    """What one predictor has to do with robustness; correlations are of ranks, None where there is too little to tell.

    schemes: on which it is known, of `total`. expected: the sign that stability would give. between: of schemes, at the level
    that holds for all predictors of the study, and p adjusted for them. bootstrap: the same, its interval by cluster bootstrap,
    for itself. within: of the seeds of a scheme. given: {what else differs: the correlation between schemes that it
    leaves}. order: share of pairs of schemes that the other schemes' relation ranks rightly, order_p of chance to do as well.
    least: a correlation between schemes as it would be measured at least, were it `WEAK` without the noise of the seeds.
    """

    predictor: str
    schemes: int
    total: int
    expected: int
    between: Estimate | None
    bootstrap: Estimate | None
    p: float | None
    within: Estimate | None
    given: Mapping[str, Estimate | None]
    order: float | None
    order_p: float | None
    least: float

    @property
    def verdict(self) -> str:
        """Supported: the interval between schemes holds correlations of the expected sign only. Refuted: it holds none of that
        sign that would be worth while (`WEAK`), however much of it the seeds may hide. Otherwise it cannot be told."""
        if self.between is None or self.schemes < FEWEST:
            return UNKNOWN
        low, high = sorted((self.expected * self.between.low, self.expected * self.between.high))
        return SUPPORTED if low > 0 else REFUTED if high < self.least else UNKNOWN


def relations(
    predictors: Mapping[str, ArrayLike],
    nets: Nets,
    *,
    given: Mapping[str, ArrayLike],
    expected: Mapping[str, int],
    level: float = LEVEL,
) -> list[Relation]:
    """Every predictor against robust accuracy.

    Values become ranks within their stratum, so that what a field or a training does to all schemes does not count, and a
    blow-up is a last place. A scheme is one observation, the mean of its ranks; a predictor is compared where it is known.

    Args:
        predictors: {name: a number for each net, NaN where it is not known}.
        given: The same of what the relation may only reflect, such as clean accuracy.
        expected: {name: +1 or -1}, the sign that "more stable, more robust" would give; -1 where it is not named.
        level: Of the intervals between schemes and of the verdicts, all predictors together; of other intervals each.

    Source: Westfall & Young (1993), section 2.5, for the adjustment: schemes are permuted against all predictors at once.
    """
    ranks = {name: _ranked(values, nets.stratum) for name, values in {**predictors, **given}.items()}
    robust = _ranked(nets.robust, nets.stratum)
    each, adjusted = _family({name: ranks[name] for name in predictors}, robust, nets.scheme, 1 - level)
    total, found = len(set(nets.scheme)), []
    for name in predictors:
        known = np.isfinite(ranks[name]) & np.isfinite(robust)
        x, y, schemes = ranks[name][known], robust[known], [s for s, k in zip(nets.scheme, known) if k]
        strata, seeds = ([v for v, k in zip(part, known) if k] for part in (nets.stratum, nets.seed))
        repeats = [reliability(np.where(known, side, np.nan), nets, level).low for side in (predictors[name], nets.robust)]
        within = within_groups(x, y, list(zip(schemes, strata)), schemes, seeds, level)
        against = min(expected.get(name, -1) * within.value, 0.0) if within else 0.0
        order, order_p = held_out_order(group_means(x, schemes), group_means(y, schemes))
        found.append(
            Relation(
                name,
                len(set(schemes)),
                total,
                expected.get(name, -1),
                _claimed(rank_association(x, y, schemes, 1 - each) if len(x) else None, adjusted[name], 1 - level),
                cluster_bootstrap(x, y, schemes, level) if len(x) else None,
                adjusted[name],
                within,
                {other: _partial(x, y, ranks[other][known], schemes, level) for other in given if other != name},
                order,
                order_p,
                # Spearman (1904), American Journal of Psychology 15: noise multiplies a correlation by the roots of both, and
                # adds its own by the roots of the rest, where a seed moves both sides of a net.
                WEAK * prod(repeats) ** 0.5 + against * prod(1 - share for share in repeats) ** 0.5,
            )
        )
    return found


def reliability(values: ArrayLike, nets: Nets, level: float = LEVEL) -> Estimate:
    """Would other seeds order the schemes alike? The share of the variance of schemes' means that is not of their seeds.

    The intraclass correlation of means in a table of schemes by seeds, in ranks within their strata; what a seed gives to all
    schemes does not count. `low` is a one-sided bound. Of the seeds that every scheme has, n of them; with less than two of
    them nothing is known: 0, from 0 to 1.

    Source: Shrout & Fleiss (1979), Psychological Bulletin 86, ICC(3, k); Feldt (1965), Psychometrika 30, for the bound.
    """
    cells: dict[Hashable, dict[Hashable, list[float]]] = {}
    for value, scheme, seed in zip(_ranked(values, nets.stratum), nets.scheme, nets.seed):
        if np.isfinite(value):
            cells.setdefault(scheme, {}).setdefault(seed, []).append(value)
    shared = sorted(set.intersection(*map(set, cells.values())), key=str) if cells else []
    table = np.array([[np.mean(own[seed]) for seed in shared] for own in cells.values()])
    k, n = len(cells), len(shared)
    if k < 2 or n < 2:
        return Estimate(0.0, 0.0, 1.0, n, "seeds", level)
    table = table - table.mean(0)
    means = table.mean(1)
    between, rest = n * float(means @ means) / (k - 1), float(np.square(table - means[:, None]).sum()) / ((k - 1) * (n - 1))
    share = min(rest / between, 1.0) if between > 0 else 1.0
    return Estimate(1 - share, max(1 - share * float(fdtri(k - 1, (k - 1) * (n - 1), level)), 0.0), 1.0, n, "seeds", level)


def within_groups(
    x: ArrayLike,
    y: ArrayLike,
    cells: Sequence[Hashable],
    schemes: Sequence[Hashable],
    seeds: Sequence[Hashable],
    level: float = LEVEL,
) -> Estimate | None:
    """Rank correlation of the nets of a cell, which differ in their seed alone, over all cells.

    Its interval is of two clusters on Fisher's scale: the nets of a scheme have it in common, those of a seed their weights at
    the start. Each net's influence on the correlation is summed by scheme, by seed and by net, and the variance is that of the
    first two sums less that of the third. (A bootstrap of schemes and of seeds counts the third three times, Owen 2007.) None
    where no cell has three nets, or a side is constant.

    Source: Cameron, Gelbach, Miller (2011), Journal of Business and Economic Statistics 29, section 2; with few clusters the t
    quantile of the fewer, section 2.4.
    """
    x, y, named = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray([str(cell) for cell in cells])
    a, b = np.zeros(len(x)), np.zeros(len(x))
    for cell in np.unique(named):
        own = named == cell
        if own.sum() >= 3:
            a[own], b[own] = (rankdata(v[own]) - (own.sum() + 1) / 2 for v in (x, y))
    if not (np.any(a) and np.any(b)):
        return None
    used = np.any([a, b], axis=0)
    a, b = a[used], b[used]
    value = float((a @ b) / np.sqrt((a @ a) * (b @ b)))
    influence = a * b / np.sqrt((a @ a) * (b @ b)) - value / 2 * (a**2 / (a @ a) + b**2 / (b @ b))
    by_scheme, by_seed = (_clustered(influence, [v for v, k in zip(part, used) if k]) for part in (schemes, seeds))
    variance = max(by_scheme[0] + by_seed[0] - float(influence @ influence), by_scheme[0], by_seed[0])
    half = stdtrit(max(min(by_scheme[1], by_seed[1]) - 1, 1), (1 + level) / 2) * np.sqrt(variance) / (1 - min(value**2, 0.998))
    low, high = (float(np.tanh(np.arctanh(np.clip(value, -0.999, 0.999)) + sign * half)) for sign in (-1, 1))
    return Estimate(value, low, high, int(used.sum()), "nets within schemes", level)


def _clustered(influence: NDArray, clusters: Sequence[Hashable]) -> tuple[float, int]:
    """(variance of the sum where what is in one cluster depends, clusters), with Fisher's n - 3 for the few that they are."""
    own = np.unique([str(cluster) for cluster in clusters], return_inverse=True)[1]
    sums = np.bincount(own, influence)
    return float(sums @ sums) * len(sums) / max(len(sums) - 3, 1), len(sums)


def held_out_order(x: ArrayLike, y: ArrayLike) -> tuple[float | None, float | None]:
    """Of two schemes not seen, does the predictor say which is more robust? (share of pairs, p-value); None below five schemes.

    For each pair the other schemes say whether a larger value goes with more or with less robustness (the sign of Kendall's
    sum), and the pair is ordered by that. Half of the pairs are right by chance; the p-value, one-sided, permutes schemes.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if n < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, None
    random = np.random.default_rng(SEED)
    shuffled = np.concatenate([y[None], y[np.argsort(random.random((DRAWS // 5, n)), axis=1)]])
    upper = np.triu_indices(n, 1)
    signs = np.sign(x[:, None] - x[None]) * np.sign(shuffled[:, :, None] - shuffled[:, None])
    rows = signs.sum(2)
    # Kendall's sum of the rest: all pairs without those of either of the two.
    rest = rows.sum(1)[:, None, None] / 2 - rows[:, :, None] - rows[:, None] + signs
    agreement = (np.sign(rest) * signs)[:, *upper]
    share = (1 + agreement.mean(1)) / 2
    return float(share[0]), float((share >= share[0] - 1e-12).mean())


def _ranked(values: ArrayLike, strata: Sequence[Hashable]) -> NDArray:
    """Ranks within strata, between 0 and 1; infinite values come last, unknown ones stay NaN."""
    values, found = np.asarray(values, dtype=float), np.full(len(strata), np.nan)
    keys = np.asarray([str(stratum) for stratum in strata])
    for key in np.unique(keys):
        own = np.flatnonzero((keys == key) & ~np.isnan(values))
        found[own] = (rankdata(values[own]) - 0.5) / max(len(own), 1)
    return found


def _partial(x: NDArray, y: NDArray, given: NDArray, schemes: Sequence[Hashable], level: float) -> Estimate | None:
    known = np.isfinite(given)
    return rank_association(x[known], y[known], [s for s, k in zip(schemes, known) if k], level, given=given[known])


def _claimed(found: Estimate | None, p: float | None, alpha: float) -> Estimate | None:
    """Zero is outside where the adjusted p says so too: of many schemes both tests draw their orders, each its own."""
    if found is None or p is None or p <= alpha:
        return found
    return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))


def _family(
    predictors: Mapping[str, NDArray], robust: NDArray, schemes: Sequence[Hashable], alpha: float
) -> tuple[float, dict[str, float | None]]:
    """(the level of each test at which all hold at alpha, {predictor: its adjusted p-value, None where it has none})."""
    names = list(dict.fromkeys(schemes))
    outcome = {s: np.mean([v for v, own in zip(robust, schemes) if own == s and np.isfinite(v)] or [np.nan]) for s in names}
    y = np.array([outcome[s] for s in names])
    random, draws = np.random.default_rng(SEED), []
    tails: dict[str, NDArray | None] = {}
    if len(y) <= EXACT:
        orders = np.array(list(permutations(range(len(y)))))
    else:
        orders = np.vstack([np.arange(len(y)), np.argsort(random.random((DRAWS, len(y))), axis=1)])
    for name, values in predictors.items():
        known = np.isfinite(values)
        x = dict(
            zip(
                dict.fromkeys(s for s, k in zip(schemes, known) if k),
                group_means(values[known], [s for s, k in zip(schemes, known) if k]),
            )
        )
        at = np.array([i for i, s in enumerate(names) if s in x and np.isfinite(y[i])], dtype=int)
        if len(at) < FEWEST or np.ptp([x[names[i]] for i in at]) == 0:
            tails[name] = None
            continue
        a = rankdata(np.round([x[names[i]] for i in at], 12))
        b = rankdata(y[orders[:, at]].round(12), axis=1)
        size = np.abs((b - b.mean(1, keepdims=True)) @ (a - a.mean())).round(9)
        # The share of all orders that go as far: of the data (first) and of each of the drawn orders.
        above = len(size) - np.searchsorted(np.sort(size), size, side="left")
        draws.append(above / len(size))
        tails[name] = draws[-1]
    if not draws:
        return alpha, dict.fromkeys(predictors)
    smallest = np.min(draws, axis=0)
    values, counts = np.unique(smallest, return_counts=True)
    held = values[counts.cumsum() <= alpha * len(smallest)]  # few orders of few schemes: a level between two that there are
    each = min(alpha, float(held[-1] if len(held) else values[0] / 2))
    return each, {name: None if own is None else float((smallest <= own[0]).mean()) for name, own in tails.items()}
