"""What every scheme offers, to the integrator, to the stability analysis and to the tests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from odenets.errors import InputError
from odenets.schemes.tableau import Tableau
from odenets.solve.log import Record
from odenets.solve.transforms import dual_level, transforming
from odenets.specs import canonical
from odenets.types import Field, State, Time

GRADIENTS = ("exact", "unrolled", "detached")
BACKWARD_STOPS = ("sample", "batch")
SOLVE_COST = 15  # evaluations, for each stage that is solved


class Scheme(ABC):
    """A time-stepping scheme for y' = f(t, y): immutable, without parameters to train, compared by its spec.

    Subclasses are frozen dataclasses (`eq=False`). What a scheme is, its attributes say: whoever treats schemes differently
    asks them, never for a name, a type or an exception.
    """

    tableau: Tableau | None = None
    previous: int = 0  # how many steps before the current one a multistep scheme uses
    has_R: bool = True  # a step on y' = lambda y multiplies by some R(h lambda)
    analytic: bool = True  # R is analytic, so that a step's Jacobian on a linear field has the eigenvalues R(h lambda)
    adaptive: bool = False  # chooses its step sizes from the data
    origin: str | None = None  # of a user's own scheme the spec that it was found by

    @property
    @abstractmethod
    def name(self) -> str:
        """Real name, as `list_schemes()` gives it."""

    @property
    def order(self) -> int | None:
        """Classical order; None where undefined."""
        return None

    @property
    def implicit(self) -> bool:
        """Whether a step solves an equation."""
        return False

    @property
    def stages(self) -> int | None:
        """Stages of a step; None where the data decide."""
        return None

    @property
    def evaluations(self) -> int | None:
        """Evaluations of f that an explicit step takes; None where a solve decides."""
        return None

    @property
    def source(self) -> str:
        """Book or article."""
        return ""

    @property
    def iterates(self) -> bool:
        """Whether it evaluates f again and again at moving points, so that f must be a pure function."""
        return False

    @property
    def looks_at_values(self) -> bool:
        """Whether it decides by the values of tensors what to compute, which torch.export cannot record."""
        return False

    @property
    def gradients(self) -> tuple[str, ...]:
        """Of `GRADIENTS`, those that differ for it."""
        return ("exact",)

    @property
    def moves(self) -> tuple[tuple[int, "Scheme", float], ...]:
        """Of a splitting scheme, the steps that a step is composed of; see `Splitting`."""
        return ()

    @abstractmethod
    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """One step of size h from (t, y).

        Args:
            f: Vector field (t, y) -> dy/dt, (B, ...) -> (B, ...), each sample on its own.
            t: Time, a float or a 0-dim tensor.
            y: State, (B, ...).
            h: Step size, a float or a 0-dim tensor.
            gradient: "exact", "unrolled" or "detached"; see `odenets.set_gradient`.
            record: `Record` that receives a `Solution` for each equation solved, forward or backward; or None.

        Returns:
            The state at t + h, (B, ...).
        """

    @abstractmethod
    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R(z): the growth of one step on y' = lambda y, z = h lambda. Complex array in, complex array of that shape out."""

    @property
    def one_step(self) -> bool:
        """Whether the next state depends on the present one alone."""
        return self.previous == 0

    @property
    def solves(self) -> bool:
        """Whether a step is computed to a tolerance by a solve that may fail, and says so in its statistics."""
        return "tol" in self.parameters

    @property
    def approximate_gradient(self) -> bool:
        """Whether its backward solve is looser than its steps: less to compute, for training alone."""
        return False

    @property
    def cost(self) -> float:
        """What a step costs, roughly, in evaluations of f: for an order of work, not for a promise."""
        return SOLVE_COST * (self.stages or 1) if self.evaluations is None else self.evaluations

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """{name: (value, default)} in declared order: what the spec may say. By default the fields of the dataclass."""
        own: Any = self  # a dataclass, which `Scheme` is not
        return {field.name: (getattr(self, field.name), field.default) for field in fields(own) if field.init}

    def stepper(self) -> Callable[..., State]:
        """A function with the signature of `step` for one walk through a stage; multistep schemes keep their history in it."""
        return self.step

    def tightened(self, tol: float, max_iterations: int) -> "Scheme":
        """The same scheme, solving to `tol` (or its own, if smaller), forward and backward, sample by sample, stopping by
        residual and recording failures."""
        own: Any = self
        if not self.solves:
            return self
        changes = {
            "tol": min(tol, own.tol),
            "atol": 0.0,  # a loose one would let everything pass for solved
            "max_iterations": max(max_iterations, own.max_iterations),
            "on_failure": "record",
            "fixed": False,
            "backward_tol": 0.0,
            "backward_stop": "sample",
        }
        return replace(own, **{key: value for key, value in changes.items() if key in self.parameters})

    def __str__(self) -> str:
        """Canonical spec: the real name and the parameters that differ from their default, in declared order. Of a user's own
        scheme that was named on a command line, the spec that finds it again."""
        return self.origin or canonical(self.name, self.parameters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scheme) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def check_backward(tol: float, stop: str) -> None:
    """InputError for settings of a backward solve that are out of range."""
    if not 0 <= tol < float("inf"):
        raise InputError(f"backward_tol must be positive and finite, or 0 for tol, got {tol}")
    if stop not in BACKWARD_STOPS:
        raise InputError(f"unknown backward_stop {stop!r}; choose from {', '.join(BACKWARD_STOPS)}")


def with_backward_of(predictor: State, value: State) -> State:
    """`value`, differentiated as if it were `predictor`: the detached gradient of the authors' code."""
    watched = predictor.requires_grad or transforming() or dual_level()
    return predictor + (value - predictor).detach() if watched else value.detach()


def combine(y: State | None, h: float | Tensor, coefficients: Sequence[float], vectors: Sequence[State]) -> State:
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
    assert y is not None  # some coefficient is not 0
    return y
