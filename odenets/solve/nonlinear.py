"""Batched solvers for residual(z) = 0, each sample on its own.

A solver is a frozen configuration. Calling it runs one shared driver around the method's own rule for the next step, a
generator. All of them expect residuals of the form z - g(z), whose Jacobian is not far from the identity, and start from a
plain fixed-point step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odenets.solve.driver import Iterate, Solver, Steps, select
from odenets.solve.krylov import gmres
from odenets.solve.products import jacobian_products
from odenets.solve.rows import row_dot, row_norm
from odenets.solve.semismooth import Semismooth
from odenets.solve.transforms import recording
from odenets.types import Rows


@dataclass(frozen=True)
class FixedPoint(Solver):
    """z <- z - damping * residual(z); converges where the eigenvalues of the Jacobian lie within 1/damping of it."""

    damping: float = 1.0

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        while True:
            iterate = yield -self.damping * iterate.r


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration of the fixed-point iteration (type II): least squares over the last `memory` differences.

    Source: Walker & Ni (2011), SIAM J. Numer. Anal. 49.
    """

    memory: int = 5

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        r, step = iterate.r, -iterate.r
        differences: list[tuple[Tensor, ...]] = []
        while True:
            iterate = yield step
            if iterate.keep is not None:
                r, step = select(iterate.keep, r, step)
                differences = [select(iterate.keep, *pair) for pair in differences]
            differences = [*differences, (step, iterate.r - r)][-self.memory :]
            r = iterate.r
            dz, dr = (torch.stack(vectors, 1) for vectors in zip(*differences))
            # Columns scaled to norm 1, then a ridge at rounding level: dr loses rank as the iteration converges.
            measured = dr
            if recording():  # a norm has no second derivative at 0, where a sample rests
                measured = torch.where((dr == 0).all(2, keepdim=True), 1, dr)
            size = torch.linalg.vector_norm(measured, dim=2, keepdim=True).clamp_min(torch.finfo(dr.dtype).tiny)
            dz, dr = dz / size, dr / size
            gram = dr.conj() @ dr.mT + 10 * torch.finfo(dr.dtype).eps * torch.eye(dr.shape[1], dtype=dr.dtype, device=dr.device)
            weights = torch.linalg.solve_ex(gram, dr.conj() @ r[:, :, None])[0]
            step = -r - ((dz - dr).mT @ weights)[:, :, 0]


@dataclass(frozen=True)
class Broyden(Solver):
    """Good Broyden from the identity; the inverse Jacobian is kept as the steps taken, one vector an iteration.

    Restarts from the identity when `memory` steps are stored: as many as the default cap, since a restart half-way was
    measured to cost hard samples more than it saves. Source: Kelley (1995), Iterative Methods, section 7.3, brsol.
    """

    memory: int = 40

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        return (_two_products if iterate.batched and not iterate.r.is_complex() else _one_by_one)(iterate, self.memory)


def _one_by_one(iterate: Iterate, memory: int) -> Steps:
    """Broyden's steps with the least work: one inner product and one update for each vector kept."""
    steps, squares = [-iterate.r], [_square(iterate.r)]
    while True:
        iterate = yield steps[-1]
        if iterate.keep is not None:
            steps, squares = list(select(iterate.keep, *steps)), list(select(iterate.keep, *squares))
        # w = -H r with H = prod_j (I + s_{j+1} s_j^T / |s_j|^2); the new step closes the product implicitly.
        w = -iterate.r
        for s, square, following in zip(steps, squares, steps[1:]):
            w = torch.addcmul(w, following, row_dot(s, w) / square)
        gain = 1 - row_dot(steps[-1], w) / squares[-1]
        if len(steps) >= memory:
            steps, squares, gain, w = [], [], torch.ones_like(gain), -iterate.r
        steps.append(w * _bounded_inverse(gain))
        squares.append(_square(steps[-1]))


def _two_products(iterate: Iterate, memory: int) -> Steps:
    """The same steps from few operations: with S the steps kept, the coefficients a of w solve a triangular system T a = S r.

    T_ik = <s_i, s_{k+1}> for k < i, and T_ii = -|s_i|^2: the place behind the last step holds its negative meanwhile.
    """
    S, T = _room(iterate.r, (), 8), iterate.r.new_zeros(len(iterate.r), 8, 8)
    torch.neg(iterate.r, out=S[:, 0])
    count = 1
    while True:
        last = S[:, count - 1]
        iterate = yield last
        if iterate.keep is not None:
            S, T = select(iterate.keep, S, T)
            last = S[:, count - 1]
        if count == memory:
            torch.neg(iterate.r, out=S[:, 0])
            count = 1
            continue
        if count + 1 >= S.shape[1]:
            S, T = _room(iterate.r, (S,), 2 * S.shape[1]), F.pad(T, (0, S.shape[1], 0, S.shape[1]))
            last = S[:, count - 1]
        torch.neg(last, out=S[:, count])
        torch.bmm(last[:, None], S[:, 1 : count + 1].mT, out=T[:, count - 1 : count, :count])
        right = iterate.r[:, None] @ S[:, :count].mT
        a = torch.linalg.solve_triangular(T[:, :count, :count], right.mT, upper=False).mT
        w = torch.baddbmm(iterate.r[:, None], a[:, :, :-1], S[:, 1:count], beta=-1)[:, 0] if count > 1 else -iterate.r
        torch.mul(w, _bounded_inverse(1 - a[:, 0, -1:]), out=S[:, count])
        count += 1


def _room(like: Tensor, old: tuple[Tensor, ...], size: int) -> Tensor:
    """(rows, size, N) of memory that begins with what `old` holds."""
    fresh = like.new_empty(len(like), size, like.shape[1])
    for vectors in old:
        fresh[:, : vectors.shape[1]] = vectors
    return fresh


def _square(v: Rows) -> Tensor:
    if not recording():
        return row_norm(v)[:, None] ** 2  # a norm is cheaper, but has no derivative at 0
    square = row_dot(v, v)
    return torch.where(square == 0, 1, square)  # of a sample that rests, whose steps are zero


def _bounded_inverse(gain: Tensor) -> Tensor:
    """1 / gain; a nearly singular update would throw the iterate far away, so the sign is kept, the length bounded."""
    if gain.is_complex() or recording():
        gain = torch.where(gain.abs() < 0.1, torch.where(gain.real < 0, -0.1, 0.1).to(gain), gain)
        return 1 / gain
    return gain.reciprocal().clamp(-10, 10)


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Newton's method, its linear systems by GMRES; robust, but each of its iterations hides up to `krylov` products.

    Source: Knoll & Keyes (2004); forcing term 0.1 after Eisenstat & Walker (1996).
    """

    forcing: float = 0.1
    krylov: int = 20

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        while True:
            product, _ = jacobian_products(iterate.residual, iterate.z)
            iterate = yield gmres(product, -iterate.r, self.forcing, self.krylov).value


SOLVERS = {
    "broyden": Broyden,
    "anderson": Anderson,
    "fixed_point": FixedPoint,
    "newton": NewtonKrylov,
    "semismooth": Semismooth,  # for fields with mu_2 <= 0, where it always arrives
}
