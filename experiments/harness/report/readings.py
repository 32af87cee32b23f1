"""What a sweep of steps found: the rate of convergence of its nets, and each arm beside that which it is compared with."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import experiments.harness.statistics as statistics
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.statistics import Gap
from experiments.harness.statistics.convergence import ObservedOrder, observed_order, slope

FINER, TRAINED, SWAP = "the same weights, finer steps", "trained with each number of steps", "run with another scheme"


@dataclass(frozen=True)
class Reading:
    """An arm as the answer to a question. gaps: {radius: its paired difference to `against`}, none for the reference itself."""

    question: str
    arm: Arm
    against: Arm
    gaps: dict[float, Gap]

    @property
    def untrusted(self) -> float:
        """Share of the images, at the worst radius, that counted as wrong because no solve could be trusted."""
        return max((m.untrusted / m.total for record in self.arm.records for m in record.measurements), default=0.0)


@dataclass(frozen=True)
class Convergence:
    """Of an arm's nets at finer steps. errors: (seeds, steps)."""

    arm: Arm
    steps: tuple[int, ...]
    errors: np.ndarray
    observed: ObservedOrder

    @property
    def order(self) -> int | None:
        """What the theory states for smooth fields."""
        return self.arm.behind.order

    @property
    def verdict(self) -> str:
        """Of the observed order against the stated one."""
        return self.observed.verdict(self.order)


def convergences(found: Comparison) -> list[Convergence]:
    """Of each arm whose nets were refined."""
    result = []
    for arm in found.arms:
        known = [record.refinement for record in arm.records if record.refinement]
        if known:
            slopes = [slope(r.steps, r.errors, r.uncertain) for r in known]
            result.append(Convergence(arm, known[0].steps, np.array([r.errors for r in known]), observed_order(slopes)))
    return result


def readings(found: Comparison) -> list[Reading]:
    """What was asked, in the order of the questions; the differences of one question are a family, both radii together."""
    arms = [arm for arm in found.arms if arm.records]
    own = {(arm.scheme, arm.trained_substeps): arm for arm in arms if not arm.swapped and arm.trained_substeps == arm.substeps}
    fewest = {scheme: min(steps for name, steps in own if name == scheme) for scheme, _ in own}
    finer = {arm.trained_with or arm.scheme for arm in arms if arm.trained_substeps != arm.substeps}
    swaps = {arm.trained_with for arm in arms if arm.swapped}

    def pairs(question: str) -> Iterator[tuple[Arm, Arm]]:
        for arm in arms:
            home = own.get((arm.trained_with or arm.scheme, arm.trained_substeps))
            first = own.get((arm.scheme, fewest.get(arm.scheme, 0)))
            at_home = home is not None and not arm.swapped and arm.scheme in finer and arm.trained_substeps == home.substeps
            if question == FINER and home and at_home and home is first:
                yield arm, home
            if question == TRAINED and first and arm is home and len([1 for name, _ in own if name == arm.scheme]) > 1:
                yield arm, first
            if question == SWAP and home and (arm.swapped or (arm is home and arm.scheme in swaps and home is first)):
                yield arm, home

    result = []
    for question in (FINER, TRAINED, SWAP):
        compared = list(pairs(question))
        wanted = {
            (arm.name, eps): (arm.masks(eps), against.masks(eps))
            for arm, against in compared
            for eps in dict.fromkeys((0.0, found.middle))
            if arm is not against
        }
        gaps = statistics.gaps(wanted, margin=found.config.margin, looks=found.config.looks, train=found.config.resplit)
        for arm, against in compared:
            own_gaps = {eps: gaps[name, eps] for name, eps in gaps if name == arm.name}
            result.append(Reading(question, arm, against, own_gaps))
    return result
