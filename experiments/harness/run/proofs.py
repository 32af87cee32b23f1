"""How certify.py measures one network: its certificate, attacks judged by it, a hunt inside it."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import stability
from experiments.harness.run.certified import ENSEMBLE, INSIDE, MEMBERS, Certified, Hunt
from experiments.harness.run.schema import Measurement
from experiments.harness.training.data import Split
from stability.attacks.threats import THREATS
from stability.types import Flags, Images, Judge, Logits

KEPT = 100  # images on which gradients are looked at
GROUP = 1.25  # the largest radius of a group that is hunted together, over the smallest
DESCENT = 40  # steps of the descent that is held to each image's own radius


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
