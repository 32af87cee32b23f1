"""Losses that attacks climb: functions (logits, y, target) -> (B,), larger where y is further from being predicted.

With a target (B,), a wrong class for each image, they grow as the logits move towards that class. Logits of -inf are classes
that a mask has taken away: losses look at those that are left. Where there is a way up for an image none of them is flat.
"""

from collections.abc import Callable
from math import log
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from stability.errors import InputError
from stability.types import Images, Labels, Logits, PerSample


def cross_entropy(logits: Logits, y: Labels, target: Labels | None = None) -> PerSample:
    """Cross-entropy of the right class; minus that of the target.

    Where 1 - p cannot be told from 0 any more, its logarithm: the log-odds of being wrong. They grow in the same direction and
    lie below every cross-entropy, so that neither an ascent nor a comparison notices, but their gradient is right: that of the
    cross-entropy, p - 1 at the right class, is rounded to 0 there, and soon afterwards everywhere.
    """
    plain = plain_cross_entropy(logits, y, target)
    if target is None:
        with torch.no_grad():
            faint = (_log_odds(logits, y) < log(torch.finfo(logits.dtype).eps)) & (_largest_wrong(logits, y) > -torch.inf)
        if bool(faint.any()):
            plain = plain.index_put((faint,), _log_odds(logits[faint], y[faint]))
    return plain


def plain_cross_entropy(logits: Logits, y: Labels, target: Labels | None = None) -> PerSample:
    """The same as the textbooks have it: its gradient fades, in float32 to 0, where the softmax saturates."""
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def margin(logits: Logits, y: Labels, target: Labels | None = None) -> PerSample:
    """The largest wrong logit, or the target's, minus the right one: positive where misclassified; never saturates.

    Source: Carlini & Wagner (2017), the difference in objective f_6, without its softening constant.
    """
    right = logits.gather(1, y[:, None])[:, 0]
    return (_largest_wrong(logits, y) if target is None else logits.gather(1, target[:, None])[:, 0]) - right


def dlr(logits: Logits, y: Labels, target: Labels | None = None) -> PerSample:
    """Difference of logits ratio: the margin over a spread of the logits, which no scaling of the logits changes.

    The spread is that of the largest and the third logit; with a target, of the largest and the mean of the third and the
    fourth, so that it does not vanish where the target is among the first. Where the ratio tells nothing of an image,
    its margin is its loss instead: where a mask leaves fewer classes, gaps overflow, the first logits tie (0/0), or the second
    and the third do, for the ratio is then -1 wherever the first one moves.

    Raises:
        ValueError: Fewer than 3 classes, 4 with a target.

    Source: Croce & Hein (2020), Reliable evaluation of adversarial robustness, equations 6 and 7.
    """
    needed = 3 if target is None else 4
    if logits.shape[1] < needed:
        raise InputError(
            f"the loss dlr needs {needed} classes{'' if target is None else ' with a target'}, "
            f"the logits have {logits.shape[1]}; choose margin"
        )
    ordered = logits.topk(needed, dim=1)[0]
    spread = ordered[:, 0] - ordered[:, 2:].mean(1)
    gap, unit, least = margin(logits, y, target), torch.finfo(logits.dtype).eps, torch.finfo(logits.dtype).tiny ** 0.5
    tie = 8 * unit * torch.maximum(ordered[:, 0].abs(), ordered[:, -1].abs())  # what rounding leaves of one
    tells = (spread >= least) & (spread <= 1 / least) & ((gap + spread).abs() > tie) & (gap.abs() <= spread / least)
    # Chosen before the division: a NaN there would reach the gradient through `where`.
    return gap / torch.where(tells, spread, 1.0)


Objective = Callable[..., PerSample]  # (logits, y, target=None)
LOSSES: dict[str, Objective] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "plain_cross_entropy": plain_cross_entropy,
}


def objective_named(name: str) -> Objective:
    """The loss (logits, y, target=None) -> (B,) that a name stands for."""
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name]


def input_gradient(loss: Tensor, x: Images, logits: Logits | None = None, precise: Any = None) -> Images | None:
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


def likeliest_wrong(logits: Logits, y: Labels, count: int) -> Int[Tensor, "batch count"]:
    """The `count` wrong classes of largest logit, (B, count), the largest first.

    Where a mask leaves fewer of them, these in turn: nothing leads to a class whose logit is -inf.
    """
    if not 1 <= count < logits.shape[1]:
        raise InputError(f"targets must lie in 1 to {logits.shape[1] - 1}, the number of wrong classes; got {count}")
    ordered, classes = logits.scatter(1, y[:, None], -torch.inf).topk(count, dim=1)
    left = (ordered > -torch.inf).sum(1, keepdim=True).clamp_min(1)
    return classes.gather(1, torch.arange(count, device=logits.device) % left)


def _log_odds(logits: Logits, y: Labels) -> PerSample:
    """Of being wrong: log((1 - p) / p) for the probability p of the right class."""
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


def _largest_wrong(logits: Logits, y: Labels) -> PerSample:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)
