"""Losses that attacks climb: functions (logits, y, target) -> (B,), larger where y is further from being predicted.

With a target (B,), a wrong class for each image, they grow as the logits move towards that class.
"""
import torch
from torch.nn import functional as F

from stability.errors import InputError


def cross_entropy(logits, y, target=None):
    """Cross-entropy of the right class; minus that of the target. Its gradient fades where the softmax saturates."""
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def margin(logits, y, target=None):
    """The largest wrong logit, or the target's, minus the right one: positive where misclassified; never saturates.

    Source: Carlini & Wagner (2017), the difference in objective f_6, without its softening constant.
    """
    right = logits.gather(1, y[:, None])[:, 0]
    return (_largest_wrong(logits, y) if target is None else logits.gather(1, target[:, None])[:, 0]) - right


def dlr(logits, y, target=None):
    """Difference of logits ratio: the margin over a spread of the logits, which no scaling of the logits changes.

    The spread is that of the largest and the third logit; with a target, of the largest and the mean of the third and the
    fourth, so that it does not vanish where the target is among the first.

    Raises:
        ValueError: Fewer than 3 classes, 4 with a target.

    Source: Croce & Hein (2020), Reliable evaluation of adversarial robustness, equations 6 and 7.
    """
    needed = 3 if target is None else 4
    if logits.shape[1] < needed:
        raise InputError(f"the loss dlr needs {needed} classes{'' if target is None else ' with a target'}, "
                         f"the logits have {logits.shape[1]}; choose margin")
    ordered = logits.topk(needed, dim=1)[0]
    spread = ordered[:, 0] - ordered[:, 2:].mean(1)
    return margin(logits, y, target) / spread.clamp_min(torch.finfo(logits.dtype).tiny ** 0.5)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def objective_named(name):
    """The loss (logits, y, target=None) -> (B,) that a name stands for."""
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name]


def input_gradient(loss, x, logits=None, precise=None):
    """Of the sum of a loss with respect to images; None where autograd sees no way from one to the other.

    Args:
        loss: (B,), or anything that is summed.
        x: The images, a leaf.
        logits, precise: The network's own logits (B, classes) and those that `loss` was computed of, more precise ones. Where
            the network's or the images are float16, which loses gradients below 6e-8 on their way back, each image's gradient
            comes scaled by a positive factor: attacks along a gradient take its direction alone.
    """
    # A way may end at the parameters: logits cut off from the images still require a gradient then.
    if not loss.requires_grad:
        return None
    if logits is None or torch.float16 not in (logits.dtype, x.dtype):
        return torch.autograd.grad(loss.sum(), x, allow_unused=True)[0]
    (slope,) = torch.autograd.grad(loss.sum(), precise, retain_graph=True)
    slope = slope / slope.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    return torch.autograd.grad(logits, x, slope.to(logits.dtype), allow_unused=True)[0]


def likeliest_wrong(logits, y, count):
    """The `count` wrong classes of largest logit, (B, count), the largest first."""
    if not 1 <= count < logits.shape[1]:
        raise InputError(f"targets must lie in 1 to {logits.shape[1] - 1}, the number of wrong classes; got {count}")
    return logits.scatter(1, y[:, None], -torch.inf).topk(count, dim=1)[1]


def _largest_wrong(logits, y):
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)
