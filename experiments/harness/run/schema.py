"""What a run records, as objects. JSON is their edge: `from_json` reads what any version wrote, `to_json` writes today's."""

import dataclasses
import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.harness.training.epoch import Epoch
from odenets.errors import InputError

VERSION = 5
CHEAP, WHOLE, FULL = "cheap", "whole", "full"  # of an audit: the checks that take seconds, all, all with longer attacks
CHEAP_IMAGES = 16  # that the checks which take seconds look at
# Of a record, what stands first in its line: whose it is.
HEAD = (
    "version",
    "scheme",
    "substeps",
    "seed",
    "dataset",
    "model",
    "training",
    "trained_substeps",
    "field",
    "trained_as",
    "swapped",
)
WORST = "worst"  # in place of an attack: an image counts as right if it withstood all of them, along every gradient


@dataclass(frozen=True)
class Measurement:
    """What one attack ("clean": none) left standing of the test images.

    epsilon: radius in pixel units. gradient: the one that the attack followed, or "all". correct, total: images. untrusted:
    images counted as broken because their logits cannot be relied on. bits: hexadecimal of the packed mask of correct images.
    path_dependent: how many of the untrusted hang on the path of the solver, which converges to one of several roots.
    """

    attack: str
    epsilon: float
    gradient: str
    correct: int
    total: int
    untrusted: int
    bits: str
    path_dependent: int = 0

    @classmethod
    def of(
        cls, attack: str, epsilon: float, gradient: str, mask: np.ndarray, untrusted: int, path_dependent: int = 0
    ) -> "Measurement":
        """From the mask itself, (total,) bool."""
        bits = np.packbits(mask).tobytes().hex()
        return cls(attack, epsilon, gradient, int(mask.sum()), len(mask), untrusted, bits, path_dependent)

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified rightly."""
        return self.correct / self.total

    @cached_property
    def mask(self) -> np.ndarray:
        """(total,) bool: which images were classified rightly; ValueError where it contradicts the count."""
        mask = np.unpackbits(np.frombuffer(bytes.fromhex(self.bits), dtype=np.uint8))[: self.total].astype(bool)
        if len(mask) != self.total or mask.sum() != self.correct:
            raise InputError(
                f"damaged record: {self.attack} at epsilon {self.epsilon} says {self.correct} of {self.total} "
                f"images correct, its bits say {mask.sum()} of {len(mask)}"
            )
        return mask


@dataclass(frozen=True)
class Metric:
    """A figure of a block; of a stage where block is None; of the network where stage is None too."""

    stage: int | None
    block: int | None
    metric: str
    value: float


@dataclass(frozen=True)
class CheckResult:
    """One verdict of an audit; passed None: does not apply."""

    name: str
    passed: bool | None
    reason: str
    figures: Mapping[str, Any]
    thresholds: Mapping[str, Any]


@dataclass(frozen=True)
class AuditResult:
    """An audit of a net on so many images at one radius. extent: `CHEAP`, `WHOLE` or `FULL`."""

    passed: bool
    images: int
    epsilon: float
    checks: tuple[CheckResult, ...]
    extent: str = WHOLE


@dataclass(frozen=True)
class SolverStatistics:
    """What the implicit solves of a net report, on test images and in training; None where it is not known."""

    unconverged_share: float | None = None
    backward_unconverged_share: float | None = None
    iterations_mean: float | None = None
    iterations_max: int | None = None
    evaluations_mean: float | None = None
    training_unconverged_share: float | None = None
    training_backward_unconverged_share: float | None = None
    path_dependent_share: float | None = None


@dataclass(frozen=True)
class Refinement:
    """How far the logits of a net are from those of the exact flow of its fields, by the steps for each block.

    steps: numbers of them, ascending. errors: |logits - exact| / |exact|, root mean square over probe images; inf where the net
    blew up. uncertain: the same of what is taken for exact, so that errors of that size are not its own.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    uncertain: float


@dataclass(frozen=True)
class Made:
    """Where phases of a record were made, and with what. device: "cpu", or the name of a GPU. versions: {package: version}."""

    node: str
    device: str
    versions: Mapping[str, str]
    phases: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """A network and what was measured on it: of a case of a run, or of a network that `evaluate.py` was given.

    scheme: canonical spec that it runs with. substeps, trained_substeps: steps for each block, now and in training.
    trained_as: the spec in training. swapped: it runs with another scheme than that of its case. rerun_with: of the case, other
    substeps with records of their own. refinement: does it converge to its differential equation? network: its name in an
    evaluation. cloud: {stage: [[re, im], ...]} Ritz values of hJ. unsolved: why equations stay unsolved, in a sentence.
    seconds: of each phase. made: where, with which device and versions; nothing where an earlier version wrote it.
    """

    scheme: str
    substeps: int
    seed: int
    dataset: str
    model: str
    training: str
    trained_substeps: int
    measurements: tuple[Measurement, ...] = ()
    field: str = "residual"
    trained_as: str = ""
    swapped: bool = False
    rerun_with: tuple[int, ...] = ()
    refinement: Refinement | None = None
    network: str = ""
    parameters: int | None = None
    epoch: int | None = None
    history: tuple[Epoch, ...] = ()
    stability: tuple[Metric, ...] = ()
    cloud: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    solver: SolverStatistics | None = None
    unsolved: str | None = None
    audit: AuditResult | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    made: tuple[Made, ...] = ()
    version: int = VERSION

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What distinguishes the case that it is of: scheme, field, substeps it was trained with, seed."""
        return self.trained_with, self.field, self.trained_substeps, self.seed

    @property
    def trained_with(self) -> str:
        """The scheme of the case that it is of."""
        return self.trained_as if self.swapped else self.scheme

    @property
    def walk(self) -> tuple[str, int]:
        """What tells the records of a case apart: the scheme and the substeps that the net runs with."""
        return self.scheme, self.substeps

    @property
    def verdict(self) -> str:
        """What the audit said of the net: "passed", "failed", "cheap checks passed" or "not audited"."""
        if self.audit is None:
            return "not audited"
        return "failed" if not self.audit.passed else "cheap checks passed" if self.audit.extent == CHEAP else "passed"

    def values(self, metric: str) -> list[float]:
        """The values of a metric, wherever it was taken."""
        return [row.value for row in self.stability if row.metric == metric]

    def to_json(self) -> dict:
        """A dict that JSON can write: whose it is stands first."""
        whole = asdict(self)
        return {name: whole[name] for name in HEAD} | whole

    @classmethod
    def head(cls, line: bytes) -> "Record | None":
        """Of a line of today's version, whose record it is, without all that it says; None where only the whole line tells."""
        head, mark, _ = line.partition(b', "measurements": ')
        try:
            entry = json.loads(head + b"}") if mark and line.endswith(b"}") else {}
        except ValueError:
            return None
        return cls(**entry) if tuple(entry) == HEAD and entry["version"] == VERSION else None

    @classmethod
    def from_json(cls, entry: dict) -> "Record":
        """A record of any version; ValueError where the entry is none."""
        try:
            entry = _migrated(entry)
            if "measurements" not in entry:
                raise KeyError("measurements")
            return cls(**parts_of(entry))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"no record of a network ({error})") from error


def parts_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record, those that there are, from what JSON has of them."""
    parse: dict[str, Any] = {
        "measurements": lambda found: tuple(Measurement(**m) for m in found),
        "history": lambda found: tuple(Epoch(**e) for e in found),
        "stability": lambda found: tuple(Metric(**m) for m in found),
        "rerun_with": tuple,
        "refinement": _refinement,
        "solver": lambda found: found and SolverStatistics(**found),
        "made": lambda found: tuple(Made(**m | {"phases": tuple(m["phases"])}) for m in found),
        "audit": lambda found: found and AuditResult(**found | {"checks": tuple(CheckResult(**c) for c in found["checks"])}),
    }
    return {key: parse.get(key, lambda found: found)(value) for key, value in entry.items()}


def _refinement(entry: dict | None) -> Refinement | None:
    return Refinement(tuple(entry["steps"]), tuple(entry["errors"]), entry["uncertain"]) if entry else None


def _migrated(entry: dict) -> dict:
    """An entry of an earlier version as today's: what was not written then is said here, and nowhere else."""
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    version = entry.get("version", 2)
    if version > VERSION:
        raise InputError(f"a record of version {version}, and this version of odenets reads up to {VERSION}")
    if version == VERSION:
        return entry
    known = {f.name for f in dataclasses.fields(Record)}
    new = {key: value for key, value in entry.items() if key in known} | {"version": VERSION}
    new.setdefault("trained_as", new["scheme"])
    new.setdefault("trained_substeps", new["substeps"])
    seconds = new.get("seconds", {})
    new["seconds"] = seconds if isinstance(seconds, dict) else {"measurement": seconds}
    return new


def made_of(found: Mapping[str, Mapping[str, Any]], before: Record | None = None) -> tuple[Made, ...]:
    """From {phase: {"node", "device", "versions"}}, phases that were made alike together, after those that a record has."""
    alike: list[Made] = list(before.made if before else ())
    for phase, where in found.items():
        same = next((m for m in alike if (m.node, m.device, m.versions) == tuple(where.values())), None)
        if same:
            alike[alike.index(same)] = dataclasses.replace(same, phases=(*same.phases, phase))
        else:
            alike.append(Made(**where, phases=(phase,)))
    return tuple(alike)


def worst_over(measurements: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """For each radius with several measurements one more, `WORST`: images that withstood every attack along every gradient.

    Its `untrusted` is the largest among them; the true number, that of the union, is no smaller.
    """
    found = []
    for epsilon in sorted({m.epsilon for m in measurements} - {0.0}):
        own = [m for m in measurements if m.epsilon == epsilon]
        if len(own) > 1:
            mask = np.logical_and.reduce([m.mask for m in own])
            found.append(Measurement.of(WORST, epsilon, "all", mask, max(m.untrusted for m in own)))
    return tuple(found)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the context nobody looks for cycles among objects that stay: of thousands of records that is most of the work."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
