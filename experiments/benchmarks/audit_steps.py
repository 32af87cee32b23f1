"""How often the audit's `more_steps` is right, counted: honest nets of many seeds, and nets that lead PGD astray.

    python experiments/benchmarks/run.py --only audit_steps

Every net is asked on disjoint sets of 64 test images. What 200 steps find after 20, over all of them, says whether an alarm is
due: on an honest net never.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import odenets
import stability
from experiments.benchmarks.audit import (
    ACTIVATIONS,
    IMAGES,
    MASKS,
    STARTED_WITH,
    Mask,
    Masked,
    convolutional,
    digits,
    perceptron,
    trained,
)
from experiments.benchmarks.timing import Row, share

SEEDS = range(1, 7)  # not those that the thresholds were chosen on
RADII = (0.03, 0.1, 0.3)
SETS = 4
Net = Callable[[], nn.Module]


class Asked(NamedTuple):
    """What `more_steps` said of a net: alarms of so many audits, and the share that more steps find, over all images."""

    alarms: int
    audits: int
    found: float


def _led_astray(x: Tensor, scale: float) -> Tensor:
    """The images; their gradient is multiplied by one plus noise, which steps average away, the more the better."""
    return x.detach() + (1 + scale * torch.randn_like(x)) * (x - x.detach())


def _ask(net: nn.Module, epsilon: float, sets: int, device: torch.device) -> Asked:
    test, alarms, found = digits().test.to(device), 0, 0.0
    for first in range(0, sets * IMAGES, IMAGES):
        x, y = test.images[first : first + IMAGES], test.labels[first : first + IMAGES]
        (check,) = stability.audit(net.to(device), x, y, stability.Linf(epsilon), checks=["more_steps"]).checks
        alarms += check.passed is False
        found += check.figures.get("found_200", 0.0) / sets
    return Asked(alarms, sets, found)


def plain(device: torch.device, smoke: bool) -> Iterator[Row]:
    """False alarms on nets of plain torch, each at one radius; some of them trained on PGD at 0.1."""
    standard: list[Net] = [partial(make, activation) for make in (perceptron, convolutional) for activation in ACTIVATIONS]
    yield from _honest("plain nets", standard, SEEDS, SETS, device, smoke)
    yield from _honest("plain nets trained on PGD", [perceptron, convolutional], SEEDS, SETS, device, smoke, trained_at=0.1)


def ours(device: torch.device, smoke: bool) -> Iterator[Row]:
    """False alarms on our small nets."""
    for scheme, seeds, sets in (("explicit", 3, 2), ("ie_skip(gamma=0.05)", 3, 2), (STARTED_WITH, 2, 1)):
        makes: list[Net] = [partial(odenets.ode_resnet_small, scheme=scheme)]
        yield from _honest(f"small nets, {scheme}", makes, SEEDS[:seeds], sets, device, smoke)


def _honest(
    kind: str, makes: list[Net], seeds: range, sets: int, device: torch.device, smoke: bool, trained_at: float | None = None
) -> Iterator[Row]:
    cases = [(make, seed) for seed in seeds for make in makes][: 1 if smoke else None]
    asked = [
        _ask(trained(make, 1 if smoke else 8, trained_at, seed), RADII[index % len(RADII)], 1 if smoke else sets, device)
        for index, (make, seed) in enumerate(cases)
    ]
    yield _row(f"more_steps on honest {kind}: alarms", asked, 0.05)


def _row(figure: str, asked: list[Asked], target: float | None) -> Row:
    alarms, audits = sum(own.alarms for own in asked), sum(own.audits for own in asked)
    found = " to ".join(f"{bound(own.found for own in asked):.1%}" for bound in (min, max))
    note = f"{alarms} of {audits} audits of {len(asked)} nets; 200 steps find {found} of a net's images"
    return share(figure, alarms, audits, target, note)


def masked(device: torch.device, smoke: bool) -> Iterator[Row]:
    """Alarms on nets of plain torch behind a mask, by what 200 steps really find after 20."""
    masks: list[Mask] = [mask for kind in MASKS.values() for mask in kind][:: 20 if smoke else 1]
    noisy: list[Mask] = [partial(Masked, before=partial(_led_astray, scale=scale)) for scale in (3.0, 10.0, 30.0, 100.0)]
    asked = list[Asked]()
    for seed in SEEDS[: 1 if smoke else 3]:
        for base in (perceptron, convolutional)[: 1 if smoke else 2]:
            for mask in [*(masks if seed == SEEDS[0] else []), *noisy]:
                net = trained(base, 1 if smoke else 8, None, seed)
                torch.manual_seed(seed)  # of the masks that draw noise
                asked.append(_ask(mask(net), 0.1, 1 if smoke else SETS, device))
    for low, high in ((0.0, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 1.0)):
        own = [one for one in asked if low < one.found <= high or one.found == low == 0.0]
        name = f"more_steps on masked nets where 200 steps find {100 * low:g} to {100 * high:g} % of the images: alarms"
        yield _row(name, own, None) if own else Row(f"{name}: no such net, skipped", None)
