"""The steps of a stage, one at a time: computed, their residuals measured anew, and bounded.

An equation is solved in float64 to an absolute tolerance tau, and its residual computed once more at what the solver returned:
nobody's statistics are believed.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenets.nets.monotone import Constants, GradientFlow, Shape, Skew
from odenets.nets.stage import ODEStage
from odenets.schemes import Scheme
from odenets.schemes.tableau import Tableau
from odenets.solve.semismooth import ConvexNewton, Semismooth
from odenets.solve.skew import solve_skew
from odenets.types import Field
from stability.errors import InputError
from stability.methods.contraction import contraction

ITERATIONS = 1000  # of a solve; what is not solved by then is abstained from
UNIT = torch.finfo(torch.float64).eps


def gamma(n: float) -> float:
    """gamma_n, how far a sum of n products is off, relative to the sum of the moduli; for twice the unit of rounding."""
    return n * UNIT / (1 - n * UNIT)


@dataclass(frozen=True)
class Bounds:
    """factor: Lipschitz constant of the exact map. norm: of what it returns, at most. rounding: how far what is computed lies
    from the exact map, equations apart. deployed: how far equations with residuals of tau move it."""

    factor: float
    norm: float
    rounding: float
    deployed: float = 0.0


@dataclass(frozen=True)
class Move:
    """A step of one scheme on one field: explicit, or with one implicit stage.

    residual: the constant by which the residual of its equation enters; 0 where it solves none.
    """

    field: Field
    scheme: Scheme
    tableau: Tableau
    h: float
    p: float
    factor: float
    residual: float
    constants: Constants

    @property
    def solves(self) -> bool:
        """Whether it has an equation to solve."""
        return self.residual > 0

    def __call__(self, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """(the new states, (B,) norm of the residual of their equations)."""
        if not self.solves:
            return self.scheme.step(self.field, 0.0, y, self.h), torch.zeros(len(y), dtype=y.dtype, device=y.device)
        weight = float(self.tableau.A[0, 0])
        if type(self.field) is Skew:
            return self._turned(y, weight * self.h, weight, tau)

        def equation(increment: Tensor, base: Tensor) -> Tensor:
            return increment - weight * self.h * self.field(0.0, base + increment)

        symmetric = type(self.field) is GradientFlow
        solver = (ConvexNewton if symmetric else Semismooth)(1e-300, ITERATIONS)
        if not symmetric and self.p == math.inf:
            solver = Semismooth(1e-300, ITERATIONS, p=math.inf)
        # Half of tau: the residual that counts is the one that is computed afterwards.
        increment = solver(equation, torch.zeros_like(y), (y,), floor=tau / 2).value
        residual = torch.linalg.vector_norm(equation(increment, y).flatten(1), self.p, dim=1)
        return y + increment / weight, residual * (1 + 1e-9)

    def _turned(self, y: Tensor, a: float, weight: float, tau: float) -> tuple[Tensor, Tensor]:
        """As `__call__` on a skew field S, whose equation d = a S (y + d) is linear."""

        def turn(v: Tensor) -> Tensor:
            return a * self.field(0.0, v)

        # Half of tau: the residual that counts is the one that is computed afterwards.
        increment = solve_skew(turn, y, None, 0.0, ITERATIONS, None, tau / 2).value
        residual = torch.linalg.vector_norm((turn(y + increment) - increment).flatten(1), dim=1)
        return y + increment / weight, residual * (1 + 1e-9)

    def bounds(self, norm: float, tau: float) -> Bounds:
        """For states with ||y||_p <= norm and residuals of at most tau; see `Bounds`. `residual_rounding` is included."""
        offset = self.h * self.constants.offset
        if self.solves:
            longest, slope, evaluation = self._stage(norm, tau)
            weight = float(self.tableau.A[0, 0])
            update = gamma(4) * (norm + (longest + norm) / weight)
            return Bounds(self.factor, self.factor * norm + offset + self.residual * tau, self.residual * evaluation + update)
        reached, rounding = self._explicit(norm)
        return Bounds(self.factor, min(reached, self.factor * norm + self._explicit(0.0)[0]) + rounding, rounding)

    def least_tau(self, norm: float) -> float:
        """The residual that rounding alone can make."""
        return 4 * self._stage(norm, 0.0)[2] if self.solves else 0.0

    def _stage(self, norm: float, tau: float) -> tuple[float, float, float]:
        """Bounds of an implicit stage, of its slope, and of the rounding of its residual.

        The exact stage is a resolvent J of y, and ||J(y)|| <= ||y|| + ||J(0)|| <= ||y|| + a h ||f(0)||.
        """
        constants, weighted = self.constants, float(self.tableau.A[0, 0]) * self.h
        longest = norm + weighted * constants.offset + tau
        slope = constants.magnitude * longest + constants.offset
        argument = constants.lipschitz * UNIT * longest  # base + increment is rounded before f sees it
        evaluation = weighted * (gamma(constants.operations) * slope + argument) + gamma(4) * (
            longest + norm + weighted * slope
        )
        return longest, slope, evaluation

    def _explicit(self, norm: float) -> tuple[float, float]:
        """(bound of the new state, bound of its rounding), stage by stage."""
        tableau, constants = self.tableau, self.constants
        slopes: list[float] = []
        errors: list[float] = []
        for row in [*tableau.A, tableau.b]:
            terms = [(self.h * abs(float(a)), slope, error) for a, slope, error in zip(row, slopes, errors)]
            longest = norm + sum(weight * slope for weight, slope, _ in terms)
            error = sum(weight * error for weight, _, error in terms) + gamma(tableau.stages + 4) * longest
            slopes.append(constants.magnitude * longest + constants.offset)
            errors.append(gamma(constants.operations) * slopes[-1] + constants.lipschitz * error)
        return longest, 2 * error  # twice: for the products of roundings


def moves(stage: ODEStage, shape: Shape, p: float) -> tuple[Move, ...]:
    """The moves of a stage on states of one shape.

    Raises:
        ValueError: A step is not proven to contract, or inexact solutions of its equations are not covered.
    """
    found = []
    field: Any  # `contraction` says what it lacks
    for field in stage.fields:
        for _ in range(stage.substeps):
            composed = stage.scheme.moves or ((0, stage.scheme, 1.0),)
            for part, scheme, share in composed:
                if stage.scheme.moves and not hasattr(field, "parts"):
                    contraction(stage.scheme, field, stage.step_size, shape)  # says what is missing
                mover = field.parts[part] if stage.scheme.moves else field
                found.append(_move(mover, scheme, share * stage.step_size, shape, p))
    return tuple(found)


def _move(field: Any, scheme: Scheme, h: float, shape: Shape, p: float) -> Move:
    proof = contraction(scheme, field, h, shape)
    factor, residual = (proof.factor, proof.residual) if p == 2 else (proof.factor_inf, proof.residual_inf)
    if factor == math.inf:
        raise InputError(f"{scheme} with h = {h:g} on {type(field).__name__} is not proven in this norm, only {proof.reason}")
    if scheme.tableau is None or (scheme.implicit and scheme.tableau.stages > 1):
        raise InputError(
            f"{scheme}: certificates cover explicit steps and equations of one stage, whose rounding is bounded: "
            "take implicit_euler, implicit_midpoint or splitting"
        )
    return Move(field, scheme, scheme.tableau, h, p, factor, residual, field.constants(p, shape))
