"""What a convolution can do at most."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from odenets.nets.gram import grid_bound
from odenets.types import Scalar

FREQUENCIES = 16  # for each axis, where the symbol of a convolution is sampled


def operator_bound(
    weight: Float[Tensor, "outputs inputs height width"], groups: int = 1, size: tuple[int, int] | None = None
) -> Scalar:
    """Upper bound of ||K||_2 of a zero-padded convolution with stride 1; a 0-dim tensor in float64.

    On images of whatever size: zero-padding makes K a compression of the convolution on the infinite grid, whose norm is the
    largest ||k(w)||_2 over the frequencies w of its symbol. u^T k(w) v is a trigonometric polynomial of degree d = (size - 1)/2
    along each axis; it is sampled at N points, and between them it exceeds the samples by at most 1/cos(pi d/N).

    Args:
        weight: (outputs, inputs / groups, height, width).
        size: Height and width of the images, where the bound shall be for these alone: then within 1 % of the norm, by
            `grid_bound`, as long as the images are small.

    Source: Sedghi, Gupta, Long (2019), The singular values of convolutional layers, for the symbol; M. Riesz's lemma, a
    polynomial with maximum M at 0 is at least M cos(d x) for |x| <= pi/d, for the factor.
    """
    if size is not None:
        return torch.tensor(grid_bound(weight, size, groups), dtype=torch.float64, device=weight.device)
    outputs, inputs, *sizes = weight.shape
    waves, slack = [], 1.0
    for taps in sizes:
        count = 1 if taps == 1 else max(FREQUENCIES, 4 * taps)
        angles = 2 * math.pi / count * torch.outer(torch.arange(count), torch.arange(taps))
        waves.append(torch.polar(torch.ones_like(angles), angles).to(weight.device, torch.complex128))
        slack /= math.cos(math.pi * (taps - 1) / 2 / count)
    kernels = weight.detach().view(groups, outputs // groups, inputs, *sizes).to(waves[0].dtype)
    # Real weights: the symbol at -w is the conjugate of that at w.
    symbol = torch.einsum("goikl,fk,hl->gfhoi", kernels, waves[0][: len(waves[0]) // 2 + 1], waves[1])
    # Enlarged by more than the rounding of the symbol and of its norms.
    return (1 + 1e-10) * slack * torch.linalg.matrix_norm(symbol, 2).max()
