"""Runge-Kutta schemes: the one step that serves explicit, diagonal and coupled tableaux alike."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from odenets.schemes.scheme import GRADIENTS, combine, with_backward_of
from odenets.schemes.solving import SOLVE_DEFAULTS, SolvingScheme, joined, solve_stages
from odenets.schemes.tableau import Tableau
from odenets.solve.log import Record
from odenets.solve.precision import solving
from odenets.types import Field, State, Time


@dataclass(frozen=True, eq=False)
class RungeKutta(SolvingScheme):
    """A tableau and, where it is implicit, how its stage equations are solved.

    Args:
        tableau: The coefficients.
        family: {name: (value, default)} of the parameters that the tableau was built from.
    """

    tableau: Tableau
    family: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.tableau.plan, self.tableau.weights  # computed now: torch.compile cannot trace the lock of a cached property

    @property
    def name(self) -> str:
        """The tableau's name."""
        return self.tableau.name

    @property
    def order(self) -> int:
        """Classical order."""
        return self.tableau.order

    @property
    def source(self) -> str:
        """Book or article of the tableau."""
        return self.tableau.source

    @property
    def implicit(self) -> bool:
        """Whether a step solves an equation."""
        return self.tableau.implicit

    @property
    def iterates(self) -> bool:
        """A solve evaluates f at moving points."""
        return self.tableau.implicit

    @property
    def gradients(self) -> tuple[str, ...]:
        """A solve can be differentiated in three ways."""
        return GRADIENTS if self.implicit else ("exact",)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return self.tableau.stages

    @property
    def evaluations(self) -> int | None:
        """Evaluations of f in a step; None where a solve decides."""
        return None if self.implicit else self.stages

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Parameters of the family and, where a step solves an equation, of the solve."""
        solve = {key: (getattr(self, key), default) for key, default in SOLVE_DEFAULTS.items()}
        return {**self.family, **(solve if self.implicit else {})}

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R(z) of the tableau."""
        return self.tableau.amplification(z)

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """One step; see `Scheme.step`."""
        if not self.implicit:
            return self._walk(f, t, y, h, gradient, record)
        with solving(y, self):
            return joined([self._advance(f, t, own, h, gradient, log) for log, own in self.pieces(record, y)])

    def _advance(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        if gradient != "detached":
            return self._walk(f, t, y, h, gradient, record)
        with torch.no_grad():
            value = self._walk(f, t, y, h, "exact", record)
        return with_backward_of(y + h * f(t, y), value)

    def _walk(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        """Go through the blocks of A: an explicit stage is evaluated, the stages of an implicit block are solved together.

        The slopes of a block come out of its increments Z = h A K as K = (hA)^-1 Z without another evaluation of f,
        consistent with the equations and damped where f is stiff. Source: Hairer & Wanner II (1996), IV.8.
        """
        slopes: list[State] = []
        value = y
        for known, A, inverse, c in self.tableau.plan:
            bases = [combine(y, h, row, slopes) for row in known]
            if inverse is None:
                slopes.append(f(t + c[0] * h, bases[0]))
            else:
                stages = solve_stages(self, f, [t + node * h for node in c], A, bases, y, h, gradient, record)
                value = stages[-1]
                if self.tableau.weights is not None or len(slopes) + len(stages) < self.stages:
                    increments = [stage - base for stage, base in zip(stages, bases)]
                    slopes += [combine(None, 1 / h, row, increments) for row in inverse]
        return value if self.tableau.weights is None else combine(y, h, self.tableau.weights, slopes)
