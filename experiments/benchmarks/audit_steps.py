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

SEEDS = range(1, 11)  # not those that the thresholds were chosen on
RADII = (0.03, 0.1, 0.3)
SETS = 6
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


def _integrated(scheme: str) -> Net:
    return partial(odenets.ode_resnet_small, scheme=scheme)


def honest(device: torch.device, smoke: bool) -> Iterator[Row]:
    """False alarms, of plain nets, of nets trained against PGD, of ours; each net at one radius."""
    plain: list[Net] = [partial(make, activation) for make in (perceptron, convolutional) for activation in ACTIVATIONS]
    kinds: dict[str, tuple[list[Net], float | None, range, int]] = {
        "plain nets": (plain, None, SEEDS, SETS),
        "nets trained on PGD at 0.1": ([perceptron, convolutional], 0.1, SEEDS, SETS),
        "explicit Euler and ie_skip": ([_integrated("explicit"), _integrated("ie_skip(gamma=0.05)")], None, SEEDS[:5], 2),
        "implicit Euler": ([_integrated(STARTED_WITH)], None, SEEDS[:3], 1),
    }
    asked = list[Asked]()
    for kind, (makes, trained_at, seeds, sets) in list(kinds.items())[: 1 if smoke else None]:
        own = [
            _ask(trained(make, 1 if smoke else 8, trained_at, seed), RADII[index % len(RADII)], 1 if smoke else sets, device)
            for index, (make, seed) in enumerate((make, seed) for seed in seeds[: 1 if smoke else None] for make in makes)
        ]
        asked += own
        yield _row(f"more_steps on honest {kind}: alarms", own, None)
    yield _row("more_steps on all honest nets: alarms", asked, 0.05)


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
    for seed in SEEDS[: 1 if smoke else 5]:
        for base in (perceptron, convolutional)[: 1 if smoke else 2]:
            for mask in [*(masks if seed == SEEDS[0] else []), *noisy]:
                torch.manual_seed(seed)  # of the masks that draw noise
                net = mask(trained(base, 1 if smoke else 8, None, seed))
                asked.append(_ask(net, 0.1, 1 if smoke else SETS, device))
    for low, high in ((0.0, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 1.0)):
        own = [one for one in asked if low < one.found <= high or one.found == low == 0.0]
        name = f"more_steps on masked nets where 200 steps find {100 * low:g} to {100 * high:g} % of the images: alarms"
        yield _row(name, own, None) if own else Row(f"{name}: no such net, skipped", None)
