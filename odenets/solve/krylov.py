"""The Krylov process: orthonormal bases of many linear operators at once, each row a problem of its own; and GMRES.

Sources: Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6; Stewart (2001), A Krylov-Schur algorithm for
large eigenproblems, SIAM J. Matrix Anal. Appl. 23.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.nn import functional as F

from odenets.solve.device import look_every, next_look, upload
from odenets.solve.rows import row_dot, row_norm
from odenets.solve.scaling import largest, power_of_two
from odenets.solve.solution import Solution
from odenets.solve.transforms import anywhere, count, recording
from odenets.types import Product, Rows

Vectors = Inexact[Tensor, "batch count unknowns"]
Coefficients = Inexact[Tensor, "batch count"]
Proceed = Callable[["Krylov", Rows, Tensor, Coefficients], tuple[Rows, Tensor, Tensor]]


def orthogonalise(w: Rows, basis: Vectors, again: bool | float = 1.0) -> tuple[Rows, Coefficients, Tensor]:
    """Split w into its part in the span of an orthonormal basis and the rest, by classical Gram-Schmidt.

    Args:
        w: (B, n).
        basis: (B, count, n).
        again: Whether to do it once more, for Gram-Schmidt loses what it subtracts from; a number: where of some row less is
            left than so many times what was taken away (the host looks).

    Returns:
        The rest (B, n), the coefficients <v_i, w> (B, count) and the norm of the rest (B,).

    Source: Giraud, Langou, Rozloznik (2005), twice is enough; Daniel et al. (1976) for the criterion.
    """
    w, c, rest = _split(w, basis)
    if again if isinstance(again, bool) else anywhere(rest < again * row_norm(c)):
        w, more, rest = _split(w, basis)
        c = c + more
    return w, c, rest


def _split(w: Rows, basis: Vectors) -> tuple[Rows, Coefficients, Tensor]:
    row = w[:, None]
    c = torch.bmm(row, basis.mH)  # rows from the left: ten times faster on a CPU than columns from the right
    w = torch.baddbmm(row, c, basis, alpha=-1)[:, 0]
    return w, c[:, 0], _norm(w)


def _norm(w: Rows) -> Tensor:
    if not recording():
        return row_norm(w)
    zero = (w == 0).all(1)  # where a norm has no second derivative
    return torch.where(zero, 0, row_norm(torch.where(zero[:, None], 1, w)))


def _or_one(v: Tensor) -> Tensor:
    """What can be divided by: where it is zero one, whose derivatives do not overflow."""
    return torch.where(v > 0, v.clamp_min(torch.finfo(v.dtype).tiny), 1)


def divide(krylov: "Krylov", w: Rows, rest: Tensor, c: Coefficients) -> tuple[Rows, Tensor, Tensor]:
    """The next vector is w over its norm, whatever that is; after the last one, rounding or zero."""
    return w, rest.clamp_min(torch.finfo(rest.dtype).tiny ** 0.5), rest  # below that a norm is not known


def ended(rest: Tensor, c: Coefficients) -> Tensor:
    """(B,) whether what Gram-Schmidt left of a vector is rounding: the space is invariant."""
    return rest <= 10 * torch.finfo(rest.dtype).eps * torch.hypot(rest, row_norm(c))


def hold(krylov: "Krylov", w: Rows, rest: Tensor, c: Coefficients) -> tuple[Rows, Tensor, Tensor]:
    """Where the space is invariant the next vector is zero, and so is its coefficient."""
    fresh = ~ended(rest, c)
    return torch.where(fresh[:, None], w, 0), torch.where(fresh, rest, 1), torch.where(fresh, rest, 0)


class Krylov:
    """Orthonormal bases V and coefficients H with A V_m = V_{m+1} H, grown vector by vector.

    A is `apply` divided by `unit` (B, 1).

    Args:
        apply: Linear map (B, n) -> (B, n), each row on its own.
        start: The first vector, up to its norm, (B, n).
        limit: Steps there is memory for.
        unit: As above; 1, or None: the power of two of the first product, so that no square leaves the range of the dtype.
        proceed: (krylov, w, rest, c) -> the next vector, its divisor, and its coefficient, from what Gram-Schmidt left of a
            product, the norm of that, and the coefficients before; see `divide`.
        again: As for `orthogonalise`.
        in_place: Keep the basis in one piece of memory. False where it is differentiated.
    """

    def __init__(
        self,
        apply: Product,
        start: Rows,
        limit: int,
        *,
        unit: Tensor | float | None = 1.0,
        proceed: Proceed = divide,
        again: bool | float = 1.0,
        in_place: bool = True,
    ) -> None:
        self.apply, self.limit, self.unit, self.proceed, self.again = apply, limit, unit, proceed, again
        self.n, self.products = start.shape[1], 0
        self.columns: list[tuple[Tensor, ...]] = []  # of H, in pieces
        self.length = _norm(start)
        first = start / _or_one(self.length)[:, None]
        self.V = start.new_empty(len(start), limit + 1, self.n) if in_place else first[:, None]
        if in_place:
            self.V[:, 0] = first
        self.in_place = in_place

    @property
    def m(self) -> int:
        """Dimension of the space."""
        return len(self.columns)

    def basis(self, count: int) -> Vectors:
        """The first vectors, (B, count, n)."""
        return self.V[:, :count]

    def step(self) -> None:
        """One dimension more."""
        w, c, rest = orthogonalise(self.product(self.m), self.basis(self.m + 1), self.again)
        w, divisor, coefficient = self.proceed(self, w, rest, c)
        self.columns.append((c, coefficient[:, None].to(c.dtype)))
        if self.in_place:
            torch.div(w, divisor[:, None], out=self.V[:, self.m])
        else:
            self.V = torch.cat([self.V, (w / divisor[:, None])[:, None]], 1)

    def product(self, j: int) -> Rows:
        """A v_j, in units."""
        w = self.apply(self.V[:, j])
        self.products += 1
        if self.unit is None:
            self.unit = power_of_two(w)
        return w / self.unit if isinstance(self.unit, Tensor) else w

    def hessenberg(self) -> Inexact[Tensor, "batch rows columns"]:
        """H, (B, m + 1, m), in units of `unit`."""
        columns = [torch.cat(column, 1) for column in self.columns]
        return torch.stack([F.pad(column, (0, self.m + 1 - column.shape[1])) for column in columns], 2)

    def select(self, rows: Tensor, apply: Product) -> None:
        """Keep the samples `rows`, in rising order; `apply` is their operator."""
        self.apply, whole, self.V = apply, self.V, self.V[: len(rows)]
        for j in range(self.m + 1):  # in place: there may be no memory for a second basis
            self.V[:, j] = whole[rows, j]
        self.columns = [tuple(part[rows] for part in column) for column in self.columns]
        if isinstance(self.unit, Tensor):
            self.unit = self.unit[rows]

    def restart(self, Z: Inexact[Tensor, "batch m p"], T: Inexact[Tensor, "batch p p"], b: Inexact[Tensor, "batch p"]) -> None:
        """Shrink to the basis V Z, on which A is T, with coupling b to the next vector."""
        m, p = Z.shape[1:]
        self.V[:, :p], self.V[:, p] = Z.mT @ self.V[:, :m], self.V[:, m].clone()
        self.columns = [(column,) for column in torch.cat([T, b[:, None]], 1).unbind(2)]


# When GMRES goes on with the rows unsolved alone, for their operator is made anew: at most so much of the rows are left, and at
FEW, MANY = 1 / 2, 2**16  # least so many unknowns go.


def gmres(
    apply: Product,
    b: Rows,
    tol: float,
    max_iterations: int,
    memory: int = 30,
    stop: str = "sample",
    every: int | None = None,
    start: Rows | None = None,
    narrowed: Callable[[Tensor], Product] | None = None,
) -> Solution:
    """Solve apply(x) = b for each row, minimising the residual over the Krylov space; restarted every `memory` vectors.

    What decides is small and looked at on the host: the coefficients of the Krylov process, from which follow the residuals
    of all iterations before. A row keeps the solution of the first one that reached its tolerance.

    Args:
        apply: Linear map (B, N) -> (B, N), each row on its own.
        b: Right-hand side, (B, N).
        tol: Residual per row, relative to b wherever the iteration starts.
        max_iterations: Cap on products.
        memory: Vectors kept before a restart.
        stop: "sample": a row rests once its own residual is small; "batch": all go on until the norm over all rows is
            small, and count as converged then.
        every: Products between two looks; by default each on the host, several on an accelerator.
        start: A guess (B, N), up to a factor for each row, which is chosen best; one product more. None: zero.
        narrowed: (rows,) numbers -> the map for these rows alone. Where it is given, and the host decides, rows that are solved
            cost no more products once they are half of them.

    Returns:
        A `Solution` with value (B, N); differentiable, where there is no `start`.

    Source: Saad & Schultz (1986).
    """
    every = every or look_every(b.device)
    # Each row in its own units, so that the result is linear in b even where the squares of its entries would underflow.
    unit = _or_one(largest(b.detach()))
    x, r, products = torch.zeros_like(b), b / unit, 0
    # Classical Gram-Schmidt loses orthogonality as eps times the square of the reduction: where that may be too much, look.
    again = torch.finfo(b.dtype).eps > 1e-2 * tol**2 and (every > 1 or 0.1)
    narrow = None if every > 1 or stop == "batch" or recording() else narrowed
    system = _LeastSquares(tol, unit[:, 0] if stop == "batch" else None)
    if start is not None and max_iterations > 1:  # it costs one
        system.scale, products = row_norm(r), 1
        x, r = _closest(apply, start, r)
    value, spent = None, float(products)
    while products < max_iterations and system.unsolved:
        # Where it is differentiated: vectors that are rounding have derivatives that overflow, though their weight is zero.
        kind: dict[str, Any] = {"proceed": hold, "in_place": False} if recording() else {}
        krylov = Krylov(apply, r, memory, again=again, **kind)
        system.begin(krylov.length, every == 1)
        look = every
        while krylov.m < memory and products < max_iterations and system.unsolved:
            krylov.step()
            products, spent = products + 1, spent + len(x) / max(1, len(b))
            if krylov.m == min(look, memory) or products == max_iterations:
                system.look(krylov.columns)
                look += system.next_look(every, products)
            if narrow is not None and products < max_iterations and system.few(MANY // max(1, b.shape[1])):
                value, found = torch.empty_like(b) if value is None else value, x + system.combined(krylov)
                keep, gone, places = system.drop()
                value[places], x, apply = found[gone], x[keep], narrow(system.rows)
                krylov.select(keep, apply)
        x = x + system.combined(krylov)
        if krylov.m == memory and products < max_iterations and system.unsolved:
            if recording():  # what is known of the residual on the host has no derivative
                r, products = torch.where(upload(system.active, b)[:, None], b / unit - apply(x), 0), products + 1
            else:
                r = (upload(system.left().to(b.dtype), b)[:, None] @ krylov.basis(krylov.m + 1))[:, 0]
    if value is not None:
        value[system.rows] = x
        x = value
    return Solution(x * unit, *system.outcome(unit.dtype), spent, backward=True)


def _closest(apply: Product, start: Rows, b: Rows) -> tuple[Rows, Rows]:
    """The multiple x of `start` whose residual b - apply(x) is smallest in each row, and that residual."""
    start = start / largest(start).clamp_min(torch.finfo(b.dtype).tiny)
    image = apply(start)
    factor = row_dot(image, b) / row_dot(image, image).clamp_min(torch.finfo(b.dtype).tiny)
    return factor * start, torch.addcmul(b, factor, image, value=-1)


class _LeastSquares:
    """min |beta e_1 - H y| for each row, as columns of H come in; on the host, in double precision.

    The vector q with q_0 = 1 and q^H H = 0 grows by one entry a column; the residual is beta / |q|^2 times q.
    """

    unsolved = True  # whether there are such rows
    scale: Any = None  # (B,) what residuals are relative to; those at the first start unless it is set before

    def __init__(self, tol: float, weight: Tensor | None) -> None:
        self.tol = tol
        self.weight: Any = weight  # (B,) units of the rows where they stop together
        self.target: Any = None
        self.conjugate: Any = None  # of q
        self.columns: list[Tensor] = []
        self.rows: Any = None  # their places in the batch, once some have gone
        self.ended: list[tuple[Tensor, ...]] = []  # what is known of those

    def begin(self, beta: Tensor, look: bool) -> None:
        """Start or restart with right-hand sides of norms beta (B,); `look` at once whether there is anything to do."""
        self.beta, self.columns, self.conjugate = beta, [], None
        if look:
            self.look([])

    def look(self, columns: list[tuple[Tensor, ...]]) -> None:
        """Take the columns that are new."""
        new = columns[len(self.columns) :]
        parts, widths = [part for column in new for part in column], [sum(part.shape[1] for part in c) for c in new]
        if self.conjugate is None:
            given = [self.beta] if self.target is not None or self.scale is None else [self.beta, self.scale]
            parts, widths = [*(part[:, None] for part in given), *parts], [*(1 for _ in given), *widths]
        host = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).cpu()
        self.eps = torch.finfo(host.dtype).eps
        host = host.to(torch.complex128 if host.is_complex() else torch.float64)
        found = list(host.split(widths, 1))
        if self.conjugate is None:
            self._start(*(found.pop(0)[:, 0].abs() for _ in given))
        for column in found:
            self._extend(column)
        self.alive = count(self.active)
        self.unsolved = self.alive > 0

    def next_look(self, every: int, products: int) -> int:
        """Products until the next look is due."""
        if every == 1 or not self.unsolved:
            return every
        return next_look(every, products, *(v[self.active] for v in (self.scale, self.residual, self.target)))

    def _start(self, beta: Tensor, scale: Tensor | None = None) -> None:
        if self.target is None:
            self.residual = beta.detach()
            self.scale = self.residual if scale is None else scale.detach()
            self.target, self.iterations = self.tol * self.scale, torch.zeros(beta.shape, dtype=torch.int64)
            if self.weight is not None:  # the rows in units of the largest, whose squares do not underflow
                weight = torch.where(self.scale > 0, self.weight.cpu().double(), 0)
                self.weight = weight / weight.amax().clamp_min(torch.finfo(weight.dtype).tiny)
            self.active = (self.scale != 0) & ~self._solved()
        self.beta, self.length, self.before = beta, torch.ones_like(self.residual), self.iterations
        self.conjugate = self.length[:, None]
        self.closed = torch.zeros_like(self.active)  # rows whose space is invariant: what it adds is zero

    def _extend(self, column: Tensor) -> None:
        self.columns.append(column)
        column = column.detach()
        last, product = column[:, -1].abs(), (self.conjugate * column[:, :-1]).sum(1)
        # An invariant space holds the solution, unless the operator is singular there: then the residual stays as it is.
        closes = last == 0
        rounding = 10 * self.eps * torch.linalg.vector_norm(self.conjugate, dim=1) * torch.linalg.vector_norm(column, dim=1)
        idle = self.closed | (closes & (product.abs() <= rounding))
        rest = torch.maximum(last, 1e-150 * product.abs()).clamp_min(torch.finfo(last.dtype).tiny)  # its inverse can be squared
        entry = torch.where(idle, 0, product / rest)
        self.conjugate = torch.cat([self.conjugate, -entry[:, None]], 1)
        self.length = torch.hypot(self.length, entry.abs())
        self.residual = torch.where(self.active, self.beta.detach() / self.length, self.residual)
        self.iterations = self.iterations + self.active.logical_and(~idle)
        self.closed = self.closed | closes
        self.active = self.active > self._solved()  # and not

    def _solved(self) -> Tensor:
        """(B,) bool; NaN is unsolved, and never converges."""
        if self.weight is None:
            return self.residual <= self.target
        now, first = (torch.linalg.vector_norm(norm * self.weight) for norm in (self.residual, self.scale))
        return (self.residual == 0) | (now <= self.tol * first)

    def combined(self, krylov: Krylov) -> Rows | float:
        """What the space adds to the solution, V y."""
        if not krylov.m:
            return 0.0
        y = upload(self.solution().to(krylov.V.dtype), krylov.V)
        return (y[:, None] @ krylov.basis(krylov.m))[:, 0]

    def solution(self) -> Coefficients:
        """y, (B, m)."""
        m = len(self.columns)
        H = torch.stack([F.pad(column, (0, m + 1 - column.shape[1])) for column in self.columns], 2)
        # A row that is solved takes no more columns: in their stead those of the identity, for which its y is 0.
        surplus = torch.arange(m) >= (self.iterations - self.before)[:, None]
        H = torch.where(surplus[:, None], torch.eye(m + 1, dtype=H.dtype)[:, 1:], H)
        Q, R = torch.linalg.qr(H)
        right = Q[:, 0, :, None].conj() * self.beta[:, None, None]
        return torch.linalg.solve_triangular(R, right, upper=True)[:, :, 0]

    def left(self) -> Coefficients:
        """beta e_1 - H y of the rows unsolved, (B, m + 1)."""
        return torch.where(self.active[:, None], (self.residual / self.length)[:, None] * self.conjugate.conj(), 0)

    def few(self, least: int) -> bool:
        """Whether so few rows are unsolved that the others should go, `least` of them or more."""
        rows = len(self.active)
        return 0 < self.alive <= min(FEW * rows, rows - least)

    def drop(self) -> tuple[Tensor, Tensor, Tensor]:
        """Go on with the rows unsolved: (which they are, which the others, the places of those in the batch)."""
        keep, gone = self.active.nonzero()[:, 0], (~self.active).nonzero()[:, 0]
        self.rows = torch.arange(len(self.active)) if self.rows is None else self.rows
        places = self.rows[gone]
        self.ended.append((places, *(v[gone] for v in self._figures())))
        own = "rows", "scale", "target", "residual", "iterations", "before", "active", "closed", "beta", "length", "conjugate"
        for name in own:
            setattr(self, name, getattr(self, name)[keep])
        self.columns = [column[keep] for column in self.columns]
        return keep, gone, places

    def _figures(self) -> tuple[Tensor, Tensor, Tensor]:
        tiny = torch.finfo(self.scale.dtype).tiny
        return self._solved(), self.residual / self.scale.clamp_min(tiny), self.iterations

    def outcome(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(converged, relative residual, iterations), each (B,)."""
        converged, residual, iterations = self._figures()
        if self.rows is not None:
            parts = zip(*self.ended, (self.rows, converged, residual, iterations))
            places, converged, residual, iterations = (torch.cat(part) for part in parts)
            order = torch.argsort(places)
            converged, residual, iterations = converged[order], residual[order], iterations[order]
        return converged, residual.to(dtype), iterations
