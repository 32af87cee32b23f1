"""From masks of right answers, a seed each, to accuracies and a family of paired differences with their verdicts."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.harness.statistics.estimates import LEVEL, Estimate, paired_images, wilson
from experiments.harness.statistics.families import pointwise_level
from experiments.harness.statistics.moderation import FEWEST, SEEDS, Between, between_seeds
from experiments.harness.statistics.two_way import TwoWay, by_split, interval, proportion, two_way
from experiments.harness.statistics.verdicts import MARGIN, OPEN, seeds_needed, verdict

Masks = Mapping[int, NDArray]  # {seed: (images,) bool}
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Gap:
    """A paired difference to the reference. needed: seeds in all that would give a verdict, None where it has one and where no
    number of them would (`verdicts.MOST_SEEDS`)."""

    estimate: Estimate
    verdict: str
    needed: int | None = None


def accuracy(masks: Masks, level: float = LEVEL, train: int | None = None) -> Estimate:
    """Share of right answers over seeds and images; for one seed Wilson's interval over its images.

    Args:
        train: Number of training images where each seed draws its own split; None where all have the same images.
    """
    if len(masks) == 1:
        (mask,) = masks.values()
        return wilson(int(mask.sum()), len(mask), level)
    return proportion(_table(list(masks.values()), train), level)


def difference(masks: Masks, reference: Masks, level: float = LEVEL, train: int | None = None) -> Estimate | None:
    """Accuracy minus the reference's on the seeds that both have, by itself; None without one."""
    seeds = [seed for seed in masks if seed in reference]
    if len(seeds) < 2:
        return paired_images(masks[seeds[0]], reference[seeds[0]], level) if seeds else None
    return _possible(interval(_table([masks[s].astype(float) - reference[s] for s in seeds], train), level))


def gaps(
    pairs: Mapping[Key, tuple[Masks, Masks]],
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    looks: tuple[int, ...] = (),
    train: int | None = None,
) -> dict[Key, Gap]:
    """A family of comparisons: intervals that cover together, and what each says against the margin.

    Args:
        pairs: {comparison: (masks, those of the reference)}; a comparison without a common seed is left out. One common seed:
            the interval is over its images, by itself, and speaks of no other seed: no verdict on what is compared.
        looks: Numbers of seeds at which the run is looked at, decided before: `looks.schedule`. What lies beyond the last look
            reached is not used, and before the first there is no verdict.
        train: As in `accuracy`.
    """
    common = {key: [seed for seed in masks if seed in other] for key, (masks, other) in pairs.items()}
    tables: dict[Key, dict[int, NDArray]] = {}
    found: dict[Key, Gap] = {}
    for key, seeds in common.items():
        masks, other = pairs[key]
        if len(seeds) == 1:
            found[key] = Gap(paired_images(masks[seeds[0]], other[seeds[0]], level), OPEN)
        elif seeds:
            tables[key] = {seed: masks[seed].astype(float) - other[seed] for seed in seeds}
    if not tables:
        return found
    fewest = min(len(table) for table in tables.values())
    reached = max((look for look in looks if look <= fewest), default=None)
    if reached is not None:
        tables = {key: dict(list(table.items())[:reached]) for key, table in tables.items()}
    each = _level(tables, level, looks)
    known = {} if looks else _between({key: pairs[key] for key in tables})
    for key, table in tables.items():
        whole = _table(list(table.values()), train, known.get(key))
        estimate = _possible(interval(whole, each))
        said = OPEN if looks and reached is None else verdict(estimate, margin)
        # With the correction for splits the variance of the seeds does not vanish: a plan by 1/seeds would be wrong.
        needed = seeds_needed(whole, margin, each) if said == OPEN and train is None else None
        found[key] = Gap(estimate, said, needed)
    return {key: found[key] for key in pairs if key in found}


def _possible(found: Estimate) -> Estimate:
    """Of a difference of two accuracies: few seeds and many comparisons may leave all that there is between -1 and 1."""
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))


def _level(tables: Mapping[Key, Mapping[int, NDArray]], level: float, looks: tuple[int, ...]) -> float:
    """Of each interval: from the seeds that all comparisons have; by Bonferroni where these are fewer than two."""
    shared = set.intersection(*(set(table) for table in tables.values()))
    if len(shared) < 2:
        return 1 - (1 - level) / (len(tables) * max(len(looks), 1))
    means = np.array([[table[seed].mean() for table in tables.values()] for seed in sorted(shared)])
    return pointwise_level(means, level, looks)


def _between(pairs: Mapping[Key, tuple[Masks, Masks]]) -> dict[Key, Between]:
    """What many comparisons with one reference, on the same seeds, say of the variance between seeds of each."""
    groups: dict[Hashable, list[Key]] = {}
    for key, (masks, other) in pairs.items():
        if masks.keys() == other.keys():
            groups.setdefault(frozenset((seed, mask.tobytes()) for seed, mask in other.items()), []).append(key)
    found: dict[Key, Between] = {}
    for keys in groups.values():
        reference = pairs[keys[0]][1]
        every = [reference, *(pairs[key][0] for key in keys)]
        values = np.array([[masks[seed].mean() for seed in reference] for masks in every])
        # A reference that is the same whatever the seed may be that of several radii, at which nothing is left.
        if len(every) >= FEWEST and len(reference) >= SEEDS and np.ptp(values[0]):
            found |= zip(keys, between_seeds(values))
    return found


def _table(rows: list[NDArray], train: int | None, between: Between | None = None) -> TwoWay:
    if train is None:
        return two_way(np.stack(rows), between)
    return by_split([row.mean() for row in rows], [row.var() for row in rows], train, len(rows[0]), between)
