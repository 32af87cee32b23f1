"""Semismooth Newton for the equations z - a h f(z) = y of monotone fields: from whatever start, it arrives.

On a gradient flow the residual r is the gradient of a strongly convex function phi, and along a Newton direction d the slope
<r(z + t d), d> of phi grows with t: a line search that looks for its zero needs residuals alone. By strong convexity
phi(z + t d) <= phi(z) + t <r(z + t d), d> - t^2 ||d||^2/2, so that each step that is accepted goes down.

Other fields with mu <= 0 have Jacobians of r with <v, J v> >= ||v||^2. Newton directions are taken where they lower ||r||
enough. Where they do not, for a piecewise linear f has kinks, the direction is -r: with ||J|| <= Lam, ||r(z - t r)||^2 is below
(1 - 2t + t^2 Lam^2) ||r||^2, so that some t is short enough and gains a factor, however close to 1. In L-infinity likewise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odenets.solve.driver import Iterate, Solver, Steps
from odenets.solve.krylov import gmres
from odenets.solve.products import jacobian_products
from odenets.solve.rows import row_dot, row_norm

GAIN = 0.1  # of the decrease that a step promises to first order, what it must bring; below 1/2, which -r always brings
HALVINGS = 4  # of a Newton step, before the direction is -r


LONGEST = 30  # trials of one line search along a direction of phi, beyond which rounding decides


@dataclass(frozen=True)
class ConvexNewton(Solver):
    """Newton's method on the equations of gradient flows: conjugate gradients, line search on the slope of phi, per sample.

    Args:
        forcing: Relative residual of the linear systems. krylov: cap on their products.

    Source: Qi & Sun (1993), Math. Programming 58; Nocedal & Wright (2006), sections 3.1 and 7.1; the module's first lines.
    """

    forcing: float = 1e-2
    krylov: int = 200

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        d = _newton(iterate, self.forcing, self.krylov, True)
        slope = row_dot(iterate.r, d)
        t, low, high, trials = torch.ones_like(slope), torch.zeros_like(slope), torch.full_like(slope, math.inf), 0 * slope
        step = d
        while True:
            iterate = yield step
            if iterate.keep is not None:
                d, slope, t, low, high, trials = (v[iterate.keep] for v in (d, slope, t, low, high, trials))
            here = row_dot(iterate.r, d)
            beyond = here > t * row_dot(d, d) / 4
            short = here < slope / 2
            good = ~(beyond | short) | (trials >= LONGEST)
            low, high = torch.where(short, t, low), torch.where(beyond, t, high)
            onward = torch.where(high.isinf(), 2 * t, (low + high) / 2)
            newton = _newton(iterate, self.forcing, self.krylov, True) if bool(good.any()) else d
            step = torch.where(good, newton, (onward - t) * d)
            d, slope = torch.where(good, newton, d), torch.where(good, row_dot(iterate.r, newton), slope)
            t, trials = torch.where(good, 1.0, onward), torch.where(good, 0.0, trials + 1)
            low, high = torch.where(good, 0.0, low), torch.where(good, math.inf, high)


@dataclass(frozen=True)
class Semismooth(Solver):
    """Newton's method with a line search on the norm of the residual, per sample.

    Args:
        p: The norm in which the field is monotone, 2 or inf.
        forcing: Relative residual of the linear systems. krylov: cap on their products.

    Source: Qi & Sun (1993), Math. Programming 58, for the method; the lines above for the safeguard.
    """

    p: float = 2
    forcing: float = 1e-2
    krylov: int = 200

    def steps(self, iterate: Iterate) -> Steps:
        """See `Solver.steps`."""
        r, norm = iterate.r, self._norm(iterate.r)
        direction, length, trials = (
            _newton(iterate, self.forcing, self.krylov, False),
            torch.ones_like(norm),
            torch.zeros_like(norm),
        )
        step = direction
        while True:
            iterate = yield step
            if iterate.keep is not None:
                r, norm, direction, length, trials = (v[iterate.keep] for v in (r, norm, direction, length, trials))
            reached = self._norm(iterate.r)
            good = (reached <= (1 - GAIN * length) * norm)[:, None]
            turned = ~good & (trials == HALVINGS)[:, None]  # to the direction that cannot fail
            shorter = torch.where(turned, 1.0, length[:, None] / 2)
            onward = torch.where(turned, -r, direction)
            back = shorter * onward - length[:, None] * direction
            newton = _newton(iterate, self.forcing, self.krylov, False) if bool(good.any()) else onward
            step, direction = torch.where(good, newton, back), torch.where(good, newton, onward)
            length, trials = torch.where(good, 1.0, shorter)[:, 0], torch.where(good[:, 0], 0, trials + 1)
            r, norm = torch.where(good, iterate.r, r), torch.where(good[:, 0], reached, norm)

    def _norm(self, r: Tensor) -> Tensor:
        return row_norm(r) if self.p == 2 else torch.linalg.vector_norm(r, math.inf, dim=1)


def _newton(iterate: Iterate, forcing: float, krylov: int, symmetric: bool) -> Tensor:
    product, _ = jacobian_products(iterate.residual, iterate.z)
    if symmetric:
        return conjugate_gradients(product, -iterate.r, forcing, krylov)
    return gmres(product, -iterate.r, forcing, krylov).value


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, tol: float | Tensor, max_iterations: int) -> Tensor:
    """x with apply(x) = b for each row, apply symmetric and positive definite: the method of conjugate gradients.

    Args:
        apply: Linear map (B, N) -> (B, N), each row on its own.
        b: (B, N).
        tol: Relative residual per row, one for all or (B, 1).
        max_iterations: Cap on products.

    Source: Hestenes & Stiefel (1952).
    """
    tiny = torch.finfo(b.dtype).tiny
    x, r, p, square = torch.zeros_like(b), b, b, row_dot(b, b)
    goal = tol**2 * square
    for _ in range(max_iterations):
        active = square > goal  # a converged row is frozen: its neighbours do not change it
        if not bool(active.any()):
            break
        image = apply(p)
        a = torch.where(active, square / row_dot(p, image).clamp_min(tiny), 0)
        x, r = x + a * p, r - a * image
        previous, square = square, row_dot(r, r)
        p = r + torch.where(active, square / previous.clamp_min(tiny), 0) * p
    return x
