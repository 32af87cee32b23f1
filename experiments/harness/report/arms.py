"""The arms of a comparison: what is compared with what, and the records of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import experiments.harness.statistics as statistics
import odenets
from experiments.harness.run.config import RunConfig
from experiments.harness.run.schema import Record
from experiments.harness.statistics.estimates import Estimate
from experiments.harness.words import radius

Cloud = Mapping[str, np.ndarray]  # of a stage: (n, 2) real and imaginary parts of h lambda


@dataclass(frozen=True)
class Arm:
    """Nets of a run that differ in their seed alone.

    name: what tables call it. scheme: canonical spec that the nets run with. field: what is integrated. trained_substeps,
    substeps: steps for each block, in training and now. records: one a seed; empty where all its cases failed. trained_with:
    the scheme of training.
    """

    name: str
    scheme: str
    field: str
    trained_substeps: int
    substeps: int
    records: tuple[Record, ...]
    trained_with: str = ""

    @property
    def swapped(self) -> bool:
        """Whether its weights were trained with another scheme."""
        return self.trained_with not in ("", self.scheme)

    @cached_property
    def label(self) -> str:
        """The name, with a dagger where one of the nets failed its audit."""
        failed = any(record.verdict == "failed" for record in self.records)
        return f"{self.name} \u2020" if failed else self.name

    @property
    def behind(self) -> odenets.Scheme:
        """The scheme itself."""
        return odenets.get_scheme(self.scheme)

    @cached_property
    def _known(self) -> dict[tuple, dict[int, np.ndarray]]:
        return {}

    def masks(self, epsilon: float, gradient: str = "exact", attack: str | None = None) -> dict[int, np.ndarray]:
        """{seed: (n,) bool} at one radius; an image counts if it withstood every attack of that size.

        Args:
            epsilon: Radius; 0 for no attack.
            gradient: "exact", or "detached": every attack that was run along the detached gradient counts along that one,
                and an attack that follows no gradient as it is. A scheme that knows one gradient only has nothing along the
                other.
            attack: The name of one attack, in place of all of them.
        """
        if (asked := (epsilon, gradient, attack)) not in self._known:
            found = self._known[asked] = {}
            for record in self.records:
                own = [m for m in record.measurements if m.epsilon == epsilon and attack in (None, m.attack)]
                chosen = {m.attack: m for m in own if m.gradient == gradient}
                if chosen:
                    counted = {m.attack: m for m in own if m.gradient == "exact"} | chosen
                    found[record.seed] = np.logical_and.reduce([m.mask for m in counted.values()])
        return self._known[asked]

    def cloud(self) -> dict[str, np.ndarray]:
        """{stage: (n, 2)} of the Ritz values in all nets; records keep one of each pair."""
        return merged_clouds([record.cloud for record in self.records])


@dataclass(frozen=True)
class Net:
    """A net with a stability measure, the mean over its blocks, and its accuracy at a radius."""

    record: Record
    value: float
    robust: float


def net_values(arm: Arm, metric: str, epsilon: float) -> list[Net]:
    """The nets of an arm of which both are known."""
    masks, known = arm.masks(epsilon), ((record, mean_of(record, metric)) for record in arm.records)
    return [Net(r, value, masks[r.seed].mean()) for r, value in known if value is not None and r.seed in masks]


def standing(itself: bool) -> str:
    """In place of a verdict, of what has no difference to what it is compared with; itself: for that is itself."""
    return "reference" if itself else "no seed in common"


def mean_of(record: Record, metric: str) -> float | None:
    """Mean of a measure over the blocks (or stages) of a net: inf where one is infinite, None where it is not known."""
    values = record.values(metric)
    if not values:
        return None
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(values))
    return None if np.isnan(mean) else mean


@dataclass(frozen=True)
class Comparison:
    """A run as its arms, in the order of the report; all are compared with the first that has a net."""

    config: RunConfig
    arms: tuple[Arm, ...]

    @property
    def reference(self) -> Arm:
        """The arm that the others are compared with: the first that has a net."""
        return next(arm for arm in self.arms if arm.records)

    @property
    def others(self) -> tuple[Arm, ...]:
        """The other arms that have a net."""
        return tuple(arm for arm in self.arms if arm.records and arm is not self.reference)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Of all arms, in their order."""
        return tuple(record for arm in self.arms for record in arm.records)

    @property
    def nets(self) -> tuple[Record, ...]:
        """The records of nets that run as they were trained: one of each net."""
        return tuple(record for record in self.records if record.walk == (record.trained_with, record.trained_substeps))

    @cached_property
    def _attacked(self) -> dict[float, set[str]]:
        """{radius: names of the attacks there}, looked up once: a run may have thousands of nets."""
        found: dict[float, set[str]] = {}
        for epsilon, attack in {(m.epsilon, m.attack) for record in self.records for m in record.measurements}:
            found.setdefault(epsilon, set()).add(attack)
        return found

    @cached_property
    def radii(self) -> list[float]:
        """Radii of the attacks, ascending, without 0."""
        return sorted(self._attacked.keys() - {0.0})

    @property
    def middle(self) -> float:
        """The radius that headlines speak of: chosen by position, not by what was found there; 0 without an attack."""
        return statistics.middle(self.radii) if self.radii else 0.0

    @property
    def swept(self) -> bool:
        """Whether arms differ in their steps."""
        return len({(arm.trained_substeps, arm.substeps) for arm in self.arms}) > 1

    @property
    def rerun(self) -> bool:
        """Whether weights were run otherwise than trained, or trained with several numbers of steps."""
        return self.swept or any(arm.swapped for arm in self.arms)

    def attacks(self) -> list[str]:
        """Names of the attacks, in the order in which they were run."""
        return list(dict.fromkeys(m.attack for record in self.records for m in record.measurements if m.epsilon))

    def attack_at(self, epsilon: float) -> str:
        """The attack behind the accuracies at a radius, for tables and sentences."""
        if not epsilon:
            return "no attack"
        names = sorted(self._attacked[epsilon])
        strongest = names[0] if len(names) == 1 else f"worst of {len(names)} attacks"
        return f"{strongest} at \u03b5 = {radius(epsilon)}"

    def first(self, seeds: int) -> "Comparison":
        """What the run was with its first so many seeds."""
        taken = self.config.seeds[:seeds]
        arms = (replace(arm, records=tuple(record for record in arm.records if record.seed in taken)) for arm in self.arms)
        return replace(self, arms=tuple(arms))

    @cached_property
    def gaps(self) -> dict[tuple[str, float], statistics.Gap]:
        """{(arm, radius): its paired difference to the reference}: one family, whose intervals cover together."""
        first, config = self.reference, self.config
        pairs = {
            (arm.name, eps): (arm.masks(eps), first.masks(eps))
            for eps in [0.0, *self.radii]
            for arm in self.arms
            if arm is not first
        }
        return statistics.gaps(pairs, margin=config.margin, looks=config.looks, train=config.resplit)

    def gap(self, arm: Arm, epsilon: float) -> statistics.Gap | None:
        """The paired difference of an arm to the reference; None for that itself or where no seed is common."""
        return self.gaps.get((arm.name, epsilon))

    def accuracy(self, arm: Arm, epsilon: float, gradient: str = "exact") -> Estimate | None:
        """Of an arm at a radius, by itself; None where there is none along that gradient."""
        masks = arm.masks(epsilon, gradient)
        return statistics.accuracy(masks, train=self.config.resplit) if masks else None

    def measured(self, arm: Arm, epsilon: float, gradient: str = "exact") -> Estimate:
        """`accuracy` of an arm that is known to have one."""
        return statistics.accuracy(arm.masks(epsilon, gradient), train=self.config.resplit)

    def detached_gap(self, arm: Arm, epsilon: float) -> Estimate | None:
        """Accuracy along the detached gradient minus that along the exact one; None where there is one gradient."""
        return statistics.difference(arm.masks(epsilon, "detached"), arm.masks(epsilon), train=self.config.resplit)


def comparison(config: RunConfig, records: list[Record]) -> Comparison:
    """The arms of a run: a scheme each, on each field and with each number of substeps where it has several of these."""
    swept, fields = len({(record.trained_substeps, record.substeps) for record in records}) > 1, config.fields
    trained = config.substeps if "trained" in config.reads else config.substeps[:1]
    # A scheme whose cases all failed is an arm too: it is missing, and named.
    groups: dict[tuple, list[Record]] = {
        (field, scheme, scheme, n, n): [] for field in fields for scheme in config.schemes for n in trained
    }
    # By seeds as the run has them, not as they ended: a look takes the first so many.
    position = {seed: index for index, seed in enumerate(config.seeds)}
    for record in sorted(records, key=lambda record: position.get(record.seed, len(position))):
        walked = record.trained_substeps, record.substeps
        groups.setdefault((record.field, record.trained_with, record.scheme, *walked), []).append(record)

    def order(key: tuple) -> tuple:
        field, trained_with, scheme, *walked = key
        others = -1 if scheme == trained_with else config.schemes.index(scheme)
        return fields.index(field), config.schemes.index(trained_with), *walked, others

    def name(field: str, trained_with: str, scheme: str, steps: int, run: int) -> str:
        first = [trained_with] * (trained_with != scheme) + [str(steps)] * (steps != run)
        suffix = f" (trained with {', '.join(first)})" if first else ""
        walked = f", {run} step{'s' * (run > 1)}{suffix}" if swept else suffix
        return f"{scheme}{f' on {field}' if len(fields) > 1 else ''}{walked}"

    arms = []
    for key in sorted(groups, key=order):
        field, trained_with, scheme, steps, run = key
        arms.append(Arm(name(*key), scheme, field, steps, run, tuple(groups[key]), trained_with))
    return Comparison(config, tuple(arms))


def merged_clouds(clouds: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """{stage: (n, 2)} of the clouds of several records; each keeps one of a conjugate pair, here are both."""
    merged = {}
    for stage in sorted({stage for cloud in clouds for stage in cloud}, key=int):
        points = np.concatenate([np.reshape(cloud[stage], (-1, 2)) for cloud in clouds if stage in cloud])
        mirrored = points[points[:, 1] > 0] * (1, -1) if (points[:, 1] >= 0).all() else points[:0]
        merged[stage] = np.concatenate([points, mirrored])
    return merged
