"""A run of certify.py: its configuration, what it records line by line, and how one network is measured."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import stability
from experiments.harness.run.schema import Measurement
from experiments.harness.training.data import Split
from experiments.harness.training.settings import TrainingSettings
from stability.attacks.threats import THREATS
from stability.types import Flags, Images, Judge, Logits

# Of Croce & Hein (2020), in this order, survivors alone: what is called AutoAttack here. FAB is not among them.
ENSEMBLE = "autoattack-like"
MEMBERS = ("apgd100-ce", "apgd100-t", "square1000")
KEPT = 100  # images on which gradients are looked at
GROUP = 1.05  # the largest radius of a group that is hunted together, over the smallest
INSIDE = 0.999  # of a radius: where nothing may break
DESCENT = 40  # steps of the descent that is held to each image's own radius


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
    device: str = "cpu"
    smoke: bool = False
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
        """None where nothing was hunted."""
        return next((line.hunt for line in self.lines if line.hunt), None)

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


@dataclass(frozen=True)
class _Judge:
    """The certified network as a judge: logits that say its class alone, trusted where it does not abstain."""

    certificate: stability.Certificate
    classes: int

    def __call__(self, x: Images) -> tuple[Logits, Flags]:
        predicted = self.certificate.predict(x)
        logits = nn.functional.one_hot(predicted.clamp_min(0), self.classes).double()
        return logits, predicted >= 0


def certified_judge(certificate: stability.Certificate, classes: int) -> Judge:
    """A judge for `worst_case`: an image has fallen when the certified network gives it another class, or none."""
    return _Judge(certificate, classes)


def prove(net: nn.Module, test: Split, norm: str, tau: float) -> tuple[Certified, stability.Certificate]:
    """Certify all of `test`; InputError names the layer of which nothing is proven."""
    certificate = stability.certify(net, test.images, test.labels, norm=THREATS[norm], tau=tau)
    right = (certificate.predicted == test.labels).cpu().numpy()
    # Down, never to the nearest: a radius in a record must be one that was proven.
    radii = tuple(math.floor(radius * 1e6) / 1e6 for radius in certificate.radius.tolist())
    kept = stability.kept_gradient(net, test.images[:KEPT].to(next(net.parameters()))).mean().item()
    clean = Measurement.of("clean", 0.0, "exact", right, int(certificate.abstained.sum()))
    return Certified(radii, clean, kept, certificate.budget.factor), certificate


def attack(net: nn.Module, judge: Judge, test: Split, name: str, norm: str, radius: float, seed: int = 0) -> Measurement:
    """What an attack on the network as it stands leaves of `test`, judged by the certified network."""
    members = MEMBERS if name == ENSEMBLE else (name,)
    found = _survivors(net, judge, test.images, test.labels, members, norm, radius, seed)
    return Measurement.of(name, radius, "exact", found.robust.cpu().numpy(), int(found.untrusted.sum()))


def hunt(net: nn.Module, judge: Judge, test: Split, radii: Tensor, norm: str, members: Sequence[str] = MEMBERS) -> Hunt:
    """Attack every image just inside its radius; see `Hunt`. members: of the ensemble."""
    order = [index for index in radii.argsort().tolist() if radii[index] > 0]
    if not order:
        return Hunt(0, 0, 0, 0, 1.0)
    groups: list[list[int]] = []
    for index in order:
        if groups and radii[index] <= GROUP * radii[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    broken, abstained = (set(np.array(order)[mask].tolist()) for mask in _fallen(judge, test, radii, order, norm, net))
    nearest = 1.0
    for group in groups:
        reach = INSIDE * radii[group[0]].item()
        found = _survivors(net, judge, test.images[group], test.labels[group], members, norm, reach, 0)
        abstained |= {group[n] for n in found.untrusted.nonzero()[:, 0].tolist()}
        broken |= {group[n] for n in (~found.robust & ~found.untrusted).nonzero()[:, 0].tolist()}
        nearest = min(nearest, reach / radii[group[-1]].item())
    return Hunt(len(order), len(groups), len(broken), len(abstained), nearest)


def _fallen(
    judge: Judge, test: Split, radii: Tensor, order: list[int], norm: str, net: nn.Module
) -> tuple[np.ndarray, np.ndarray]:
    """(given another class, given none) after a descent on the margin within `INSIDE` of every image's own radius."""
    x, y = test.images[order].double(), test.labels[order]
    room, p = INSIDE * radii[order].double().view(-1, 1, 1, 1), 2 if norm == "l2" else math.inf
    exact, d = copy.deepcopy(net).double(), torch.zeros_like(x)

    def size(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v.flatten(1), p, dim=1).view(-1, 1, 1, 1).clamp_min(1e-300)

    for k in range(DESCENT):
        d = d.detach().requires_grad_()
        logits = exact(x + d)
        others = logits.scatter(1, y[:, None], -math.inf).max(1).values
        (g,) = torch.autograd.grad((logits.gather(1, y[:, None])[:, 0] - others).sum(), d)
        d = d - 2 * room * (1 - k / DESCENT) * (g.sign() if p == math.inf else g / size(g))
        d = d.clamp(-room, room) if p == math.inf else d * (room / size(d)).clamp_max(1)
        d = (x + d).clamp(0, 1) - x
    logits, trusted = judge((x + d).detach())
    assert trusted is not None
    return ((logits.argmax(1) != y) & trusted).cpu().numpy(), (~trusted).cpu().numpy()


def _survivors(
    net: nn.Module, judge: Judge, x: Images, y: Tensor, members: Sequence[str], norm: str, radius: float, seed: int
) -> stability.WorstCase:
    threat: Any = THREATS[norm](radius)
    attacks = [(member, stability.get_attack(member).bound(threat, seed)) for member in members]
    return stability.worst_case(net, x, y, threat, attacks, judge)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, seconds)."""
    start = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - start, 2)


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
