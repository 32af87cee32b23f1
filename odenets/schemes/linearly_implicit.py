"""Schemes that need the Jacobian J = df/dy at the start of a step, and no nonlinear iteration.

Rosenbrock methods solve linear systems with I - gamma h J by GMRES, the exponential Euler method applies phi_1(h J) by Arnoldi;
both from products with J alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from odenets.errors import InputError, Unsolved
from odenets.schemes.scheme import GRADIENTS, Scheme, check_backward, with_backward_of
from odenets.solve.driver import failure_sentence
from odenets.solve.exponential import phi1
from odenets.solve.krylov import gmres
from odenets.solve.log import Record
from odenets.solve.precision import solving
from odenets.solve.products import jacobian_products
from odenets.solve.root import implicit_function
from odenets.solve.rows import as_rows
from odenets.solve.solution import Solution, check_settings
from odenets.solve.transforms import everywhere
from odenets.types import Field, Product, State, Time

GAMMA = 1 - 1 / np.sqrt(2)  # of ros2: makes it L-stable


@dataclass(frozen=True, eq=False)
class KrylovScheme(Scheme, ABC):
    """Settings of schemes with one Krylov process a stage.

    Args:
        tol: Per sample, relative residual of the linear system or relative error estimate of phi_1.
        max_iterations: Cap on products with J for each process.
        on_failure: "record" or "raise".
    """

    tol: float = 1e-3
    max_iterations: int = 40
    on_failure: str = "record"

    iterates = True
    gradients = GRADIENTS
    looks_at_values = True
    evaluations = None

    def __post_init__(self) -> None:
        check_settings(self.tol, self.max_iterations, self.on_failure)

    @abstractmethod
    def increment(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        """The new state minus y."""

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """One step; see `Scheme.step`."""
        with solving(y, self):
            if gradient != "detached":
                return y + self.increment(f, t, y, h, gradient, record)
            with torch.no_grad():
                value = y + self.increment(f, t, y, h, gradient, record)
            return with_backward_of(y + h * f(t, y), value)

    def keep(self, solution: Solution, record: Record | None) -> None:
        """Record the outcome of a process, or raise where that is wanted."""
        if not everywhere(torch.isfinite(solution.residual)):
            raise InputError("the field or its Jacobian is not finite in a step: NaN or Inf in the weights or the input")
        if record is not None:
            record.append(solution._replace(value=None))  # type: ignore[arg-type] # a record keeps no states
        if self.on_failure == "raise" and not everywhere(solution.converged):
            raise Unsolved(failure_sentence(solution.converged, solution.residual, self))


@dataclass(frozen=True, eq=False)
class RosenbrockScheme(KrylovScheme, ABC):
    """Settings of schemes whose stages are linear systems.

    Args:
        backward_tol, backward_stop: Of the solve with the transposed matrix, see `SolvingScheme`.
    """

    backward_tol: float = 0.0
    backward_stop: str = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backward(self.backward_tol, self.backward_stop)

    @property
    def approximate_gradient(self) -> bool:
        """See `Scheme.approximate_gradient`."""
        return self.backward_tol > self.tol or self.backward_stop == "batch"

    def solve(self, f: Field, t: Time, y: State, weight: Time, rhs: State, gradient: str, record: Record | None) -> State:
        """x with (I - weight J) x = rhs, J = df/dy at (t, y)."""

        def apply(x: State, y: State) -> State:
            return x - weight * jacobian_products(lambda y: f(t, y), y)[0](x)

        def product(y: State) -> Product:
            J = jacobian_products(lambda y: f(t, y), y)[0]
            return lambda v: v - weight * J(v.view(y.shape)).reshape(v.shape)

        unrolled = gradient == "unrolled"
        with torch.set_grad_enabled(torch.is_grad_enabled() and unrolled):
            at, b = (y, rhs) if unrolled else (y.detach(), rhs.detach())
            solution = gmres(product(at), as_rows(b), self.tol, self.max_iterations)
        self.keep(solution._replace(backward=False), record)
        value = solution.value.view(rhs.shape)
        if unrolled:
            return value
        return implicit_function(
            lambda x, y, rhs: apply(x, y) - rhs,
            value,
            (y, rhs),
            self.backward_tol or self.tol,
            self.max_iterations,
            record,
            stop=self.backward_stop,
        )


@dataclass(frozen=True, eq=False)
class RosenbrockEuler(RosenbrockScheme):
    """y + (I - h J)^-1 h f(t, y): implicit Euler after one Newton step; equal to it on autonomous linear fields."""

    name = "rosenbrock_euler"
    order = 1
    implicit = True
    stages = 1
    source = "Rosenbrock (1963); Hairer & Wanner II (1996), section IV.7, one stage and gamma = 1"

    def increment(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        """See `KrylovScheme.increment`."""
        return self.solve(f, t, y, h, h * f(t, y), gradient, record)

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """1 / (1 - z)."""
        return _quotient(1, 1 - np.asarray(z, dtype=np.complex128))


@dataclass(frozen=True, eq=False)
class ROS2(RosenbrockScheme):
    """Two-stage Rosenbrock method with gamma = 1 - 1/sqrt 2: L-stable, of order 2 whatever stands for J and without df/dt.

    (I - gamma h J) k1 = f(t, y), (I - gamma h J) k2 = f(t + h, y + h k1) - 2 k1, y + h (3/2 k1 + 1/2 k2).
    """

    name = "ros2"
    order = 2
    implicit = True
    stages = 2
    source = "Verwer, Spee, Blom, Hundsdorfer (1999), SIAM J. Sci. Comput. 20"

    def increment(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        """See `KrylovScheme.increment`."""
        first = self.solve(f, t, y, GAMMA * h, h * f(t, y), gradient, record)
        second = self.solve(f, t, y, GAMMA * h, h * f(t + h, y + first) - 2 * first, gradient, record)
        return 1.5 * first + 0.5 * second

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R(z) from its two stages."""
        z = np.asarray(z, dtype=np.complex128)
        first = _quotient(z, 1 - GAMMA * z)
        return np.asarray(1 + 1.5 * first + 0.5 * _quotient(z * (1 + first) - 2 * first, 1 - GAMMA * z))


@dataclass(frozen=True, eq=False)
class ExponentialEuler(KrylovScheme):
    """y + h phi_1(h J) f(t, y), phi_1(z) = (e^z - 1) / z: exact on autonomous linear fields.

    Of order 2 on autonomous problems, of order 1 in general, since df/dt is left out. It solves no equation; its tolerance is
    that of the Krylov approximation, which gradients pass through. The tolerance is tight because it is cheap: phi_1
    converges faster than geometrically.

    Gradients are those of the Arnoldi process. Where f(y) lies in a small invariant subspace of J (an eigenvector, or an
    equilibrium f(y) = 0) they miss what a perturbation brings from outside of it, and are wrong.
    """

    tol: float = 1e-10

    name = "exponential_euler"
    order = 1
    implicit = False
    stages = 1
    source = "Hochbruck & Ostermann (2010), Acta Numerica 19, section 2; Saad (1992) for the approximation"

    def increment(self, f: Field, t: Time, y: State, h: Time, gradient: str, record: Record | None) -> State:
        """See `KrylovScheme.increment`."""
        b = h * f(t, y)
        J = jacobian_products(lambda y: f(t, y), y)[0]
        solution = phi1(lambda v: h * J(v.view(y.shape)).reshape(v.shape), as_rows(b), self.tol, self.max_iterations)
        self.keep(solution, record)
        return solution.value.view(y.shape)

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """exp(z)."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(np.asarray(z, dtype=np.complex128)))


def _quotient(a: ArrayLike, b: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(b == 0, np.inf, a / np.where(b == 0, 1, b))
