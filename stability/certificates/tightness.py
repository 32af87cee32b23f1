"""How much of a radius is lost on the way: what reaches the image of the gradient of a margin."""

from typing import Any

import torch
from torch import nn

from stability.certificates.links import links
from stability.types import Images, PerSample


def kept_gradient(net: nn.Module, x: Images) -> PerSample:
    """||gradient of g_y - g_j with respect to the image|| / ||w_y - w_j||, y the class and j the runner-up, (B,).

    1 where all layers in front of the head keep the norms of gradients, and never more than their Lipschitz constant: to first
    order the nearest image with another class is 1/kept times as far as the radius in L2 says.

    Args:
        net: As for `certify`, in the precision in which it shall be looked at.
        x: Images (B, C, H, W).

    Raises:
        ValueError: A layer that `certify` refuses, too.

    Source: Li et al. (2019), Preventing gradient attenuation in Lipschitz constrained convolutional networks, NeurIPS.
    """
    _, _, head = links(net)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(x)
        top, other = logits.topk(2, dim=1).indices.unbind(1)
        margins = logits.gather(1, top[:, None]) - logits.gather(1, other[:, None])
        (gradient,) = torch.autograd.grad(margins.sum(), x)
    weight: Any = head.weight
    rows = weight.detach()
    distances = (rows[top] - rows[other]).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return gradient.flatten(1).norm(dim=1) / distances
