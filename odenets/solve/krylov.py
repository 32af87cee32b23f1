"""Batched linear algebra for implicit steps: matrix-free Jacobian products and GMRES, each row a system of its own."""

from typing import NamedTuple

import torch

from odenets.errors import InputError
from odenets.solve.scaling import power_of_two
from odenets.solve.transforms import anywhere, everywhere, over_maps


class Solution(NamedTuple):
    """Outcome of a batched solve, per sample."""

    value: torch.Tensor  # (B, ...), the best iterate
    converged: torch.Tensor  # (B,) bool
    residual: torch.Tensor  # (B,) norm of the residual, relative to the scale of the solve
    iterations: torch.Tensor  # (B,) evaluations of the residual after the first
    evaluations: float  # evaluations that were computed, the mean over the samples
    backward: bool = False  # whether it belongs to a gradient
    start: int = 0  # index of the first sample, where a batch is solved in pieces
    scale: torch.Tensor | None = None  # (B,) what a nonlinear solve's residual is relative to

    def over_maps(self):
        """The same figures without wrappers of torch.func, the worst of each sample over what vmap maps over."""
        return self._replace(
            converged=over_maps(self.converged, torch.all),
            residual=over_maps(self.residual, torch.amax),
            iterations=over_maps(self.iterations, torch.amax),
        )


def check_settings(tol, max_iterations, on_failure):
    """ValueError for settings of a solve that are out of range."""
    if not 0 < tol < float("inf"):
        raise InputError(f"tol must be positive and finite, got {tol}")
    if max_iterations < 1:
        raise InputError(f"max_iterations must be at least 1, got {max_iterations}")
    if on_failure not in ("record", "raise"):
        raise InputError(f"on_failure must be record or raise, got {on_failure!r}")


def as_rows(v):
    """(B, ...) as (B, N), a state (B,) too."""
    return v.flatten(1) if v.dim() > 1 else v[:, None]


def row_norm(v):
    """2-norm of each row."""
    # One norm for each sample: a norm over the batch would let one image change its neighbour's output.
    return torch.linalg.vector_norm(v, dim=1)


def row_dot(u, v):
    """<u, v> of each row, as a column that multiplies rows; conjugate-linear in u."""
    return torch.linalg.vecdot(u, v)[:, None]


def jacobian_products(function, z):
    """The maps v -> J v and w -> J^T w for J the Jacobian of `function` at z; J^H w where complex.

    J v is the pullback of the (linear) pullback: it needs no forward-mode rules, which decompose GroupNorm into many small
    kernels, and works inside a level of dual numbers, where torch.func.jvp does not.
    """
    _, pullback = torch.func.vjp(function, z)
    _, pushforward = torch.func.vjp(lambda w: pullback(w)[0], torch.zeros_like(z))
    return lambda v: pushforward(v)[0], lambda w: pullback(w)[0]


def gmres(apply, b, tol, max_iterations, memory=30, stop="sample"):
    """Solve apply(x) = b for each row, minimising the residual over the Krylov space; restarted every `memory` vectors.

    Directions are residuals while those shrink, else images: the adaptive simpler GMRES, which never breaks down before the
    solution and gives the residual without a least-squares problem.

    Args:
        apply: Linear map (B, N) -> (B, N), each row on its own.
        b: Right-hand side, (B, N).
        tol: Relative residual per row.
        max_iterations: Cap on products.
        memory: Directions kept before a restart; 2 * memory vectors are stored.
        stop: "sample": a row rests once its own residual is small; "batch": all go on until the norm over all rows is
            small, and count as converged then.

    Returns:
        A `Solution` with value (B, N); differentiable.

    Source: Saad & Schultz (1986); Jiranek & Rozloznik (2010), Numer. Algorithms 53.
    """
    tiny = torch.finfo(b.dtype).tiny
    # Each row in its own units, so that the result is linear in b even where the squares of its entries would underflow.
    unit = b.detach().abs().amax(1, keepdim=True) if b.shape[1] else row_norm(b)[:, None]
    unit = torch.where((unit > 0) & torch.isfinite(unit), unit, 1)
    b = b / unit
    scale = row_norm(b.detach())
    x, r, norm = torch.zeros_like(b), b, scale
    iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    weight = None
    if stop == "batch":  # the rows in units of the largest, whose squares do not underflow
        weight = torch.where(scale > 0, unit[:, 0], 0)
        weight = weight / weight.amax().clamp_min(tiny)

    def unsolved(norm):
        alone = ~(norm <= tol * scale)  # NaN is unsolved, and never converges
        if weight is None:
            return alone
        together = row_norm((norm * weight)[None]) <= tol * row_norm((scale * weight)[None])
        return (norm != 0) & ~together

    active, directions, images, products = unsolved(norm) & (norm != 0), [], [], 0
    p = r / norm.clamp_min(tiny)[:, None]
    while products < max_iterations and anywhere(active):
        q = apply(p)
        products += 1
        for p_j, q_j in zip(directions, images):
            a = row_dot(q_j, q)
            p, q = torch.addcmul(p, p_j, -a), torch.addcmul(q, q_j, -a)
        length = row_norm(q).clamp_min(tiny)[:, None]
        p, q = p / length, q / length
        a = torch.where(active[:, None], row_dot(q, r), 0)
        x, r = torch.addcmul(x, p, a), torch.addcmul(r, q, -a)
        previous, norm = norm, row_norm(r.detach())
        iterations = iterations + active
        active = active & unsolved(norm)
        if len(images) + 1 == memory:
            directions, images, shrinking = [], [], torch.ones_like(active)
        else:
            directions, images, shrinking = [*directions, p], [*images, q], norm < 0.9 * previous
        p = r / norm.clamp_min(tiny)[:, None]
        if not everywhere(shrinking):
            p = torch.where(shrinking[:, None], p, q)
    return Solution(x * unit, ~unsolved(norm), norm / scale.clamp_min(tiny), iterations, float(products), backward=True)


def phi1(apply, b, tol, max_iterations):
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
    b = b / unit
    beta = torch.linalg.vector_norm(b, dim=1, keepdim=True)
    eps = torch.finfo(b.dtype).eps
    tol = max(tol, 4 * eps)
    basis, columns = [b / torch.where(beta == 0, 1, beta)], []
    value, estimate, active = torch.zeros_like(b), torch.ones_like(beta[:, 0]), beta[:, 0] != 0
    estimate, iterations = torch.where(active, estimate, 0), torch.zeros(len(b), dtype=torch.int64, device=b.device)
    while len(columns) < max_iterations and anywhere(active):
        w = apply(basis[-1])
        scale = row_norm(w)[:, None]
        column = []
        for v in basis:
            column.append(row_dot(v, w))
            w = torch.addcmul(w, v, -column[-1])
        for index, v in enumerate(basis):  # once more: Gram-Schmidt loses what it subtracts from
            again = row_dot(v, w)
            column[index] = column[index] + again
            w = torch.addcmul(w, v, -again)
        length = row_norm(w)[:, None]
        fresh = length > 10 * eps * scale  # otherwise the space is invariant, and the approximation exact
        length = torch.where(fresh, length, 0)
        basis.append(torch.where(fresh, w / torch.where(fresh, length, 1), 0))
        columns.append([*column, length.to(w.dtype)])
        m = len(columns)
        zero = torch.zeros_like(column[0])
        entries = [[c[i] if i < len(c) else zero for c in columns] + [zero + (i == 0)] for i in range(m)]
        rows = [torch.cat(row, 1) for row in entries]
        augmented = torch.stack([*rows, torch.zeros_like(rows[0])], 1)  # (H e_1; 0 0)
        weights = Exponential.apply(augmented)[:, :m, m]
        estimate = torch.where(active, (length[:, 0] * weights[:, -1].abs()).detach(), estimate)
        iterations = iterations + active
        approximation = beta * torch.einsum("bm,mbn->bn", weights, torch.stack(basis[:m]))
        value = torch.where(active[:, None], approximation, value)
        active = active & (estimate > tol)
    return Solution(value * unit, estimate <= tol, estimate, iterations, float(len(columns)))


class Exponential(torch.autograd.Function):
    """exp(A) of matrices (B, m, m), with a derivative that is linear in what it is applied to.

    torch's own takes the exponential of (A E; 0 A) as it stands: where E is much larger than A, as the cotangents of a state
    of norm 1e6 are, the scaling that suits E leaves few digits of A (in float32 a gradient 14 % off).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A):
        """exp(A)."""
        return torch.linalg.matrix_exp(A)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep A."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, G):
        """The adjoint of the derivative."""
        return _derivative_of_exponential(ctx.saved_tensors[0].mH, G)

    @staticmethod
    def jvp(ctx, T):
        """The derivative in the direction T."""
        return _derivative_of_exponential(ctx.saved_tensors[0], T)


def _derivative_of_exponential(A, E):
    unit = power_of_two(E.flatten(1))[:, :, None]
    block = torch.cat([torch.cat([A, E / unit], 2), torch.cat([torch.zeros_like(A), A], 2)], 1)
    return Exponential.apply(block)[:, : len(A[0]), len(A[0]) :] * unit
