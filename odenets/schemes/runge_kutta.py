"""Runge-Kutta schemes: the one step that serves explicit, diagonal and coupled tableaux alike."""
from dataclasses import dataclass, field

import numpy as np
import torch

from odenets.implicit import root
from odenets.krylov import row_norm
from odenets.schemes.scheme import Scheme, with_backward_of
from odenets.schemes.tableau import Tableau
from odenets.solvers import SOLVERS

# What the spec of any scheme that solves equations may say.
SOLVE_DEFAULTS = {"tol": 1e-3, "max_iterations": 40, "solver": "broyden", "on_failure": "record"}

@dataclass(frozen=True, eq=False)
class RungeKutta(Scheme):
    """A tableau and, where it is implicit, how its stage equations are solved.

    Args:
        tableau: The coefficients.
        family: {name: (value, default)} of the parameters that the tableau was built from.
        tol: Per sample, ||residual|| <= tol * (residual of the predictor Y = y), 2-norm, coupled stages stacked.
        max_iterations: Cap on the evaluations of a solve, forward and backward.
        solver: One of broyden, anderson, fixed_point, newton.
        on_failure: "record" or "raise".
    """

    tableau: Tableau
    family: dict = field(default_factory=dict)
    tol: float = SOLVE_DEFAULTS["tol"]
    max_iterations: int = SOLVE_DEFAULTS["max_iterations"]
    solver: str = SOLVE_DEFAULTS["solver"]
    on_failure: str = SOLVE_DEFAULTS["on_failure"]

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}; choose from {', '.join(SOLVERS)}")
        object.__setattr__(self, "solve", SOLVERS[self.solver](self.tol, self.max_iterations, self.on_failure))

    @property
    def name(self):
        """The tableau's name."""
        return self.tableau.name

    @property
    def order(self):
        """Classical order."""
        return self.tableau.order

    @property
    def source(self):
        """Book or article of the tableau."""
        return self.tableau.source

    @property
    def implicit(self):
        """Whether a step solves an equation."""
        return self.tableau.implicit

    @property
    def iterates(self):
        """A solve evaluates f at moving points."""
        return self.tableau.implicit

    @property
    def stages(self):
        """Number of stages."""
        return self.tableau.stages

    @property
    def evaluations(self):
        """Evaluations of f in a step; None where a solve decides."""
        return None if self.implicit else self.stages

    @property
    def parameters(self):
        """Parameters of the family and, where a step solves an equation, of the solve."""
        solve = {key: (getattr(self, key), default) for key, default in SOLVE_DEFAULTS.items()}
        return {**self.family, **(solve if self.implicit else {})}

    def amplification(self, z):
        """R(z) of the tableau."""
        return self.tableau.amplification(z)

    def step(self, f, t, y, h, gradient="exact", record=None):
        """One step; see `Scheme.step`."""
        if not self.implicit:
            return self._step(f, t, y, h, None)
        if gradient == "exact":
            return self._step(f, t, y, h, lambda *problem: root(*problem, record=record))
        if gradient == "unrolled":
            return self._step(f, t, y, h, lambda *problem: _unrolled(*problem, record=record))
        with torch.no_grad():
            value = self._step(f, t, y, h, lambda *problem: root(*problem, record=record))
        return with_backward_of(y + h * f(t, y), value) if torch.is_grad_enabled() else value

    def _step(self, f, t, y, h, solve):
        """Go through the blocks of A: an explicit stage is evaluated, the stages of an implicit block are solved together.

        The unknowns are the increments Z = h A K of a block over what earlier stages contribute: smaller than the state,
        so rounding is smaller. The slopes then come out as K = (hA)^-1 Z without another evaluation of f, consistent with
        the equations and damped where f is stiff. Source: Hairer & Wanner II (1996), IV.8, equations 8.2 to 8.4.
        """
        A, b, c = self.tableau.A, self.tableau.b, self.tableau.c
        slopes, value = [], y
        for start, stop in self.tableau.blocks:
            bases = [_combine(y, h, A[i, :start], slopes) for i in range(start, stop)]
            block = A[start:stop, start:stop]
            if not block.any():
                value = bases[0]
                slopes.append(f(t + c[start] * h, value))
                continue
            times = [t + float(node) * h for node in c[start:stop]]
            increments = _solve_block(f, times, block, bases, y, h, self.solve, solve)
            value = bases[-1] + increments[-1]
            inverse = np.linalg.inv(block)
            slopes += [_combine(None, 1 / h, row, increments) for row in inverse]
        # Stiffly accurate: the last stage already is the result.
        return value if self.implicit and np.array_equal(A[-1], b) else _combine(y, h, b, slopes)


def _combine(y, h, coefficients, vectors):
    """y + h * sum_i coefficients_i vectors_i, skipping zeros; y may be None for 0."""
    for coefficient, vector in zip(coefficients, vectors):
        if coefficient != 0:
            weight = h * float(coefficient)
            if y is None:
                y = vector * weight
            elif isinstance(weight, float):
                y = torch.add(y, vector, alpha=weight)
            else:
                y = y + weight * vector
    return y


def _solve_block(f, times, block, bases, y, h, solver, solve):
    """Solve Z_i = h sum_j block_ij f(t_j, base_j + Z_j) for the increments of the stages in a block."""
    count, like = len(bases), bases[0]

    def residual(z, *bases):
        parts = [z] if count == 1 else z.unbind(1)
        slopes = [f(time, base + part) for time, base, part in zip(times, bases, parts)]
        rows = [_combine(part, -h, row, slopes) for part, row in zip(parts, block)]
        return rows[0] if count == 1 else torch.stack(rows, 1)

    guess = torch.zeros_like(like if count == 1 else torch.stack(bases, 1))
    # Adding an increment to the state rounds to the state's precision, and f carries that into the residual.
    floor = 4 * torch.finfo(y.dtype).eps * row_norm(y.detach().reshape(len(y), -1))
    z = solve(residual, guess, solver, tuple(bases), None, floor)
    return [z] if count == 1 else list(z.unbind(1))


def _unrolled(residual, guess, solver, samples, scale, floor, record=None):
    """The iteration itself, differentiated by autograd; a check on `root` where the iteration contracts."""
    solution = solver(residual, guess, samples, scale, floor)
    if record is not None:
        record.append(solution._replace(value=None))
    return solution.value
