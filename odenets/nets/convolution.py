"""What a convolution can do at most."""

import math

import torch

FREQUENCIES = 16  # for each axis, where the symbol of a convolution is sampled


def operator_bound(weight, groups=1):
    """Upper bound of ||K||_2 of a zero-padded convolution with stride 1, on images of whatever size; a 0-dim tensor.

    Zero-padding makes K a compression of the convolution on the infinite grid, whose norm is the largest ||k(w)||_2 over the
    frequencies w of its symbol. u^T k(w) v is a trigonometric polynomial of degree d = (size - 1)/2 along each axis; it is
    sampled at N points, and between them it exceeds the samples by at most 1/cos(pi d/N).

    Args:
        weight: (outputs, inputs / groups, height, width).

    Source: Sedghi, Gupta, Long (2019), The singular values of convolutional layers, for the symbol; M. Riesz's lemma, a
    polynomial with maximum M at 0 is at least M cos(d x) for |x| <= pi/d, for the factor.
    """
    outputs, inputs, *sizes = weight.shape
    waves, slack = [], 1.0
    for size in sizes:
        count = 1 if size == 1 else max(FREQUENCIES, 4 * size)
        angles = 2 * math.pi / count * torch.outer(torch.arange(count), torch.arange(size))
        waves.append(torch.polar(torch.ones_like(angles), angles).to(weight.device, weight.dtype.to_complex()))
        slack /= math.cos(math.pi * (size - 1) / 2 / count)
    kernels = weight.detach().view(groups, outputs // groups, inputs, *sizes).to(waves[0].dtype)
    # Real weights: the symbol at -w is the conjugate of that at w.
    symbol = torch.einsum("goikl,fk,hl->gfhoi", kernels, waves[0][: len(waves[0]) // 2 + 1], waves[1])
    return slack * torch.linalg.matrix_norm(symbol, 2).max()
