"""phi_1 of a linear operator applied to vectors, by the Krylov process, and the exponential that it needs."""

from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn import functional as F

from odenets.solve.krylov import Krylov, hold
from odenets.solve.scaling import power_of_two
from odenets.solve.solution import Solution
from odenets.solve.transforms import anywhere
from odenets.types import Product, Rows

Matrices = Inexact[Tensor, "batch n n"]


def phi1(apply: Product, b: Rows, tol: float, max_iterations: int) -> Solution:
    """phi_1(A) b for each row, phi_1(z) = (e^z - 1) / z, by Arnoldi; each row ends with the dimension it needed.

    Args:
        apply: Linear map v -> A v, (B, N) -> (B, N), each row on its own.
        b: (B, N).
        tol: Relative error estimate per row, |h_{m+1,m} e_m^T phi_1(H_m) e_1|; not below 4 rounding units.
        max_iterations: Cap on the Krylov dimension.

    Returns:
        A `Solution` with value (B, N) and the estimate as its residual; differentiable.

    Source: Saad (1992), SIAM J. Numer. Anal. 29, section 5.2; phi_1 from the exponential of an augmented matrix, ibid. (10).
    """
    unit = power_of_two(b)
    tol = max(tol, 4 * torch.finfo(b.dtype).eps)
    krylov = Krylov(apply, b / unit, max_iterations, proceed=hold, again=True, in_place=False)
    beta = krylov.length[:, None]
    value, active = torch.zeros_like(b), beta[:, 0] != 0
    estimate, iterations = active.to(beta.dtype), torch.zeros(len(b), dtype=torch.int64, device=b.device)
    while krylov.m < max_iterations and anywhere(active):
        krylov.step()
        m, H = krylov.m, krylov.hessenberg()
        first = F.pad(torch.ones_like(H[:, :1, :1]), (0, 0, 0, m - 1))
        augmented = F.pad(torch.cat([H[:, :m], first], 2), (0, 0, 0, 1))  # (H e_1; 0 0)
        weights = Exponential.apply(augmented)[:, :m, m]
        estimate = torch.where(active, (H[:, m, m - 1].abs() * weights[:, -1].abs()).detach(), estimate)
        iterations = iterations + active
        approximation = beta * (weights[:, None] @ krylov.basis(m))[:, 0]
        value = torch.where(active[:, None], approximation, value)
        active = active & (estimate > tol)
    return Solution(value * unit, estimate <= tol, estimate, iterations, float(krylov.m))


class Exponential(torch.autograd.Function):
    """exp(A) of matrices (B, m, m), with a derivative that is linear in what it is applied to.

    torch's own takes the exponential of (A E; 0 A) as it stands: where E is much larger than A, as the cotangents of a state
    of norm 1e6 are, the scaling that suits E leaves few digits of A (in float32 a gradient 14 % off).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Matrices) -> Matrices:
        """exp(A)."""
        return torch.linalg.matrix_exp(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep A."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, G: Matrices) -> Matrices:
        """The adjoint of the derivative."""
        return _derivative_of_exponential(ctx.saved_tensors[0].mH, G)

    @staticmethod
    def jvp(ctx: Any, T: Matrices) -> Matrices:
        """The derivative in the direction T."""
        return _derivative_of_exponential(ctx.saved_tensors[0], T)


def _derivative_of_exponential(A: Matrices, E: Matrices) -> Matrices:
    unit = power_of_two(E.flatten(1))[:, :, None]
    block = torch.cat([torch.cat([A, E / unit], 2), torch.cat([torch.zeros_like(A), A], 2)], 1)
    return Exponential.apply(block)[:, : len(A[0]), len(A[0]) :] * unit
