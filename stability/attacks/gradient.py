"""Gradient attacks on classifiers of images in [0, 1]. What they broke, the judge decides (see judge.py).

Networks are plain callables x -> logits. A module is put into eval mode meanwhile and every submodule's mode is
restored; parameters receive no gradients. Outer no_grad or inference_mode make no difference.

An attack computes in float32 at least, the network in whatever it likes: images in bfloat16 or float16 are attacked in float32,
and each time the network is shown an image of their own dtype that lies in the ball around the one given. That very image is
what is judged and returned.
"""

from collections.abc import Callable
from functools import partial
from numbers import Real

import torch

from stability.attacks.ascent import Attacked, Looking, ascend, in_parts, look
from stability.attacks.images import attacking, check_count, check_images, identities, indexed
from stability.attacks.losses import objective_named
from stability.attacks.threats import check_threat, confine, rows, shrunk
from stability.errors import InputError
from stability.types import Flags, Images, Indices, Labels, Net, PerSample, Threat

KEEP = ("best", "last")
Stepping = Callable[[Images, Images, Images], tuple[Images, Images]]  # (point, gradient, direction) -> (next point, direction)


@indexed
def fgsm(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    loss: str = "cross_entropy",
    batch_size: int = 512,
    indices: Indices | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Images:
    """One step of the whole budget along the steepest ascent of the loss (Goodfellow 2015).

    Arguments as for `pgd`; it draws nothing from `generator`.
    """
    x = check_images(x, y)
    check_threat(threat)
    check_count("batch_size", batch_size)
    objective, parts = objective_named(loss), []
    with attacking(net):
        for images in in_parts(x, y, threat, identities(indices, x), batch_size):
            gradient = look(net, objective, images.x, images).gradient
            point = images.x + threat.epsilon * threat.steepest(gradient)
            parts.append(images.shown(confine(point, images.x, shrunk(threat, images.x))))
        return torch.cat(parts)


@indexed
def pgd(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    steps: int = 20,
    step_size: float | None = None,
    loss: str = "cross_entropy",
    *,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 512,
    momentum: float = 0.0,
    targets: int | None = None,
    keep: str = "best",
) -> Images:
    """Projected gradient ascent on the loss, images that have fallen leaving the batch.

    Args:
        net: x -> logits (B, classes). One that says so by `takes_indices = True` is told the `indices` of what it sees:
            `odenets.WarmStart(net)` starts its solves at the step before, image by image.
        x: Images (B, ...) in [0, 1]; beyond by rounding, up to 1e-6, they are clipped, and the ball is
            round the clipped image.
        y: Labels (B,), whole numbers from 0 to classes - 1.
        threat: `Linf` or `L2`.
        steps: Gradient steps for each restart.
        step_size: Size of a step, in the norm of the threat; by default 2.5 * epsilon / steps.
        loss: "cross_entropy"; "margin", the largest wrong logit minus the right one, which never saturates; "dlr", which
            does not depend on the scale of the logits either; or "plain_cross_entropy", whose gradient vanishes where
            the softmax saturates (see losses.py).
        restarts: Runs; an image goes through them until one succeeds.
        random_start: Start uniformly in the ball rather than at the image. Without it one restart is all there is.
        generator: Draws one number for each run; by default a new generator with seed 0.
        indices: (B,) whole numbers, the identity of each image, by default its position. Its noise depends on the
            generator and on this alone, not on its batch-mates, the chunking or the device.
        batch_size: Images attacked at once.
        momentum: Share of the direction so far that a step keeps, gradients scaled to unit 1-norm before (Dong 2018).
        targets: Number of wrong classes, the likeliest at the image first, that each restart is run towards one after
            the other; None to move away from the right class wherever that leads.
        keep: "best"; or "last", the last iterate of one untargeted run whatever became of it, no image leaving: what
            adversarial training and the plain PGD of other libraries take.

    Returns:
        Images like x, within the ball and within [0, 1]: of each the first misclassified iterate, else the one of
        highest loss (with targets: of highest margin among the last ones tried), start and end included.

    Raises:
        ValueError: Images outside [0, 1], labels out of range, an argument out of range, NaN in the logits, more
            targets than wrong classes.

    Source: Madry et al. (2018), ICLR; momentum: Dong et al. (2018), CVPR.
    """
    check_count("steps", steps)
    check_threat(threat)
    step_size = 2.5 * threat.epsilon / steps if step_size is None else step_size
    for name, value in (("step_size", step_size), ("momentum", momentum)):
        if not (isinstance(value, Real) and 0 <= value < float("inf")):
            raise InputError(f"{name} must be finite and not negative, got {value!r}")
    if keep not in KEEP:
        raise InputError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    if keep == "last" and (restarts != 1 or targets is not None):
        raise InputError(f"keep='last' goes with one untargeted run, got {restarts} restarts and targets {targets}")
    climb = partial(_last if keep == "last" else _walk, step=partial(_step, threat, step_size, momentum), steps=steps)
    return ascend(
        net,
        x,
        y,
        threat,
        climb,
        loss,
        restarts=restarts,
        targets=targets,
        random_start=random_start,
        generator=generator,
        indices=indices,
        batch_size=batch_size,
    )


def _step(
    threat: Threat, step_size: float, momentum: float, point: Images, gradient: Images, direction: Images
) -> tuple[Images, Images]:
    """(the next point, the direction it was taken along)."""
    if momentum:
        size = gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        gradient = momentum * direction + gradient / rows(size, gradient)
    return point + step_size * threat.steepest(gradient), gradient


def _walk(
    look: Looking, point: Images, images: Attacked, safe: Threat, step: Stepping, steps: int
) -> tuple[Images, PerSample, Flags]:
    best, highest = point.clone(), torch.full_like(point.flatten(1)[:, 0], -torch.inf)
    fallen, alive = torch.zeros_like(images.y, dtype=torch.bool), torch.arange(len(point), device=point.device)
    direction = torch.zeros_like(point)
    for count in range(steps + 1):
        now = look(point, images, count < steps)
        better = now.wrong | (now.score > highest[alive])
        best[alive[better]], highest[alive[better]], fallen[alive] = now.image[better], now.score[better], now.wrong
        gradient = now.gradient
        if bool(now.wrong.any()):
            # Fallen images need no more work: this is where most of the time is saved.
            kept = ~now.wrong
            alive, point, images, direction = alive[kept], point[kept], images[kept], direction[kept]
            gradient = None if gradient is None else gradient[kept]
            if not len(alive):
                break
        if count < steps:
            point, direction = step(point, gradient, direction)
            point = confine(point, images.x, safe)
    return best, highest, fallen


def _last(
    look: Looking, point: Images, images: Attacked, safe: Threat, step: Stepping, steps: int
) -> tuple[Images, PerSample, Flags]:
    direction = torch.zeros_like(point)
    for _ in range(steps):
        point, direction = step(point, look(point, images).gradient, direction)
        point = confine(point, images.x, safe)
    shown = images.shown(point).to(point.dtype)
    return shown, torch.zeros_like(point.flatten(1)[:, 0]), torch.zeros_like(images.y, dtype=torch.bool)
