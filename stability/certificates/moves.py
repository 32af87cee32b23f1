"""The steps of a stage, one at a time: computed, their residuals measured anew, and bounded.

An equation is solved in float64 to an absolute tolerance tau, and its residual computed once more at what the solver returned:
nobody's statistics are believed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from stability.methods.contraction import Inexact, contraction, inexact

ITERATIONS = 1000  # of a solve; what is not solved by then is abstained from
COEFFICIENTS = 16  # roundings, beyond those of a sum, within which the coefficients of a tableau are what its source says
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
    """A step of one Runge-Kutta scheme on one field. What is computed are the slopes V_k = h f(Y_k) of the stages Y = y + A V.

    residual: the constant by which the residuals of its equations, all of them stacked, enter; 0 where it solves none. inexact:
    the other constants of its tableau.
    """

    field: Field
    scheme: Scheme
    tableau: Tableau
    h: float
    p: float
    factor: float
    residual: float
    constants: Constants
    inexact: Inexact

    @property
    def solves(self) -> bool:
        """Whether it has an equation to solve."""
        return self.tableau.implicit

    @property
    def _blocks(self) -> list[np.ndarray]:
        """Of A, those that are solved for."""
        found = [self.tableau.A[i:j, i:j] for i, j in self.tableau.blocks]
        return [block for block in found if block.any()]

    def __call__(self, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """(the new states, (B,) norm of the residuals of their equations)."""
        if not self.solves:
            return self.scheme.step(self.field, 0.0, y, self.h), torch.zeros(len(y), dtype=y.dtype, device=y.device)
        A, V, left = self.tableau.A, y.new_empty(len(y), 0, *y.shape[1:]), list[Tensor]()
        first = len(A) - len(self.inexact.weights)
        goal = tau / 2 / math.sqrt(len(self._blocks))  # half: the residual that counts is the one computed afterwards
        for i, j in self.tableau.blocks:
            block = A[i:j, i:j]
            if not block.any():  # in front, where the stage is the state
                V = torch.cat([V, self._slopes(y[:, None])], 1)
                continue
            increments = self._increments(y[:, None] + _sums(A[i:j, :i], V), block, i - first, goal)
            V = torch.cat([V, _sums(np.linalg.inv(block), increments)], 1)
            left.append(_sums(block, V[:, i:j] - self._slopes(y[:, None] + _sums(A[i:j, :j], V))))
        residual = torch.linalg.vector_norm(torch.cat(left, 1).flatten(1), self.p, dim=1)
        return y + _sums(self.tableau.b[None], V)[:, 0], residual * (1 + 1e-9)

    def _slopes(self, stages: Tensor) -> Tensor:
        """h f of stages (B, count, ...)."""
        return self.h * torch.stack([self.field(0.0, stage) for stage in stages.unbind(1)], 1)

    def _increments(self, base: Tensor, block: np.ndarray, place: int, goal: float) -> Tensor:
        """Z = h B f(base + Z), (B, count, ...), to residuals of `goal`; nobody believes them."""
        if len(block) > 1:
            # W = D^1/2 Z, in the equation D^1/2 B^-1 Z = h D^1/2 f(base + Z), which is monotone.
            d = np.array(self.inexact.weights[place : place + len(block)])
            matrix, back, scale = d[:, None] * np.linalg.inv(block) / d, np.diag(1 / d), np.diag(d)

            def coupled(w: Tensor, base: Tensor) -> Tensor:
                return _sums(matrix, w) - _sums(scale, self._slopes(base + _sums(back, w)))

            floor = goal / float(np.linalg.norm(block / d, 2))
            return _sums(back, Semismooth(1e-300, ITERATIONS)(coupled, torch.zeros_like(base), (base,), floor=floor).value)
        a, base = float(block[0, 0]) * self.h, base[:, 0]
        if type(self.field) is Skew:
            return solve_skew(lambda v: a * self.field(0.0, v), base, None, 0.0, ITERATIONS, None, goal).value[:, None]

        def equation(increment: Tensor, base: Tensor) -> Tensor:
            return increment - a * self.field(0.0, base + increment)

        convex = type(self.field) is GradientFlow
        solver = ConvexNewton(1e-300, ITERATIONS) if convex else Semismooth(1e-300, ITERATIONS, p=self.p)
        return solver(equation, torch.zeros_like(base), (base,), floor=goal).value[:, None]

    def bounds(self, norm: float, tau: float) -> Bounds:
        """For states with ||y||_p <= norm and residuals of at most tau; see `Bounds`. `residual_rounding` is included."""
        if not self.solves:
            reached, rounding = self._explicit(norm)
            return Bounds(self.factor, min(reached, self.factor * norm + self._explicit(0.0)[0]) + rounding, rounding)
        slope, evaluation = self._stage(norm, tau)
        front = gamma(self.constants.operations + 2) * self.h * (self.constants.magnitude * norm + self.constants.offset)
        update = gamma(self.tableau.stages + COEFFICIENTS) * (norm + float(np.abs(self.tableau.b).sum()) * slope)
        rounding = self.residual * evaluation + self.inexact.end_slope * front + update
        longest = self.factor * norm + self.inexact.end_zero * self.h * self.constants.offset + self.residual * tau
        return Bounds(self.factor, longest + rounding, rounding)

    def least_tau(self, norm: float) -> float:
        """The residual that rounding alone can make."""
        return 4 * self._stage(norm, 0.0)[1] if self.solves else 0.0

    def _stage(self, norm: float, tau: float) -> tuple[float, float]:
        """Bounds of the slopes h f(Y_k), and of the rounding of the residuals of all stages."""
        c, k, blocks = self.constants, self.inexact, self._blocks
        front, zero = self.h * (c.magnitude * norm + c.offset), self.h * c.offset
        longest = max(norm, k.start * norm + k.slope * front + k.zero * zero + k.stage * tau)
        inverse = max(float(np.linalg.norm(np.linalg.inv(block), 2)) for block in blocks)
        slope = self.h * (c.magnitude * longest + c.offset) + inverse * tau
        row = float(np.abs(self.tableau.A).sum(1).max())
        argument = gamma(self.tableau.stages + COEFFICIENTS) * (norm + row * slope)  # a stage is rounded before f sees it
        one = gamma(c.operations + 8) * slope + self.h * c.lipschitz * argument
        several = math.sqrt(len(k.weights)) * max(float(np.linalg.norm(block, 2)) for block in blocks)
        return slope, 2 * several * one  # twice: for the products of roundings

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


def _sums(matrix: np.ndarray, vectors: Tensor) -> Tensor:
    """(B, rows, ...): the rows of a matrix times vectors (B, columns, ...)."""
    return torch.einsum("kl,bl...->bk...", torch.tensor(matrix).to(vectors), vectors)


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
    if scheme.tableau is None:
        raise InputError(
            f"{scheme}: certificates cover Runge-Kutta methods, whose stages have residuals, and splittings into such: the "
            "remainder of an exponential is not bounded. Take implicit_midpoint for skew fields"
        )
    if residual == math.inf:
        lack = (
            "no diagonal D is found with which D A^-1 + A^-T D is positive definite"
            if p == 2
            else "that is proven for one implicit stage alone"
        )
        raise InputError(
            f"{scheme}: no constant is known by which residuals of its stages enter in this norm, for {lack}: take "
            "implicit_euler, or in L2 implicit_midpoint, norsett3, gauss4, radau3 or splitting"
        )
    return Move(field, scheme, scheme.tableau, h, p, factor, residual, field.constants(p, shape), inexact(scheme.tableau))
