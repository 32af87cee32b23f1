"""Batched solvers for residual(z) = 0, each sample on its own.

A solver is a frozen configuration. Calling it runs one shared driver (stopping, dropping converged samples, best iterate,
statistics) around the method's own rule for the next step, a generator. All of them expect residuals of the form
z - g(z), whose Jacobian is not far from the identity, and start from a plain fixed-point step.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch

from odenets.errors import InputError, Unsolved
from odenets.solve.krylov import Solution, check_settings, gmres, jacobian_products, row_dot, row_norm
from odenets.solve.precision import check_precision
from odenets.solve.scaling import power_of_two, relative, safe_to_square
from odenets.solve.transforms import bare, everywhere, mapping, over_maps


class Iterate(NamedTuple):
    """What a method is told after each step; `keep` names the rows that go on (None: all of them)."""

    z: torch.Tensor  # (rows, N)
    r: torch.Tensor  # (rows, N), the residual at z
    residual: object  # (rows, N) -> (rows, N), the function itself for these rows
    keep: torch.Tensor | None


@dataclass(frozen=True)
class Solver(ABC):
    """Settings that all methods share.

    Args:
        tol: A sample has converged when ||residual|| <= tol * scale (+ floor), in the 2-norm.
        max_iterations: Cap on the evaluations after the first.
        on_failure: "record" returns the best iterate and says so; "raise" raises RuntimeError.
        fixed: Make exactly `max_iterations` iterations for all samples, without a branch that depends on data: for
            torch.compile and CUDA graphs. Convergence is reported all the same.
    """

    tol: float = 1e-3
    max_iterations: int = 40
    on_failure: str = "record"
    fixed: bool = False

    def __post_init__(self):
        check_settings(self.tol, self.max_iterations, self.on_failure)
        if self.fixed and self.on_failure == "raise":
            raise InputError("on_failure=raise looks at the residual, which fixed=true must not")

    @abstractmethod
    def steps(self, iterate):
        """Generator: yields the next step (rows, N), is sent the `Iterate` that it led to."""

    def __call__(self, residual, guess, samples=(), scale=None, floor=0.0):
        """Solve residual(z, *samples) = 0.

        Args:
            residual: (rows, ...), and tensors of that many rows -> (rows, ...); called for the samples still unsolved.
            guess: Starting point, (B, ...).
            samples: Tensors (B, ...) that belong to the samples and are passed on to `residual` row by row.
            scale: (B,) what the residual is relative to; by default its norm at `guess`.
            floor: (B,) or float: rounding error, below which no residual can be pushed.

        Returns:
            A `Solution`, differentiable through the iterations where gradients are enabled.

        Raises:
            ValueError: The residual at `guess` is not finite or has another shape.
            RuntimeError: `on_failure` is "raise" and a sample did not converge.
        """
        check_precision(guess, type(self).__name__)
        batch = len(guess)
        z = guess.flatten(1) if guess.dim() > 1 else guess[:, None]
        units = ()  # of the rows, where their squares would leave the range of the dtype

        def flat(z):
            r = residual((z * units[0] if units else z).view(len(z), *guess.shape[1:]), *samples)
            if r.shape[1:] != guess.shape[1:]:
                raise InputError(f"the residual has shape {tuple(r.shape)} at a state of shape {tuple(guess.shape)}")
            return r.reshape(z.shape) / units[0] if units else r.reshape(z.shape)

        r = flat(z)
        mapped = mapping()  # torch.func.vmap hides axes: what differs along them cannot choose which rows go on
        differentiable = r.requires_grad or mapped  # somebody wants the derivative of the iteration itself
        norm = row_norm(r.detach())
        sound = safe_to_square(norm, r, floor)
        if not self.fixed and not everywhere(sound):  # the whole equation in units of its first residual: r(u z) / u
            units = (power_of_two(r),)
            z, r, floor = z / units[0], r / units[0], floor / units[0][:, 0]
            norm, scale = row_norm(r.detach()), None if scale is None else scale / units[0][:, 0]
            if not everywhere(torch.isfinite(norm)):
                raise InputError(
                    "the field is not finite at the start of an implicit step: NaN or Inf in the weights or the input"
                )
        scale, whole = norm if scale is None else scale, units
        target = self.tol * scale + floor
        best_z, best, active = z, norm, norm > target
        value, final = z, norm  # of all samples; rows leave the iteration by being written here
        iterations = torch.zeros(batch, dtype=torch.int64, device=z.device)
        rows, evaluations = torch.arange(batch, device=z.device), 1.0
        method = self.steps(Iterate(z, r, flat, None))
        step = next(method)
        if self.fixed:
            for n in range(1, self.max_iterations + 1):
                z = z + step
                r = flat(z)
                norm = row_norm(r.detach())
                better = norm < best
                best_z, best = torch.where(better[:, None], z, best_z), torch.where(better, norm, best)
                if n < self.max_iterations:
                    step = method.send(Iterate(z, r, flat, None))
            # Without a branch that depends on data there is no change of units: what may leave the range is not converged.
            return Solution(
                best_z.view(guess.shape),
                (best <= target) & sound,
                relative(best, scale),
                torch.full_like(iterations, self.max_iterations),
                1.0 + self.max_iterations,
                scale=scale,
            )

        for n in range(1, self.max_iterations + 1):
            alive = len(active) * float(bare(active).double().mean()) if mapped else int(active.sum())
            if alive == 0:
                break
            keep = None
            if alive < len(active) and not differentiable:
                value, final = value.index_copy(0, rows, best_z), final.index_copy(0, rows, best)
                keep = active.nonzero()[:, 0]
                z, step, best_z, best, target, rows = _select(keep, z, step, best_z, best, target, rows)
                samples, units = _select(keep, *samples), _select(keep, *units)
                active = active[keep]
            elif alive < len(active):
                step = torch.where(active[:, None], step, 0)  # freeze in place: autograd needs the shapes to stay
            z = z + step
            r = flat(z)
            evaluations += len(z) / batch
            norm = row_norm(r.detach())
            better = active & (norm < best)
            if everywhere(better):
                best_z, best = z, norm
            else:
                best_z, best = torch.where(better[:, None], z, best_z), torch.where(better, norm, best)
            if mapped:
                iterations = torch.where(active, n, iterations)
            else:
                iterations[rows[active]] = n
            active = active & ~(norm <= target)
            if n < self.max_iterations:
                step = method.send(Iterate(z, r, flat, keep))

        value, final = (best_z, best) if mapped else (value.index_copy(0, rows, best_z), final.index_copy(0, rows, best))
        converged = final <= self.tol * scale + floor
        if self.on_failure == "raise" and not everywhere(converged):
            raise Unsolved(failure_sentence(converged, relative(final, scale), self))
        residual, value = relative(final, scale), value * whole[0] if whole else value
        scale = scale * whole[0][:, 0] if whole else scale
        return Solution(value.view(guess.shape), converged, residual, iterations, evaluations, scale=scale)


def failure_sentence(converged, residual, solver):
    """One sentence that names the samples that failed, their worst residual and what to try."""
    converged, residual = over_maps(converged, torch.all), over_maps(residual, torch.amax)
    failed = (~converged).nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
    return (
        f"{len(failed)} of {len(converged)} samples did not reach tol={solver.tol:g} in {solver.max_iterations} iterations "
        f"(samples {shown}; worst relative residual {residual.max():.2g}): raise max_iterations, take more substeps, or "
        f"use another solver"
    )


def _select(keep, *tensors):
    return tuple(tensor.index_select(0, keep) for tensor in tensors)


@dataclass(frozen=True)
class FixedPoint(Solver):
    """z <- z - damping * residual(z); converges where the eigenvalues of the Jacobian lie within 1/damping of it."""

    damping: float = 1.0

    def steps(self, iterate):
        """See `Solver.steps`."""
        while True:
            iterate = yield -self.damping * iterate.r


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration of the fixed-point iteration (type II): least squares over the last `memory` differences.

    Source: Walker & Ni (2011), SIAM J. Numer. Anal. 49.
    """

    memory: int = 5

    def steps(self, iterate):
        """See `Solver.steps`."""
        r, step, differences = iterate.r, -iterate.r, []
        while True:
            iterate = yield step
            if iterate.keep is not None:
                r, step = _select(iterate.keep, r, step)
                differences = [_select(iterate.keep, *pair) for pair in differences]
            differences = [*differences, (step, iterate.r - r)][-self.memory :]
            r = iterate.r
            dz, dr = (torch.stack(vectors, 1) for vectors in zip(*differences))
            # Columns scaled to norm 1, then a ridge at rounding level: dr loses rank as the iteration converges.
            size = torch.linalg.vector_norm(dr, dim=2, keepdim=True).clamp_min(torch.finfo(dr.dtype).tiny)
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

    def steps(self, iterate):
        """See `Solver.steps`."""
        steps, squares = [-iterate.r], [row_dot(iterate.r, iterate.r)]
        while True:
            iterate = yield steps[-1]
            if iterate.keep is not None:
                steps, squares = list(_select(iterate.keep, *steps)), list(_select(iterate.keep, *squares))
            # w = -H r with H = prod_j (I + s_{j+1} s_j^T / |s_j|^2); the new step closes the product implicitly.
            w = -iterate.r
            for s, square, following in zip(steps, squares, steps[1:]):
                w = torch.addcmul(w, following, row_dot(s, w) / square)
            gain = 1 - row_dot(steps[-1], w) / squares[-1]
            if len(steps) >= self.memory:
                steps, squares, gain = [], [], torch.ones_like(gain)
                w = -iterate.r
            # A nearly singular update would throw the iterate far away; the sign is kept, the length bounded.
            gain = torch.where(gain.abs() < 0.1, torch.where(gain.real < 0, -0.1, 0.1).to(gain), gain)
            steps.append(w / gain)
            squares.append(row_dot(steps[-1], steps[-1]))


@dataclass(frozen=True)
class NewtonKrylov(Solver):
    """Newton's method, its linear systems by GMRES; robust, but each of its iterations hides up to `krylov` products.

    Source: Knoll & Keyes (2004); forcing term 0.1 after Eisenstat & Walker (1996).
    """

    forcing: float = 0.1
    krylov: int = 20

    def steps(self, iterate):
        """See `Solver.steps`."""
        while True:
            product, _ = jacobian_products(iterate.residual, iterate.z)
            iterate = yield gmres(product, -iterate.r, self.forcing, self.krylov).value


SOLVERS = {"broyden": Broyden, "anderson": Anderson, "fixed_point": FixedPoint, "newton": NewtonKrylov}
