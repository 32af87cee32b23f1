"""Adding seeds until it is clear, honestly: the numbers of seeds at which one looks are fixed before, and paid for.

A group-sequential design. An anytime-valid confidence sequence (Wang & Ramdas, 2024, Electronic Journal of Statistics 18) would
allow a look after every seed; at 5 to 30 seeds its intervals are so much wider that it ends later: docs/statistics.md.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.harness.statistics.estimates import LEVEL, Estimate
from experiments.harness.statistics.families import pointwise_level
from experiments.harness.statistics.two_way import TwoWay, interval, two_way
from experiments.harness.statistics.verdicts import MARGIN, OPEN, verdict
from odenets.errors import InputError

SCHEDULE = (5, 8, 12, 20, 30)  # seeds; beyond, half as many again
FEWEST = 3


@dataclass(frozen=True)
class Look:
    """What is known after so many seeds. level: of each interval; all of them, at all looks, cover together with `family`."""

    seeds: int
    level: float
    family: float
    found: Mapping[Hashable, TwoWay]
    estimates: Mapping[Hashable, Estimate]

    def verdicts(self, margin: float = MARGIN) -> dict[Hashable, str]:
        """{comparison: its verdict}."""
        return {key: verdict(estimate, margin) for key, estimate in self.estimates.items()}

    def clear(self, margin: float = MARGIN) -> bool:
        """Whether every comparison has a verdict."""
        return OPEN not in self.verdicts(margin).values()


def schedule(most: int = 30) -> tuple[int, ...]:
    """Numbers of seeds after which a run of at most `most` is looked at; the last look is at `most`."""
    if most < FEWEST:
        raise InputError(f"a run that ends when it is clear needs {FEWEST} seeds at least, got {most}")
    looks = list(SCHEDULE)
    while looks[-1] < most:
        looks.append(looks[-1] * 3 // 2)
    return tuple(look for look in looks if look < most) + (most,)


def look(tables: Mapping[Hashable, NDArray], looks: tuple[int, ...] = (), level: float = LEVEL) -> Look:
    """Intervals of a family of comparisons on the same seeds, after the last of the looks that the data have reached.

    Args:
        tables: {comparison: (seeds, images)}, paired differences, seeds in the order in which they were run.
        looks: The schedule; none: one look, at all seeds there are. Seeds beyond the last look reached wait for the next.
        level: Of all intervals at all looks together.

    Raises:
        ValueError: The tables differ in their seeds; there is none; the first look is not reached.
    """
    counts = {len(table) for table in tables.values()}
    if len(counts) != 1:
        raise InputError(f"a family of comparisons is made on the same seeds, got tables of {sorted(counts)} seeds")
    reached = max((look for look in looks if look <= max(counts)), default=None) if looks else max(counts)
    if reached is None:
        raise InputError(f"{max(counts)} seeds have not reached the first look, at {looks[0]}")
    found = {key: two_way(np.asarray(table)[:reached]) for key, table in tables.items()}
    means = np.stack([np.asarray(table)[:reached].mean(1) for table in tables.values()], axis=1)
    each = pointwise_level(means, level, looks)
    return Look(reached, each, level, found, {key: interval(value, each) for key, value in found.items()})


def sequence(tables: Mapping[Hashable, NDArray], looks: tuple[int, ...], level: float = LEVEL) -> list[Look]:
    """`look` at each look that the data have reached, the first first."""
    seeds = max(len(table) for table in tables.values())
    return [look({k: t[:n] for k, t in tables.items()}, looks, level) for n in looks if n <= seeds]
