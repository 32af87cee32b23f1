"""What schemes with equations to solve share: settings, the stage equations as a residual, and the choice of gradient."""
from abc import ABC
from dataclasses import dataclass, fields

import torch

from odenets.implicit import root
from odenets.krylov import row_norm
from odenets.schemes.scheme import Scheme, with_backward_of
from odenets.solvers import SOLVERS


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvingScheme(Scheme, ABC):
    """A scheme that may solve nonlinear equations.

    Args:
        tol: Per sample, ||residual|| <= tol * (residual of the predictor Y = y), 2-norm, coupled stages stacked; forward
            and backward.
        max_iterations: Cap on the iterations of a solve, forward and backward.
        solver: One of broyden, anderson, fixed_point, newton.
        on_failure: "record" or "raise".
        fixed: Exactly `max_iterations` iterations, for torch.compile and CUDA graphs.
    """

    tol: float = 1e-3
    max_iterations: int = 40
    solver: str = "broyden"
    on_failure: str = "record"
    fixed: bool = False

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}; choose from {', '.join(SOLVERS)}")
        object.__setattr__(self, "solve", SOLVERS[self.solver](self.tol, self.max_iterations, self.on_failure, self.fixed))

    def state(self, compute, predictor, gradient, record):
        """compute(solve), differentiated as `gradient` says.

        Args:
            compute: Takes solve(residual, guess, samples, floor) -> root and returns the new state.
            predictor: () -> the explicit predictor, whose backward is the detached gradient.
            gradient, record: As in `Scheme.step`.
        """
        def solve(residual, guess, samples, floor):
            return root(residual, guess, self.solve, samples, floor=floor, record=record)

        def iterate(residual, guess, samples, floor):
            solution = self.solve(residual, guess, samples, floor=floor)
            if record is not None:
                record.append(solution._replace(value=None))
            return solution.value

        if gradient != "detached":
            return compute(solve if gradient == "exact" else iterate)
        with torch.no_grad():
            value = compute(solve)
        return with_backward_of(predictor(), value) if torch.is_grad_enabled() else value


SOLVE_DEFAULTS = {field.name: field.default for field in fields(SolvingScheme)}


def combine(y, h, coefficients, vectors):
    """y + h * sum_i coefficients_i vectors_i, skipping zeros; y may be None for 0."""
    for coefficient, vector in zip(coefficients, vectors):
        if coefficient != 0:
            weight = h * coefficient
            if y is None:
                y = vector * weight
            elif isinstance(weight, float):
                y = torch.add(y, vector, alpha=weight)
            else:
                y = y + weight * vector
    return y


def solve_increments(solve, f, times, block, bases, y, h):
    """Increments Z_i = h sum_j block_ij f(t_j, base_j + Z_j) of stages that are solved together.

    Increments are smaller than the state, and so is their rounding. Source: Hairer & Wanner II (1996), equation IV.8.2.

    Args:
        solve: As `SolvingScheme.state` gives it.
        f, y, h: As in `Scheme.step`.
        times: Times of the stages.
        block: (m, m) coefficients.
        bases: m states (B, ...), what is known of each stage.

    Returns:
        A list of m increments (B, ...).
    """
    count = len(bases)

    def residual(z, *bases):
        parts = [z] if count == 1 else z.unbind(1)
        slopes = [f(time, base + part) for time, base, part in zip(times, bases, parts)]
        rows = [combine(part, -h, row, slopes) for part, row in zip(parts, block)]
        return rows[0] if count == 1 else torch.stack(rows, 1)

    guess = torch.zeros_like(bases[0] if count == 1 else torch.stack(bases, 1))
    # Adding an increment to the state rounds to the state's precision, and f carries that into the residual.
    floor = 4 * torch.finfo(y.dtype).eps * row_norm(y.detach().reshape(len(y), -1))
    z = solve(residual, guess, tuple(bases), floor)
    return [z] if count == 1 else list(z.unbind(1))
