"""Our attacks beside foolbox's, torchattacks' and the reference AutoAttack's: the same weights, images, radius and step.

Peers that are not installed are named and skipped; `pip install -e ".[attacks-bench]"` gets them.
It is an extra of its own, best in an environment of its own: torchattacks pins requests to a version of 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import odenets
import stability
from experiments.benchmarks import libraries as peers
from experiments.benchmarks.timing import TRAINING, Row, Rows, Times, take_turns, timed
from experiments.harness.training import data
from experiments.harness.training import loop as training
from stability.types import Threat

STEPS, IMAGES = 20, 150  # of PGD; of the page's comparison with the reference
# How a net was trained, the radius it is attacked with, the target for time, what becomes of the images.
CASES = (("standard", 0.25, 0.6, "most fall early"), ("standard", 0.1, None, "some fall"), ("pgd", 0.05, None, "few fall"))
Crafting = Callable[[], Tensor]
Case = tuple[nn.Module, Tensor, Tensor, Threat]
REFERENCE: dict[str, tuple[Threat, ...]] = {"standard": (stability.Linf(0.1),), "pgd": (stability.L2(0.8),)}


@cache
def trained(method: str, device: torch.device, smoke: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """The default small net on digits, its test images and labels."""
    digits = data.load("digits")
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="explicit")
    settings = replace(TRAINING, training=method, train_epsilon=0.15, train_steps=5, epochs=1 if smoke else 15)
    training.train(net, digits, settings, 0)
    test = digits.test.first(20) if smoke else digits.test
    return net.to(device), test.images.to(device), test.labels.to(device)


def robust(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in percent."""
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).double().mean())


def _foolbox(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, step_size: float) -> Crafting:
    module = peers.peer("foolbox")
    model = module.PyTorchModel(net, bounds=(0, 1), device=x.device)
    attack = module.attacks.LinfPGD(abs_stepsize=step_size, steps=STEPS, random_start=False)
    return lambda: attack(model, x, y, epsilons=epsilon)[1]


def _torchattacks(net: nn.Module, x: Tensor, y: Tensor, epsilon: float, step_size: float) -> Crafting:
    attack = peers.peer("torchattacks").PGD(net, eps=epsilon, alpha=step_size, steps=STEPS, random_start=False)
    return lambda: attack(x, y)


def pgd(device: torch.device, smoke: bool) -> Rows:
    """PGD-20 against the PGD of foolbox and of torchattacks, all from the images themselves with the same step."""
    found = {name: attack for name, attack in (("foolbox", _foolbox), ("torchattacks", _torchattacks)) if peers.peer(name)}
    for name in sorted({"foolbox", "torchattacks"} - set(found)):
        yield f"{name} is not installed (extra attacks-bench): skipped", None, None
    if not found:
        return
    for method, epsilon, target, label in CASES[: 1 if smoke else None]:
        net, x, y = trained(method, device, smoke)
        step_size = 2.5 * epsilon / STEPS
        ours = partial(stability.pgd, net, x, y, stability.Linf(epsilon), STEPS, step_size, random_start=False)
        theirs = [attack(net, x, y, epsilon, step_size) for attack in found.values()]
        own = [partial(ours, keep="best"), partial(ours, keep="last")]
        best, last = (robust(net, function(), y) for function in own)
        times = take_turns([*own, *theirs], 1 if smoke else 5, device)
        case = f"{method} net, epsilon {epsilon}, {label}"
        yield f"{case}: robust accuracy, %", last, None
        for index, (name, function) in enumerate(zip(found, theirs), start=2):
            other = robust(net, function(), y)
            yield f"{case}, last iterate: points from {name}", abs(last - other), 0.5
            yield times.ratio(f"{case}, last iterate: time / {name}", 1, index, 1.1)
            yield f"{case}, fallen images leave: points from {name}", abs(best - other), 0.5
            yield times.ratio(f"{case}, fallen images leave: time / {name}", 0, index, target)


def reference(device: torch.device, smoke: bool, whole: bool = False) -> Rows:
    """Auto-PGD and Square against those of the reference AutoAttack, means and range of seeds; Square must not be weaker."""
    if peers.peer("pyautoattack") is None:
        yield "pyautoattack is not installed (extra attacks-bench): skipped", None, None
        return
    # On all 450 images one seed against another differs by about a point: the mean of four tells a difference of one.
    seeds, steps, queries = (1, 5, 5) if smoke else (4 if whole else 2, 100, 300)

    def settings(reference: Any) -> None:
        reference.apgd.n_restarts, reference.square.n_queries = 1, queries
        if smoke:
            reference.apgd.n_iter = steps

    attacks = {
        "apgd-ce": partial(stability.apgd, steps=steps),
        "apgd-dlr": partial(stability.apgd, steps=steps, loss="dlr"),
        "square": partial(stability.square, queries=queries),
    }
    for method, threats in list(REFERENCE.items())[: 1 if smoke else None]:
        net, x, y = trained(method, device, smoke)
        x, y = (x, y) if whole else (x[:IMAGES], y[:IMAGES])
        for threat, (name, attack) in product(threats, attacks.items()):
            theirs = partial(stability.autoattack, version="custom", attacks=(name,), configure=settings)
            left, times = _by_seed((attack, theirs), (net, x, y, threat), seeds)
            label = f"{method} net, {threat}, {name}"
            yield f"{label}: robust accuracy, %", float(left[:, 0].mean()), None
            gaps = left[:, 0] - left[:, 1]
            gap = max(0.0, gaps.mean()) if name == "square" else abs(gaps.mean())
            most = max(0.0, gaps.max()) if name == "square" else abs(gaps).max()
            figure = f"{label}: points {'weaker than' if name == 'square' else 'from'} the reference"
            yield Row(
                figure, float(gap), 1.0, float(max(0.0, gaps.min(), 0.0 if name == "square" else -gaps.max())), float(most)
            )
            yield times.ratio(f"{label}: time / reference", 0, 1)


def _by_seed(attacks: Sequence[Callable[..., Tensor]], case: Case, seeds: int) -> tuple[np.ndarray, Times]:
    """(seeds, attacks): the accuracy in percent that each attack leaves, and its time."""
    net, x, y, _ = case
    found = [
        [timed(partial(attack, *case, generator=torch.Generator().manual_seed(seed)), x.device) for attack in attacks]
        for seed in range(seeds)
    ]
    left = np.array([[robust(net, moved, y) for _, moved in row] for row in found])
    return left, Times([[spent for spent, _ in row] for row in found])
