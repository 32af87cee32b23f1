"""Linear multistep schemes: the history of a walk through a stage lives in its stepper, one entry per sample and step.

Each starts up with a one-step scheme, whose error of order h^2 leaves the order of the whole unchanged. Where the fields
change from block to block, the history crosses over: that is what these schemes mean for a residual network.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from odenets.errors import InputError
from odenets.schemes.scheme import GRADIENTS, Scheme, with_backward_of
from odenets.schemes.solving import SolvingScheme, joined, solve_stages
from odenets.solve.log import Record
from odenets.solve.precision import solving
from odenets.types import Field, State, Time


class TwoStep(Scheme, ABC):
    """A two-step scheme: `start` makes the first step, `advance` the others, each returning (new state, new history)."""

    previous = 1
    stages = 1

    @abstractmethod
    def start(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> tuple[State, State]:
        """The first step."""

    @abstractmethod
    def advance(
        self, f: Field, t: Time, y: State, h: Time, history: State, gradient: str, record: Record | None
    ) -> tuple[State, State]:
        """A step from y, given what the step before left."""

    @abstractmethod
    def characteristic(self, z: np.ndarray | complex) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """Coefficients (a, b, c) of a x^2 + b x + c, whose roots are the growth factors on y' = lambda y."""

    def stepper(self) -> Callable[..., State]:
        """See `Scheme.stepper`."""
        history: list[State] = []

        def step(f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
            if history:
                y, history[0] = self.advance(f, t, y, h, history[0], gradient, record)
            else:
                y, first = self.start(f, t, y, h, gradient, record)
                history.append(first)
            return y

        return step

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """A first step: without a history only the start-up runs."""
        return self.start(f, t, y, h, gradient, record)[0]

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """The root of largest modulus of the characteristic polynomial; it tends to the numerical growth per step."""
        a, b, c = np.broadcast_arrays(*(np.asarray(v, dtype=np.complex128) for v in self.characteristic(np.asarray(z))))
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(b * b - 4 * a * c)
            # The sum without cancellation gives the root of larger modulus.
            larger = np.where(np.abs(b + root) >= np.abs(b - root), b + root, b - root)
            return np.where(a == 0, np.inf, -larger / (2 * np.where(a == 0, 1, a)))


@dataclass(frozen=True, eq=False)
class AB2(TwoStep):
    """Adams-Bashforth of two steps: y_{n+1} = y_n + h (3/2 f_n - 1/2 f_{n-1}); starts with explicit Euler."""

    name = "ab2"
    order = 2
    implicit = False
    evaluations = 1
    source = "Hairer, Norsett, Wanner I (1993), section III.1"

    def start(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> tuple[State, State]:
        """Explicit Euler."""
        slope = f(t, y)
        return y + h * slope, slope

    def advance(
        self, f: Field, t: Time, y: State, h: Time, history: State, gradient: str, record: Record | None
    ) -> tuple[State, State]:
        """See the class."""
        slope = f(t, y)
        return y + h * (1.5 * slope - 0.5 * history), slope

    def characteristic(self, z: np.ndarray | complex) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """x^2 - (1 + 3/2 z) x + z/2."""
        return 1, -(1 + 1.5 * z), 0.5 * z


@dataclass(frozen=True, eq=False)
class LMResNet(TwoStep):
    """LM-ResNet with a constant k: y_{n+1} = (1 - k) y_n + k y_{n-1} + h f(t_n, y_n); starts with explicit Euler.

    Its polynomial (x - 1)(x + k) is zero-stable for -1 < k <= 1. The scheme advances time by h / (1 + k) for each step, so
    that it has no order with respect to h.

    Args:
        k: Weight of the state before, -1 < k <= 1.
    """

    k: float = -0.1

    name = "lm_resnet"
    order = None
    implicit = False
    evaluations = 1
    source = "Lu, Zhong, Li, Dong (2018), Beyond Finite Layer Neural Networks"

    def __post_init__(self) -> None:
        if not -1 < self.k <= 1:
            raise InputError(f"lm_resnet: k must lie in (-1, 1], got {self.k}")

    def start(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> tuple[State, State]:
        """Explicit Euler."""
        return y + h * f(t, y), y

    def advance(
        self, f: Field, t: Time, y: State, h: Time, history: State, gradient: str, record: Record | None
    ) -> tuple[State, State]:
        """See the class."""
        return (1 - self.k) * y + self.k * history + h * f(t, y), y

    def characteristic(self, z: np.ndarray | complex) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """x^2 - (1 - k + z) x - k."""
        return 1, -(1 - self.k + z), -self.k


@dataclass(frozen=True, eq=False)
class BDF2(TwoStep, SolvingScheme):
    """Backward differentiation of two steps: y_{n+1} - 4/3 y_n + 1/3 y_{n-1} = 2/3 h f_{n+1}; starts with implicit Euler.

    A- and L-stable, one equation a step. The solve's settings are those of `SolvingScheme`.
    """

    name = "bdf2"
    order = 2
    implicit = True
    iterates = True
    gradients = GRADIENTS
    evaluations = None
    source = "Curtiss & Hirschfelder (1952); Hairer, Norsett, Wanner I (1993), section III.1"

    def start(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> tuple[State, State]:
        """Implicit Euler."""
        return self._solve(f, t, y, y, h, 1.0, gradient, record), y

    def advance(
        self, f: Field, t: Time, y: State, h: Time, history: State, gradient: str, record: Record | None
    ) -> tuple[State, State]:
        """See the class."""
        return self._solve(f, t, y, (4 * y - history) / 3, h, 2 / 3, gradient, record), y

    def _solve(
        self, f: Field, t: Time, y: State, base: State, h: Time, weight: float, gradient: str, record: Record | None
    ) -> State:
        def solved(log: Record | None, y: State, base: State) -> State:
            if gradient != "detached":
                return solve_stages(self, f, [t + h], [[weight]], [base], y, h, gradient, log)[0]
            with torch.no_grad():
                (value,) = solve_stages(self, f, [t + h], [[weight]], [base], y, h, "exact", log)
            return with_backward_of(base + weight * h * f(t, y), value)

        with solving(y, self):
            return joined([solved(*piece) for piece in self.pieces(record, y, base)])

    def characteristic(self, z: np.ndarray | complex) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """(1 - 2/3 z) x^2 - 4/3 x + 1/3."""
        return 1 - 2 / 3 * z, -4 / 3, 1 / 3
