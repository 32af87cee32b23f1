"""Gradient attacks on classifiers of images in [0, 1]. What they broke, the judge decides (see judge.py).

Networks are plain callables x -> logits. A module is put into eval mode meanwhile and every submodule's mode is
restored; parameters receive no gradients. Outer no_grad or inference_mode make no difference.
"""
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn


def fgsm(net, x, y, threat, loss="cross_entropy", batch_size=512):
    """One step of the whole budget along the steepest ascent of the loss (Goodfellow 2015). Arguments as for `pgd`."""
    check_images(x, y)
    objective, safe, parts = objective_named(loss), shrunk(threat, x), []
    with _attacking(net):
        for x_part, y_part in _split(batch_size, x.detach().clone(), y.clone()):
            _, _, gradient = _evaluate(net, x_part, y_part, objective, True)
            parts.append(confine(x_part + threat.epsilon * threat.steepest(gradient), x_part, safe))
        return torch.cat(parts)


def pgd(net, x, y, threat, steps=20, step_size=None, loss="cross_entropy", restarts=1, random_start=True,
        generator=None, indices=None, batch_size=512):
    """Projected gradient ascent on the loss, images that have fallen leaving the batch.

    Args:
        net: x -> logits (B, classes).
        x: Images (B, ...) in [0, 1].
        y: Labels (B,), whole numbers from 0 to classes - 1.
        threat: `Linf` or `L2`.
        steps: Gradient steps for each restart.
        step_size: Size of a step, in the norm of the threat; by default 2.5 * epsilon / steps.
        loss: "cross_entropy", or "margin": the largest wrong logit minus the right one, which never saturates.
        restarts: Runs; an image goes through them until one succeeds.
        random_start: Start uniformly in the ball rather than at the image. Without it one restart is all there is.
        generator: Draws one number for each restart; by default a new generator with seed 0.
        indices: (B,) whole numbers, the identity of each image, by default its position. Its noise depends on the
            generator and on this alone, not on its batch-mates, the chunking or the device.
        batch_size: Images attacked at once.

    Returns:
        Images like x, within the ball and within [0, 1]: of each the first misclassified iterate, else the one of
        highest loss, start and end included.

    Raises:
        ValueError: Images outside [0, 1], labels out of range, an argument out of range, NaN in the logits.

    Source: Madry et al. (2018), ICLR.
    """
    check_images(x, y)
    for name, value in (("steps", steps), ("restarts", restarts), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    step_size = 2.5 * threat.epsilon / steps if step_size is None else step_size
    if not 0 <= step_size < float("inf"):
        raise ValueError(f"step_size must be finite and not negative, got {step_size}")
    indices = torch.arange(len(x)) if indices is None else torch.as_tensor(indices).cpu()
    if indices.shape != (len(x),):
        raise ValueError(f"indices must be one for each of the {len(x)} images, got shape {tuple(indices.shape)}")
    objective = objective_named(loss)
    bases = _seeds(generator, restarts if random_start else 1)
    with _attacking(net):
        return torch.cat([_ascend(net, *part, threat, steps, step_size, objective, bases, random_start)
                          for part in _split(batch_size, x.detach().clone(), y.clone(), indices)])


def _ascend(net, x, y, indices, threat, steps, step_size, objective, bases, random_start):
    safe, best, highest = shrunk(threat, x), x.clone(), x.new_full((len(x),), -torch.inf)
    alive = torch.arange(len(x), device=x.device)
    for base in bases:
        if not len(alive):
            break
        rows, centre, labels = alive, x[alive], y[alive]
        point = centre
        if random_start:
            point = confine(centre + _noise(threat, centre, indices[rows.cpu()], base), centre, safe)
        for step in range(steps + 1):
            wrong, value, gradient = _evaluate(net, point, labels, objective, step < steps)
            better = wrong | (value > highest[rows])
            best[rows[better]], highest[rows[better]] = point[better], value[better]
            if bool(wrong.any()):
                # Fallen images need no more work: this is where most of the time is saved.
                kept = ~wrong
                rows, centre, labels, point = rows[kept], centre[kept], labels[kept], point[kept]
                gradient = gradient[kept] if gradient is not None else None
                if not len(rows):
                    break
            if step < steps:
                point = confine(point + step_size * threat.steepest(gradient), centre, safe)
        alive = rows
    return best


def _split(size, *tensors):
    return zip(*(tensor.split(size) for tensor in tensors))


def _evaluate(net, x, y, objective, differentiate):
    """Misclassified (B,), loss (B,) and, where asked for, its gradient: one forward pass, one backward to the input."""
    with torch.set_grad_enabled(differentiate):
        point = x.detach().requires_grad_(differentiate)
        logits = net(point)
        check_logits(logits, y)
        value = objective(logits, y)
    if not differentiate:
        gradient = None
    elif value.requires_grad:
        gradient = torch.autograd.grad(value.sum(), point)[0]
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError("the gradient of the loss holds NaN or Inf")
    else:
        raise ValueError("the logits do not depend on the images as far as autograd can see: nothing to attack along")
    return logits.detach().argmax(1) != y, value.detach(), gradient


def objective_named(name):
    """The loss (logits, y) -> (B,) that a name stands for."""
    losses = {"cross_entropy": partial(nn.functional.cross_entropy, reduction="none"), "margin": _margin}
    if name not in losses:
        raise ValueError(f"unknown loss {name!r}; choose from {', '.join(losses)}")
    return losses[name]


def _margin(logits, y):
    right = logits.gather(1, y[:, None])
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right[:, 0]


def shrunk(threat, x):
    """The threat, smaller by the rounding of x + delta and of the projection: what is projected stays in the ball."""
    unit = torch.finfo(x.dtype).eps
    rounding = unit * float(threat.size(torch.ones_like(x[:1])))
    return replace(threat, epsilon=max(0.0, threat.epsilon * (1 - 4 * unit) - rounding))


def confine(point, centre, safe):
    """`point` projected into the (shrunk) ball around `centre`, then into [0, 1], which brings it only nearer."""
    return (centre + safe.project(point - centre)).clamp(0, 1)


def _seeds(generator, count):
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randint(2**32, (count,), generator=generator, device=generator.device).tolist()


def _noise(threat, x, indices, base):
    """A perturbation for each image, from a generator of its own on the host, so that devices agree."""
    generator = torch.Generator()
    # The host's generator takes 32 bits of its seed; an odd factor keeps different images apart.
    starts = [threat.random_start(x.shape[1:], generator.manual_seed((base + 0x9E3779B1 * index) % 2**32), x.dtype)
              for index in indices.tolist()]
    return torch.stack(starts).to(x.device)


@contextmanager
def evaluating(net):
    """Within the context a module and its submodules are in eval mode; afterwards each is in the mode it was in."""
    modes = {module: module.training for module in net.modules()} if isinstance(net, nn.Module) else {}
    try:
        if modes:
            net.eval()
        yield net
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _attacking(net):
    with evaluating(net), torch.inference_mode(False), torch.enable_grad():
        yield


def check_images(x, y):
    """Refuse what is no batch of images in [0, 1] with its labels."""
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point or x.dim() < 2 or not len(x):
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"images must be a floating-point tensor (B, ...) with B >= 1, got {found}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got [{low:g}, {high:g}]: put the normalisation into the model")
    if not isinstance(y, torch.Tensor) or y.shape != x.shape[:1] or y.dtype != torch.int64 or y.device != x.device:
        raise ValueError(f"labels must be int64, one for each of the {len(x)} images and on their device")


def check_logits(logits, y):
    """Refuse NaN, a wrong shape, and labels that the logits know nothing of."""
    if logits.dim() != 2 or len(logits) != len(y):
        raise ValueError(f"the network must return logits ({len(y)}, classes), got shape {tuple(logits.shape)}")
    if bool(torch.isnan(logits).any()):
        raise ValueError("the logits hold NaN: check the weights")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"labels must lie in 0 to {logits.shape[1] - 1}, theirs reach from {low} to {high}")
