"""The root that is connected to the state: continuation in the step size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odenets.errors import InputError, Unsolved
from odenets.solve.driver import Iterate, Solver, Steps, failure_sentence
from odenets.solve.nonlinear import Broyden
from odenets.solve.rows import row_norm
from odenets.solve.solution import Solution
from odenets.types import State


@dataclass(frozen=True)
class Continuation(Solver):
    """Follow the root of z - s g(z) from z = 0 at s = 0 to s = 1, where residual(z) = z - g(z).

    In a step that solves z = h f(y + z), s is the step size as a share of h: the path of roots begins at the state y itself,
    and where it reaches h without turning back, its end is what the scheme's value is. Each stretch of the path is predicted
    along its secant and corrected by Broyden's method; a correction that is not short may have left for another root, and the
    stretch is halved. Where no stretch is short enough the path turns back there (I - s h J is singular), or cannot be told
    from one that does: such a sample has not converged, and its value is the last point of the path.

    Args:
        first, careful, least: Stretches of s: the first, the first of a second attempt where that one was lost, the smallest.
        short: A correction is short up to this share of the distance covered.
        corrections: Cap on the iterations of a correction. `max_iterations` is for the solve at s = 1.
        rough: Tolerance on the way, relative to `scale` and to the stretch.

    Source: Allgower & Georg (2003), Introduction to Numerical Continuation Methods, chapters 2 and 6.
    """

    first: float = 1 / 4
    careful: float = 1 / 64
    least: float = 1 / 512
    short: float = 0.5
    corrections: int = 20
    rough: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fixed:
            raise InputError("solver=continuation chooses its steps by what it finds, which fixed=true must not")

    def steps(self, iterate: Iterate) -> Steps:
        """Those of the corrector."""
        return Broyden(self.tol, self.max_iterations).steps(iterate)

    def __call__(
        self,
        residual: Callable[..., State],
        guess: State,
        samples: Sequence[Tensor] = (),
        scale: Tensor | None = None,
        floor: Tensor | float = 0.0,
    ) -> Solution:
        """See `Solver.__call__`; of `guess` only the shape matters, for the path begins at 0."""

        def path(z: Tensor, s: Tensor, *samples: Tensor) -> Tensor:
            s = _column(s, z)
            return (1 - s) * z + s * residual(z, *samples)

        slope = -residual(torch.zeros_like(guess), *samples)  # dz/ds at s = 0 is g(0)
        if slope.shape != guess.shape:
            raise InputError(f"the residual has shape {tuple(slope.shape)} at a state of shape {tuple(guess.shape)}")
        norm = row_norm(slope.detach().flatten(1))
        if not bool(torch.isfinite(norm).all()):
            raise InputError("the field is not finite at the start of an implicit step: NaN or Inf in the weights or the input")
        scale = norm if scale is None else scale
        floor = torch.as_tensor(floor, dtype=norm.dtype, device=norm.device).expand_as(norm)
        z, s, iterations, spent = self._followed(path, slope, samples, scale, floor, self.first)
        lost = (s < 1).nonzero()[:, 0]
        if len(lost):
            # Once more with small stretches: a long one may have jumped to another path, and that one turns back.
            given = tuple(sample[lost] for sample in samples)
            z[lost], s[lost], count, more = self._followed(path, slope[lost], given, scale[lost], floor[lost], self.careful)
            iterations[lost] += count
            spent += more
        converged, left, residuals = s >= 1, torch.full_like(norm, torch.inf), torch.full_like(norm, torch.inf)
        rows = converged.nonzero()[:, 0]
        if len(rows):
            solver = Broyden(self.tol, self.max_iterations, atol=self.atol)
            found = solver(residual, z[rows], tuple(sample[rows] for sample in samples), scale[rows], floor[rows])
            found = found.on(z.device)
            z[rows], left[rows], converged[rows] = found.value, found.residual, found.converged
            residuals[rows] = found.norm
            iterations[rows] += found.iterations
            spent += found.evaluations * len(rows)
        if self.on_failure == "raise" and not bool(converged.all()):
            raise Unsolved(failure_sentence(converged, left, self))
        return Solution(z, converged, left, iterations, 1 + spent / max(1, len(z)), scale=scale, norm=residuals)

    def _followed(
        self,
        path: Callable[..., Tensor],
        slope: Tensor,
        samples: Sequence[Tensor],
        scale: Tensor,
        floor: Tensor,
        first: float,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Follow the path as far as it goes.

        Args:
            path: H(z, s, *samples) = z - s g(z). slope: g(0), (B, ...). samples, scale, floor: See `Solver.__call__`.
            first: The first stretch.

        Returns:
            (z, s, iterations, evaluations): the last point of each path (B, ...), its place (B,), 1 where it arrived; (B,)
            iterations; evaluations of all samples together.
        """
        z, slope, s, stretch = torch.zeros_like(slope), slope.clone(), torch.zeros_like(scale), torch.full_like(scale, first)
        iterations, evaluations, going = torch.zeros_like(s, dtype=torch.int64), 0.0, torch.ones_like(s, dtype=torch.bool)
        corrector = Broyden(self.rough, self.corrections)
        while bool(going.any()):
            rows = going.nonzero()[:, 0]
            before, following = z[rows], (s[rows] + stretch[rows]).clamp_max(1)
            length = following - s[rows]
            start = before + _column(length, z) * slope[rows]
            given = tuple(sample[rows] for sample in samples)
            found = corrector(path, start, (following, *given), scale[rows] * length, floor[rows]).on(z.device)
            iterations[rows] += found.iterations
            evaluations += found.evaluations * len(rows)
            correction, covered = (_distance(found.value, point) for point in (start, before))
            # A root elsewhere lies as far from the prediction as from where the stretch began.
            good = found.converged & (correction <= self.short * covered + floor[rows])
            kept = rows[good]
            s[kept], z[kept] = following[good], found.value[good]
            slope[kept] = ((found.value - before) / _column(length, z))[good]
            longer = torch.where(correction <= self.short / 4 * covered, 2 * stretch[rows], stretch[rows])
            stretch[rows] = torch.where(good, longer, stretch[rows] / 2)
            going[rows] = (s[rows] < 1) & (stretch[rows] >= self.least)
        return z, s, iterations, evaluations


def _column(v: Tensor, z: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1), to multiply (B, ...)."""
    return v.view(-1, *[1] * (z.dim() - 1))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return row_norm((a - b).detach().flatten(1))
