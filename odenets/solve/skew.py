"""The equations Y = y + a S Y of linear skew fields, S = -S^T: conjugate gradients, with an adjoint of the same kind.

M = I - a S has M^T = I + a S, and M^T M = I - a^2 S^2 has its eigenvalues in [1, 1 + a^2 ||S||^2]: the method of conjugate
gradients on M^T M d = M^T a S y, in the form that carries the residual of M d = a S y along and makes it smaller and smaller.
The transposed equation is the same one with -a, so that derivatives of every order are solves of this kind. Other Krylov
methods that make use of S = -S^T need as many products. Source: Hestenes & Stiefel (1952), section 10; Eisenstat (1983), A note
on the generalized conjugate gradient method, SIAM J. Numer. Anal. 20, for the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.errors import InputError, Unsolved
from odenets.solve.driver import failure_sentence
from odenets.solve.log import Record
from odenets.solve.rows import as_rows, row_dot, row_norm
from odenets.solve.scaling import largest, relative
from odenets.solve.solution import Solution
from odenets.types import PerSample, State

RESTARTS = 3  # with the residual computed anew, where rounding may have parted it from the one that is carried along
NEAR = 100.0  # a target that is so many roundings at most


class SkewOperator(NamedTuple):
    """S of a field f(t, y) = S y: product(weights, y) is linear in both, and skew in y."""

    weights: Tensor
    product: Callable[[Tensor, State], State]


def skew_root(operator: SkewOperator, base: State, a: float, settings: Any, floor: PerSample, record: Record) -> State:
    """Y = base + a S Y, differentiable in base and in the weights of S, as often as wanted, in reverse mode.

    Args:
        operator: S.
        base: (B, ...).
        a: Any number.
        settings: Has tol, atol, backward_tol, max_iterations and on_failure, as a `SolvingScheme` has them.
        floor: (B,) rounding of the residual.
        record: Says where the solve starts, and receives its `Solution` and those of backward passes.
    """
    return _SkewRoot.apply(base, operator.weights, operator.product, a, settings, floor, record, False)


class _SkewRoot(torch.autograd.Function):
    """(I - a S)^-1; its transpose is (I + a S)^-1."""

    @staticmethod
    def forward(
        ctx: Any, base: State, weights: Tensor, product: Any, a: float, settings: Any, floor: Any, record: Any, backward: bool
    ) -> Tensor:
        def turn(v: State) -> State:
            return product(weights, v) * a

        if backward:
            # Relative to the right-hand side, as every linear solve of a backward pass.
            size = row_norm(as_rows(base))
            tol = settings.backward_tol or settings.tol
            found = solve_skew(turn, base, None, tol, settings.max_iterations, size, 0.0)
            record.append(found._replace(value=None, scale=None, norm=None, backward=True))
            increment = found.value
        else:
            guess, scale = record.start(base)
            guess = guess if record.guesses else None
            found = solve_skew(turn, base, guess, settings.tol, settings.max_iterations, scale, floor + settings.atol)
            if settings.on_failure == "raise" and not bool(found.converged.all()):
                raise Unsolved(failure_sentence(found.converged, found.residual, settings))
            increment = record.end(found)
        root = base + increment
        ctx.save_for_backward(root, weights)
        ctx.rest = product, a, settings, floor, record
        return root

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override] # torch asks for one gradient an output
        root, weights = ctx.saved_tensors
        product, a, settings, floor, record = ctx.rest
        u = _SkewRoot.apply(g, weights, product, -a, settings, floor, record, True)
        slope, again = None, torch.is_grad_enabled()
        if ctx.needs_input_grad[1]:
            with torch.enable_grad():
                # A tensor of its own: the root depends on the weights too, and is a constant here.
                own = weights.view_as(weights) if again else weights.detach().requires_grad_()
                (slope,) = torch.autograd.grad(product(own, root), own, a * u, create_graph=again)
        return u, slope, *(None for _ in range(6))


def solve_skew(
    turn: Callable[[State], State],
    base: State,
    guess: State | None,
    tol: float,
    max_iterations: int,
    scale: PerSample | None,
    floor: PerSample | float,
) -> Solution:
    """The increments d with d = turn(base + d), turn being linear and skew.

    Args:
        turn: (B, ...) -> (B, ...), each sample on its own.
        base, guess: (B, ...); None: zeros.
        tol: Per sample, ||turn(base + d) - d|| <= tol * scale + floor.
        max_iterations: Cap; each takes two products.
        scale: (B,); None: the residual at `guess`.
        floor: (B,) or a number.

    Raises:
        ValueError: The residual at the start is not finite.
    """

    def rows(v: Tensor) -> Tensor:
        return as_rows(turn(v.view_as(base)))

    tiny = torch.finfo(base.dtype).tiny
    flat = as_rows(base)
    right, d = rows(flat), torch.zeros_like(flat) if guess is None else as_rows(guess)
    r = right if guess is None else right + rows(d) - d
    norm = row_norm(r)
    if not bool(norm.isfinite().all()):
        raise InputError("the field is not finite at the start of an implicit step: NaN or Inf in the weights or the input")
    scale = norm if scale is None else scale
    target = tol * scale + floor
    iterations, products, done = torch.zeros_like(norm, dtype=torch.int64), 1.0 + (guess is not None), 0
    exact = bool((target <= NEAR * torch.finfo(base.dtype).eps * row_norm(flat)).any())
    for _ in range(RESTARTS if exact else 1):
        unit = largest(r).clamp_min(tiny)  # so that squares stay in the range of the dtype
        r, step, goal = r / unit, torch.zeros_like(r), target / unit[:, 0]
        active = row_norm(r) > goal
        p: Tensor | None = None
        square = torch.zeros_like(norm)[:, None]
        while done < max_iterations and bool(active.any()):
            s = r + rows(r)
            before, square = square, row_dot(s, s)
            p = s if p is None else s + square / before.clamp_min(tiny) * p
            image = p - rows(p)
            length = torch.where(active[:, None], square / row_dot(image, image).clamp_min(tiny), 0)  # a solved row rests
            step, r = step + length * p, r - length * image
            iterations, done, products = iterations + active, done + 1, products + 2
            active = active & (row_norm(r) > goal)
        d = d + unit * step
        r = right + rows(d) - d if exact else unit * r
        norm = row_norm(r)
        if not exact or done == max_iterations or bool((norm <= target).all()):
            break
    found = ((norm <= target).cpu(), relative(norm, scale).cpu(), iterations.cpu(), products)
    return Solution(d.view_as(base), *found, scale=scale, norm=norm.cpu())
