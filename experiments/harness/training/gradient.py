"""Training along another gradient than the exact one: looser than the steps (`backward_tol`, `backward_stop`), or detached as
in the paper's code (`train_gradient`); and how far off it is."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from stability.masking.subject import configured

GRADIENTS = ("exact", "detached")
EXACT = 1e-6  # tolerance of what the gradient is compared with


def is_approximate(net: nn.Module) -> bool:
    """Whether a stage's backward solve is looser than its steps, or leaves their correction out."""
    return any(
        stage.scheme.approximate_gradient or stage.gradient == "detached" and "detached" in stage.scheme.gradients
        for stage in odenets.stages(net).values()
    )


@contextmanager
def exact_backward(net: nn.Module) -> Iterator[None]:
    """Within the context backward solves are as tight as the steps, sample by sample: an attack needs them so."""
    if not is_approximate(net):
        yield
        return
    with odenets.tightened(net, math.inf, 1):
        yield


def gradient_cosine(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Cosine of the parameter gradient of the cross-entropy that training follows to the one solved to 1e-6, on one batch."""
    followed = _gradient(net, x, y)
    with configured(net, gradient="exact"), odenets.tightened(net, EXACT):
        exact = _gradient(net, x, y)
    return float(F.cosine_similarity(followed, exact, dim=0))


def _gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    gradients = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])
