"""A run of certify.py: its configuration, and what it records line by line."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from experiments.harness.run.schema import Measurement
from experiments.harness.training.settings import TrainingSettings

# Of Croce & Hein (2020), in this order, survivors alone: what is called AutoAttack here. FAB is not among them.
ENSEMBLE = "autoattack-like"
MEMBERS = ("apgd100-ce", "apgd100-t", "square1000")
INSIDE = 0.999  # of a radius: where nothing may break


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A field with a scheme, in a net of about as many parameters as the others.

    model: its spec. epochs: as many as take the seconds of the run. refused: why nothing is proven of it; it is not trained.
    """

    field: str
    scheme: str
    model: str = ""
    parameters: int = 0
    epochs: int = 0
    refused: str = ""

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.field}, {self.scheme}"


@dataclass(frozen=True, kw_only=True)
class CertifyConfig:
    """Of a run of certify.py.

    networks: as they were named; weights: {name: SHA-256}. pairs: what is trained instead. seconds: of each training. radii: in
    pixel units. attack_images, hunted: how many test images are attacked at the radii, and inside their own certificates.
    own: {file: SHA-256} of a user's own code and images.
    """

    experiment: ClassVar[str] = "certify"

    networks: tuple[str, ...]
    weights: Mapping[str, str]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    settings: TrainingSettings | None
    seconds: float | None
    dataset: str
    norm: str
    tau: float
    radii: tuple[float, ...]
    attacks: tuple[str, ...]
    attack_images: int
    hunted: int
    data_dir: str = "data"
    download: bool = True
    train_limit: int | None = None
    test_limit: int | None = None
    image_size: int | None = None
    device: str = "cpu"
    smoke: bool = False
    own: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"experiment": self.experiment, **asdict(self)}


@dataclass(frozen=True)
class Certified:
    """What `stability.certify` said of the test images.

    radii: (images,) rounded down; 0 where the class is wrong. right: a `Measurement` of the clean images, by the certified
    network; abstentions are untrusted. kept: mean share of a margin's gradient that reaches the image. factor: the Lipschitz
    constant in front of the head.
    """

    radii: tuple[float, ...]
    right: Measurement
    kept: float
    factor: float


@dataclass(frozen=True)
class Hunt:
    """Attacks inside certificates.

    images: with a radius above 0, attacked by a descent on the margin within `INSIDE` of each one's radius, and by the ensemble
    in groups of nearly equal radii, within `INSIDE` of the smallest. broken: given another class. abstained: given none.
    nearest: the least radius of the ensemble over the radius of its image.
    """

    images: int
    groups: int
    broken: int
    abstained: int
    nearest: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One step of one network; what it is not about is None.

    step: "training", "certificate", "hunt" or an attack and its radius. pair: label of field and scheme. training_seconds,
    parameters, epochs: of the training.
    """

    network: str
    step: str
    pair: str
    seed: int
    seconds: float
    parameters: int | None = None
    epochs: int | None = None
    certified: Certified | None = None
    measurement: Measurement | None = None
    hunt: Hunt | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What distinguishes it."""
        return self.network, self.step

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Line":
        """A line that a run has written; ValueError where it is none."""
        try:
            known = dict(entry)
            for name, kind in (("measurement", Measurement), ("hunt", Hunt)):
                known[name] = kind(**known[name]) if known[name] else None
            if known["certified"]:
                parts = known["certified"]
                known["certified"] = Certified(
                    tuple(parts["radii"]), Measurement(**parts["right"]), parts["kept"], parts["factor"]
                )
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no line of certify.py: {error}") from error


@dataclass(frozen=True)
class Findings:
    """All lines of one network."""

    lines: tuple[Line, ...]

    @property
    def certified(self) -> Certified:
        """What was proven."""
        return next(line.certified for line in self.lines if line.certified)

    @property
    def training(self) -> Line | None:
        """None for a network that was brought."""
        return next((line for line in self.lines if line.step == "training"), None)

    @property
    def hunt(self) -> Hunt | None:
        """All pieces of it together; None where nothing was hunted."""
        parts = [line.hunt for line in self.lines if line.hunt]
        if not parts:
            return None
        images, groups = sum(part.images for part in parts), sum(part.groups for part in parts)
        broken, abstained = sum(part.broken for part in parts), sum(part.abstained for part in parts)
        return Hunt(images, groups, broken, abstained, min(part.nearest for part in parts))

    def seconds(self, step: str) -> float:
        """Of the steps whose name begins so."""
        return sum(line.seconds for line in self.lines if line.step.startswith(step))

    def certified_at(self, radius: float, count: int | None = None) -> np.ndarray:
        """(images,) bool: right, and no image nearer than this is given another class; of the first `count` images."""
        clean = self.certified.right.mask[:count]
        return clean & (np.array(self.certified.radii)[:count] >= radius) if radius else clean

    def attacked_at(self, radius: float, attack: str | None = None) -> np.ndarray | None:
        """(attacked images,) bool: right under an attack, or under all of them; None where none was made."""
        found = [
            line.measurement.mask
            for line in self.lines
            if line.measurement and line.measurement.epsilon == radius and attack in (None, line.measurement.attack)
        ]
        return np.logical_and.reduce(found) if found else None


def by_pair(lines: Iterable[Line]) -> dict[str, dict[int, Findings]]:
    """{label: {seed: `Findings`}} of the networks that were certified, in the order in which they came."""
    networks: dict[str, list[Line]] = {}
    for line in lines:
        networks.setdefault(line.network, []).append(line)
    found: dict[str, dict[int, Findings]] = {}
    for own in networks.values():
        if any(line.certified for line in own):
            found.setdefault(own[0].pair, {})[own[0].seed] = Findings(tuple(own))
    return found
