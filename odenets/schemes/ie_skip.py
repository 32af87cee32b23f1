"""The paper's skip connection: implicit Euler, its equation solved by a few steps of gradient descent.

    y_0 = x + h f(x),   y <- y - gamma grad L(y),   L(y) = ||y - x - (1 - theta) h f(x) - theta h f(y)||^2,

repeated `iterations` times. The square carries no 1/2, so that grad L = 2 (I - theta h J_f(y))^T r(y). As a truncated
iteration it has a polynomial R in z and conj z: never A-stable, and for a non-normal Jacobian the eigenvalues of the step
are not R(h lambda). Source: Li, He, Lin, Implicit Euler Skip Connections, ICML 2020, proceedings.mlr.press/v119/li20e.html.

Two flaws of the authors' code are not repeated here. The sign of theta f(y) in the last stage's residual is flipped, so that
the correction raises the residual of the implicit equation. And the bottleneck net corrects with another function than f,
random and frozen in part: of nine slots of weights that the correction should share with the block, two are never shared.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike

from odenets.errors import InputError
from odenets.schemes.scheme import Scheme, combine, with_backward_of
from odenets.solve.log import Record
from odenets.solve.transforms import dual_level, transforming
from odenets.types import Field, State, Time


@dataclass(frozen=True, eq=False)
class IESkip(Scheme):
    """Truncated implicit Euler.

    Args:
        gamma: Step of the descent, > 0. It contracts where gamma < 1 / ||I - theta h J||^2.
        iterations: Steps of the descent, >= 1.
        theta: 1 implicit Euler, 1/2 trapezoid; in (0, 1].
    """

    gamma: float = 0.1
    iterations: int = 1
    theta: float = 1.0

    name = "ie_skip"
    order = 1
    implicit = False  # it solves nothing to a tolerance
    iterates = True
    analytic = False
    gradients = ("exact", "detached")
    source = "Li, He, Lin (2020), section 3"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < np.inf:
            raise InputError(f"ie_skip: gamma must be positive and finite, got {self.gamma}")
        if self.iterations < 1:
            raise InputError(f"ie_skip: iterations must be at least 1, got {self.iterations}")
        if not 0 < self.theta <= 1:
            raise InputError(f"ie_skip: theta must lie in (0, 1], got {self.theta}")

    @property
    def stages(self) -> int:
        """Evaluations of f: the predictor's and one for each iteration."""
        return 1 + self.iterations

    @property
    def evaluations(self) -> int:
        """Evaluations of f and transposed products with its Jacobian, counted alike."""
        return 1 + 2 * self.iterations

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """One step; see `Scheme.step`. "exact" and "unrolled" coincide: the iteration is the scheme."""
        if torch.jit.is_tracing():
            raise InputError("ie_skip takes a gradient within its step, which torch.jit.trace cannot record: use torch.export")
        slope = f(t, y)
        predictor = combine(y, h, (1.0,), (slope,))
        # The iteration is recorded where somebody will differentiate through it: backwards, or forwards by dual numbers.
        differentiated = predictor.requires_grad and torch.is_grad_enabled() or transforming() or dual_level()
        exact = gradient != "detached" and differentiated
        x, fixed, state = (v if exact else v.detach() for v in (y, slope, predictor))
        base = x if self.theta == 1 else x + (1 - self.theta) * h * fixed
        for _ in range(self.iterations):
            residual, pulled = _residual_and_pullback(f, t + h, state, base, self.theta * h, exact)
            state = torch.add(state, residual - pulled, alpha=-2 * self.gamma)
        return state if exact else with_backward_of(predictor, state)

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R by recursion of the iteration itself on y' = lambda y; with the conjugate, hence nowhere analytic."""
        z = np.asarray(z, dtype=np.complex128)
        base, weight = 1 + (1 - self.theta) * z, self.theta * z
        state = 1 + z
        for _ in range(self.iterations):
            state = state - 2 * self.gamma * (1 - np.conj(weight)) * (state - base - weight * state)
        return np.asarray(state)


def _residual_and_pullback(f: Field, t: Time, state: State, base: State, h: Time, exact: bool) -> tuple[State, State]:
    """r = y - base - h f(t, y), and h J_f(y)^T r, differentiable where `exact`.

    Plain autograd costs hardly more than its convolutions; torch.func composes with the transforms, but has overhead, and
    autograd.grad cannot run inside them. torch.export records neither, but the operations that they come to.
    """
    if torch.compiler.is_exporting():
        from torch.fx.experimental.proxy_tensor import make_fx  # here: it brings sympy

        return make_fx(partial(_by_autograd, f, t, h=h), _allow_non_fake_inputs=True)(state, base)(state, base)
    if transforming():
        slope, pullback = torch.func.vjp(lambda y: h * f(t, y), state)  # type: ignore[misc] # torch's annotation has a third
        residual = state - base - slope
        return residual, pullback(residual)[0]
    # inference_mode forbids recording; leaving it and copying its tensors is the documented way out.
    with torch.inference_mode(False), torch.enable_grad():
        if state.is_inference():
            state, base = state.clone(), base.clone()
        leaf = state if state.requires_grad else state.view_as(state).requires_grad_()
        slope = f(t, leaf) if isinstance(h, float) and h == 1 else h * f(t, leaf)
        residual = (leaf if exact else state) - base - slope
        if slope.requires_grad:
            w = residual if exact else residual.detach()
            pulled = torch.autograd.grad(slope, leaf, w, create_graph=exact, materialize_grads=True)[0]
        else:
            pulled = torch.zeros_like(residual)  # the field does not depend on the state
    return (residual, pulled) if exact else (residual.detach(), pulled)


def _by_autograd(f: Field, t: Time, state: State, base: State, h: Time) -> tuple[State, State]:
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        slope = h * f(t, leaf)
        residual = state - base - slope
        if not slope.requires_grad:
            return residual, torch.zeros_like(residual)
        return residual, torch.autograd.grad(slope, leaf, residual.detach(), materialize_grads=True)[0]
