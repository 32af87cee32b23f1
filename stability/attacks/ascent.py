"""What the attacks along a gradient share: starts, targets, restarts, and images that leave once they have fallen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stability.attacks.images import attacking, check_count, check_images, check_logits, identities, split, told
from stability.attacks.losses import Objective, input_gradient, likeliest_wrong, margin, objective_named
from stability.attacks.threats import check_threat, confine, representable, rows, shrunk, working_precision
from stability.errors import InputError
from stability.random import generators, seeds
from stability.types import Flags, Images, Indices, Labels, Net, PerSample, Threat


@dataclass(frozen=True, eq=False)
class Attacked:
    """Images under attack, one row each: x (B, ...), labels, the class to reach or None, the identity that noise hangs on.

    x is in the precision that the attack computes in; the network is shown images of `dtype`, those within `threat`.
    """

    x: Images
    y: Labels
    target: Labels | None
    indices: Indices
    threat: Threat
    dtype: torch.dtype

    def __getitem__(self, rows: Tensor) -> "Attacked":
        target = None if self.target is None else self.target[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], target=target, indices=self.indices[rows.cpu()])

    def shown(self, point: Images) -> Images:
        """The image of a point that the network is given, (B, ...) of `dtype`."""
        return point if point.dtype == self.dtype else representable(self.threat, point, self.x, self.dtype)


def in_parts(x: Images, y: Labels, threat: Threat, indices: Indices, batch_size: int) -> list[Attacked]:
    """`Attacked` of a few rows each, copies of what the user gave in a precision that can represent the ball."""
    work = x.detach().to(working_precision(threat, x), copy=True)
    return [
        Attacked(x_part, y_part, None, part, threat, x.dtype)
        for x_part, y_part, part in split(batch_size, work, y.clone(), indices)
    ]


@dataclass(frozen=True, eq=False)
class Look:
    """What one evaluation tells, a row for each image: misclassified, the loss, how far it is broken, and the loss's gradient.

    The image is what the network was shown, the values of the point's dtype: what has succeeded is this one, not the point.
    The score is the loss, or the margin where there is a target: losses towards different targets do not compare.
    """

    wrong: Flags
    loss: PerSample
    score: PerSample
    gradient: Any  # None where it was not asked for
    image: Images


Looking = Callable[..., Look]  # (point, images, differentiate=True)
Climb = Callable[..., tuple[Images, PerSample, Flags]]  # (look, point, images, safe) -> (point, score, fallen)


def look(net: Net, objective: Objective, point: Images, images: Attacked, differentiate: bool = True) -> Look:
    """Evaluate a net at `point`, (B, ...) near images.x: a forward pass and, where asked for, a backward one."""
    with torch.set_grad_enabled(differentiate):
        image = images.shown(point.detach()).detach().requires_grad_(differentiate)
        own = net(image.clone(), **told(net, images.indices))
        check_logits(own, images.y)
        logits = own.to(point.dtype)  # those of a network under autocast are less precise
        loss = objective(logits, images.y, images.target)
    gradient = None
    if differentiate:
        gradient = input_gradient(loss, image, own, logits)
        if gradient is None:
            raise InputError(
                "the logits do not depend on the images as far as autograd can see: nothing to attack along; "
                "square and noise need no gradient"
            )
    logits, loss = logits.detach(), loss.detach()
    wrong = logits.argmax(1) != images.y
    if gradient is not None:
        gradient = _usable(gradient, wrong).to(point.dtype)
    return Look(
        wrong, loss, loss if images.target is None else margin(logits, images.y), gradient, image.detach().to(point.dtype)
    )


def _usable(gradient: Images, wrong: Flags) -> Images:
    """The gradient; 0 where it is none for an image that has fallen, which needs no more. InputError where one stands."""
    found = torch.isfinite(gradient).flatten(1).all(1)
    if bool(found.all()):
        return gradient
    if not bool((found | wrong).all()):
        raise InputError("the gradient of the loss holds NaN or Inf")
    return gradient.masked_fill(~rows(found, gradient), 0.0)


def ascend(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    climb: Climb,
    loss: str,
    *,
    restarts: int = 1,
    targets: int | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 512,
) -> Images:
    """Run `climb` on all images from each start and towards each target, until an image falls.

    Args:
        net, x, y, threat, loss, restarts, targets, random_start, generator, indices, batch_size: As for `pgd`.
        climb: (look, point, images, safe) -> (point, score, fallen): the best of one run from `point` within the ball `safe`,
            given look(point, images, differentiate) -> `Look`.

    Returns:
        Images like x: of each the point where it fell, else that of the highest score.
    """
    x = check_images(x, y)
    check_threat(threat)
    for name, value in (("restarts", restarts), ("batch_size", batch_size), ("targets", 1 if targets is None else targets)):
        check_count(name, value)
    indices, runs = identities(indices, x), (restarts if random_start else 1) * (targets or 1)
    starts = seeds(generator, runs) if random_start else [None] * runs
    climb = partial(climb, partial(look, net, objective_named(loss)))
    with attacking(net):
        found = [_runs(net, part, threat, climb, starts, targets) for part in in_parts(x, y, threat, indices, batch_size)]
        return torch.cat(found).to(x.dtype)


def _runs(
    net: Net, images: Attacked, threat: Threat, climb: Climb, starts: Sequence[int | None], targets: int | None
) -> Images:
    safe, best, highest = shrunk(threat, images.x), images.x.clone(), torch.full_like(images.x.flatten(1)[:, 0], -torch.inf)
    alive = torch.arange(len(best), device=best.device)
    classes = None if targets is None else _classes(net, images, targets)
    for run, base in enumerate(starts):
        if not len(alive):
            break
        rest = replace(images, target=None if classes is None else classes[:, run % (targets or 1)])[alive]
        point = rest.x if base is None else confine(rest.x + start(threat, rest, base), rest.x, safe)
        point, score, fallen = climb(point, rest, safe)
        better = fallen | (score > highest[alive])
        best[alive[better]], highest[alive[better]] = point[better], score[better]
        alive = alive[~fallen]
    return best


@torch.no_grad()
def _classes(net: Net, images: Attacked, targets: int) -> Tensor:
    logits = net(images.shown(images.x).clone(), **told(net, images.indices))
    check_logits(logits, images.y)
    return likeliest_wrong(logits, images.y, targets)


def start(threat: Threat, images: Attacked, base: int) -> Images:
    """A perturbation for each image, (B, ...), uniform in the ball."""
    x = images.x
    return torch.stack(
        [threat.random_start(x.shape[1:], generator, x.dtype) for generator in generators(images.indices, base)]
    ).to(x.device)
