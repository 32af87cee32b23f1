"""What a device means for an iteration: whether the host may look at values as it pleases."""

import math

import torch

LOOK_EVERY = 7  # iterations before the first look on an accelerator, and at most between two


def is_accelerator(device: torch.device) -> bool:
    """Whether the device works through a queue beside the host: every kernel costs its launch, and a value that the host looks
    at costs the emptying of the queue."""
    return device.type != "cpu"


def look_every(device: torch.device) -> int:
    """Iterations between two looks at convergence, at most."""
    return LOOK_EVERY if is_accelerator(device) else 1


def next_look(every: int, done: int, first: torch.Tensor, now: torch.Tensor, target: torch.Tensor) -> int:
    """Iterations until the slowest row will have converged, if it goes on as it did so far; from 1 to `every`.

    Args:
        every: As `look_every` says.
        done: Iterations so far.
        first, now, target: (rows,) norms of the residual on the host, of the rows unsolved.
    """
    if every == 1 or not len(now):
        return 1
    expected = float((done * (now / target).log() / (first / now).log()).max())  # NaN and Inf where nothing was won
    return min(every, max(1, math.ceil(expected))) if 0 < expected < every else every


def upload(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor of the host on the device of `like`, without waiting for its queue."""
    return tensor.to(like.device, non_blocking=True)
