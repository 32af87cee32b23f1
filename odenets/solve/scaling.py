"""Norms that neither under- nor overflow: squares leave the range of a dtype long before the numbers do.

Scaling by a power of two is exact: where nothing left the range, a result is the same bit for bit.
"""

import torch
from torch import Tensor

from odenets.solve.device import is_accelerator
from odenets.types import PerSample, Rows, State


def power_of_two(v: State) -> Tensor:
    """(B, 1) the power of two at or below the largest entry of each sample of v, (B, ...); 1 where that is 0 or not finite."""
    size = largest(v.detach().flatten(1))
    mantissa, _ = torch.frexp(size)  # in [1/2, 1), so that the quotient below is a power of two and exact
    return torch.nan_to_num(size / (2 * mantissa), nan=1.0)  # 0 / 0 and inf / inf too


def largest(v: Rows) -> Tensor:
    """(B, 1) the largest modulus in each row; 0 where a row has no entries."""
    if not v.shape[1]:
        return torch.zeros(len(v), 1, dtype=v.real.dtype, device=v.device)
    if v.is_complex() or is_accelerator(v.device):
        return torch.linalg.vector_norm(v, torch.inf, dim=1, keepdim=True)
    return torch.maximum(v.amax(1, keepdim=True), -v.amin(1, keepdim=True))  # on a CPU that norm takes 15 times as long


def scaled_norm(v: State) -> PerSample:
    """(B,) 2-norm of each sample, (B, ...), whatever its magnitude."""
    unit, v = power_of_two(v), v.flatten(1)
    return torch.linalg.vector_norm(v / unit, dim=1) * unit[:, 0]


def safe_to_square(norm: Tensor, v: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """(rows,) bool: whether an iteration that starts with residuals v of these norms may square them, and what it leaves
    of them down to `floor`; or has nothing to do, for they are zero."""
    info = torch.finfo(norm.dtype)
    low, high = info.tiny**0.25, info.max**0.25
    inside = ((norm > low) | (floor > low)) & (norm < high)
    return inside | ((norm == 0) & (v.detach() == 0).all(1))


def relative(norm: Tensor, scale: Tensor) -> Tensor:
    """norm / scale, which may be zero."""
    return norm / scale.clamp_min(torch.finfo(scale.dtype).tiny)
