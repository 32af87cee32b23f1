"""The driver of the batched solvers for residual(z) = 0: stopping, dropping converged samples, best iterate, statistics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.errors import InputError, Unsolved
from odenets.solve.device import look_every, next_look, upload
from odenets.solve.precision import solving
from odenets.solve.rows import as_rows, row_norm
from odenets.solve.scaling import power_of_two, relative, safe_to_square
from odenets.solve.solution import Solution, check_settings
from odenets.solve.transforms import anywhere, count, everywhere, mapping, over_maps, recording
from odenets.types import Rows, State

ALONE = 7 / 8  # of the samples at most are unsolved when the others leave: copying costs something too
FEW = 1 / 2  # the same on an accelerator, which a few rows more cost nothing


class Iterate(NamedTuple):
    """What a method is told after each step; `keep` names the rows that go on (None: all of them)."""

    z: Rows
    r: Rows  # the residual at z
    residual: Callable[[Rows], Rows]  # the function itself for these rows
    keep: Tensor | None = None
    batched: bool = False  # few large operations rather than little work


Steps = Generator[Rows, Iterate, None]


@dataclass(frozen=True)
class Solver(ABC):
    """Settings that all methods share.

    Args:
        tol: A sample has converged when ||residual|| <= tol * scale + atol (+ floor), in the 2-norm.
        max_iterations: Cap on the evaluations after the first.
        on_failure: "record" returns the best iterate and says so; "raise" raises RuntimeError.
        fixed: Make exactly `max_iterations` iterations for all samples, without a branch that depends on data: for
            torch.compile and CUDA graphs. Convergence is reported all the same.
        every: Iterations between two looks at convergence; by default each on the host, several on an accelerator. What a
            sample returns does not depend on it: it is frozen where it has converged.
        atol: Absolute tolerance beside the relative one, in the units of the residual.
    """

    tol: float = 1e-3
    max_iterations: int = 40
    on_failure: str = "record"
    fixed: bool = False
    every: int | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self.tol, self.max_iterations, self.on_failure, self.atol)
        if self.fixed and self.on_failure == "raise":
            raise InputError("on_failure=raise looks at the residual, which fixed=true must not")
        if self.every is not None and self.every < 1:
            raise InputError(f"every must be at least 1, got {self.every}")

    @abstractmethod
    def steps(self, iterate: Iterate) -> Steps:
        """Generator: yields the next step (rows, N), is sent the `Iterate` that it led to."""

    def __call__(
        self,
        residual: Callable[..., State],
        guess: State,
        samples: Sequence[Tensor] = (),
        scale: Tensor | None = None,
        floor: Tensor | float = 0.0,
    ) -> Solution:
        """Solve residual(z, *samples) = 0.

        Args:
            residual: (rows, ...), and tensors of that many rows -> (rows, ...); called for the samples still unsolved.
            guess: Starting point, (B, ...).
            samples: Tensors (B, ...) that belong to the samples and are passed on to `residual` row by row.
            scale: (B,) what the residual is relative to; by default its norm at `guess`.
            floor: (B,) or float: rounding error, below which no residual can be pushed.

        Returns:
            A `Solution`, differentiable through the iterations where gradients are enabled.

        Raises:
            ValueError: The residual at `guess` is not finite or has another shape.
            RuntimeError: `on_failure` is "raise" and a sample did not converge.
        """
        floor = floor + self.atol
        with solving(guess, type(self).__name__):
            if self.fixed:
                return self._fixed(residual, guess, samples, scale, floor)
            found = self._solve(residual, guess, samples, scale, floor, False)
            if isinstance(found, Solution):
                return found
            # The whole equation in units of its first residual, r(u z) / u: its squares would leave the range of the dtype.
            unit = power_of_two(found)
            if not everywhere(torch.isfinite(row_norm(found.detach() / unit))):
                raise InputError(
                    "the field is not finite at the start of an implicit step: NaN or Inf in the weights or the input"
                )
            u, flat = unit.view(-1, *[1] * (guess.dim() - 1)), unit[:, 0]

            def in_units(z: State, unit: Tensor, *samples: Tensor) -> State:
                u = unit.view(-1, *[1] * (z.dim() - 1))
                return residual(u * z, *samples) / u

            scale = None if scale is None else scale / flat
            found = self._solve(in_units, guess / u, (flat, *samples), scale, floor / flat, True)
            norm = found.norm * flat.to(found.norm.device)
            return found._replace(value=found.value * u, scale=found.scale * flat, norm=norm)

    def _solve(
        self,
        residual: Callable[..., State],
        guess: State,
        samples: Sequence[Tensor],
        scale: Tensor | None,
        floor: Tensor | float,
        in_units: bool,
    ) -> Any:
        """As `__call__`; instead of a `Solution` the first residual, as rows, where its squares leave the range of the dtype,
        unless it is known to be in good units."""
        flat, z, batch = _flat(residual, guess, samples), as_rows(guess), max(1, len(guess))
        r = first = flat(z)
        differentiable = r.requires_grad or mapping()  # somebody wants the derivative of the iteration itself
        every = 1 if recording() else self.every or look_every(z.device)
        batched = every > 1
        book = _Book(self.tol, scale, floor)
        found, visited, value = [r], [z], None  # residuals and iterates since the last look
        start, n, look, evaluations, keep, method = None, 0, every if batched else 0, 1.0, None, None
        while True:
            if n == look or n == self.max_iterations:
                norms = _norms(found)
                news = book.look(norms)
                start = norms[0] if start is None else start
                if n <= every and not in_units and not book.in_range(first):
                    return first
                best = _best(visited, book.place, news)
                found, visited, in_units = [], [best], True
                alive = count(book.active)
                if not alive or n == self.max_iterations:
                    break
                look = n + (book.next_look(every, n) if batched else 1)
                if not differentiable and alive <= (FEW if batched else ALONE) * len(z):
                    value = torch.empty_like(as_rows(guess)) if value is None else value
                    keep, gone, places = (upload(rows, z) for rows in book.drop())
                    value.index_copy_(0, places, best.index_select(0, gone))
                    z, r, *samples = select(keep, z, r, *samples)
                    visited, flat = list(select(keep, best)), _flat(residual, guess, samples)
            iterate = Iterate(z, r, flat, keep, batched)
            keep = None
            if method is None:
                method = self.steps(iterate)
                step = next(method)
            else:
                step = method.send(iterate)
            if differentiable and not everywhere(book.active):
                step = torch.where(
                    upload(book.active, z)[:, None], step, 0
                )  # frozen in place: autograd needs the shapes to stay
            z = z + step
            r = flat(z)
            n, evaluations = n + 1, evaluations + len(z) / batch
            found.append(r)
            visited.append(z)
        value = best if value is None else value.index_copy_(0, upload(book.rows, best), best)
        final, iterations, converged = book.outcome()
        scale = start if scale is None else scale
        left = relative(final, book.scale)
        if self.on_failure == "raise" and not everywhere(converged):
            raise Unsolved(failure_sentence(converged, left, self))
        return Solution(value.view(guess.shape), converged, left, iterations, evaluations, scale=scale, norm=final)

    def _fixed(
        self,
        residual: Callable[..., State],
        guess: State,
        samples: Sequence[Tensor],
        scale: Tensor | None,
        floor: Tensor | float,
    ) -> Solution:
        """As `__call__`, without a branch that depends on data."""
        flat, z = _flat(residual, guess, samples), as_rows(guess)
        r = flat(z)
        norm = row_norm(r.detach())
        sound, scale = safe_to_square(norm, r, floor), norm if scale is None else scale
        best_z, best, method = z, norm, self.steps(Iterate(z, r, flat))
        step = next(method)
        for n in range(1, self.max_iterations + 1):
            z = z + step
            r = flat(z)
            norm = row_norm(r.detach())
            better = norm < best
            best_z, best = torch.where(better[:, None], z, best_z), torch.where(better, norm, best)
            if n < self.max_iterations:
                step = method.send(Iterate(z, r, flat))
        # There is no change of units: what may leave the range of the dtype is not converged.
        return Solution(
            best_z.view(guess.shape),
            (best <= self.tol * scale + floor) & sound,
            relative(best, scale),
            torch.full(norm.shape, self.max_iterations, dtype=torch.int64, device=norm.device),
            1.0 + self.max_iterations,
            scale=scale,
            norm=best,
        )


def _flat(residual: Callable[..., State], guess: State, samples: Sequence[Tensor]) -> Callable[[Rows], Rows]:
    """The residual as a function of rows."""

    def flat(z: Rows) -> Rows:
        r = residual(z.view(len(z), *guess.shape[1:]), *samples)
        if r.shape[1:] != guess.shape[1:]:
            raise InputError(f"the residual has shape {tuple(r.shape)} at a state of shape {tuple(guess.shape)}")
        return as_rows(r)

    return flat


def _norms(found: list[Tensor]) -> Tensor:
    """(count, rows) norms of residuals."""
    return row_norm(found[0].detach())[None] if len(found) == 1 else torch.linalg.vector_norm(torch.stack(found), dim=2)


def _best(visited: list[Tensor], place: Any, news: str) -> Tensor:
    """Of each row the iterate that is best: `visited` holds the best one before and those since; `place` says which it is."""
    if news == "last":
        return visited[-1]
    if news == "none":
        return visited[0]
    if len(visited) > 2:
        place = upload(place, visited[0])
        return torch.stack(visited)[place, torch.arange(len(place), device=place.device)]
    before, z = visited
    if mapping():
        return torch.where(upload(place > 0, z)[:, None], z, before)
    kept = upload((place == 0).nonzero()[:, 0], z)
    return z.index_copy(0, kept, before.index_select(0, kept))


class _Book:
    """What is known of the rows, on the host: it decides, and the device need not be waited for in between.

    place: (rows,) the best iterate since the last look, 0 for the one before. active: (rows,) whether it is unsolved.
    """

    def __init__(self, tol: float, scale: Tensor | None, floor: Tensor | float) -> None:
        self.tol = tol
        self.scale: Any = scale
        self.floor: Any = floor
        self.best: Any = None
        self.rows: Any = None  # places in the batch, once some have gone
        self.place: Any = None
        self.final: Any = None
        self.active: Any = None

    def look(self, norms: Tensor) -> str:
        """Take the norms (count, rows) of the iterates since the last look; "last" where the last one is the best of every row,
        "none" where it is the one before, else "some"."""
        first = self.best is None
        given = [part for part in (self.scale, self.floor) if isinstance(part, Tensor)] if first else []
        host = list((torch.cat([torch.stack(given), norms]) if given else norms).cpu())
        if first:
            scale = None if self.scale is None else host.pop(0)
            self.floor = host.pop(0) if isinstance(self.floor, Tensor) else self.floor
            self.first = self.best = host.pop(0)
            self.scale = self.best if scale is None else scale
            self.whole = self.target = self.tol * self.scale + self.floor
            self.active, self.rows = self.best > self.target, None
            self.iterations = torch.zeros(self.best.shape, dtype=torch.int64)
            self.final = None
        self.place, better = None, None
        for index, norm in enumerate(host, 1):
            better = self.active & (norm < self.best)
            self.best = torch.where(better, norm, self.best)
            self.place = index * better if self.place is None else torch.where(better, index, self.place)
            self.iterations = self.iterations + self.active
            self.active = self.active > (norm <= self.target)  # and not: NaN is unsolved
        if better is None:
            return "none"
        return "last" if everywhere(better) else "some" if anywhere(self.place > 0) else "none"

    def in_range(self, first: Tensor) -> bool:
        """Whether the squares of the first residual stay in the range of its dtype."""
        info = torch.finfo(self.first.dtype)
        inside = (self.first > info.tiny**0.25) & (self.first < info.max**0.25)
        return everywhere(inside) or everywhere(safe_to_square(self.first, first.cpu(), self.floor))

    def next_look(self, every: int, done: int) -> int:
        """Iterations until the next look is due."""
        first = self.first if self.rows is None else self.first[self.rows]
        return next_look(every, done, *(part[self.active] for part in (first, self.best, self.target)))

    def drop(self) -> tuple[Tensor, Tensor, Tensor]:
        """Go on with the rows unsolved; (their numbers, the numbers of the others, the places of those in the batch)."""
        if self.rows is None:
            self.rows, self.final, self.count = torch.arange(len(self.best)), self.best.clone(), self.iterations.clone()
        keep, gone = self.active.nonzero()[:, 0], (~self.active).nonzero()[:, 0]
        places = self.rows[gone]
        self.final[places], self.count[places] = self.best[gone], self.iterations[gone]
        self.best, self.target, self.iterations, self.active, self.rows = select(
            keep, self.best, self.target, self.iterations, self.active, self.rows
        )
        return keep, gone, places

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        """(norm of the best residual, iterations, whether it is small enough), each (B,)."""
        if self.rows is not None:
            self.final[self.rows], self.count[self.rows] = self.best, self.iterations
            self.best, self.iterations = self.final, self.count
        return self.best, self.iterations, self.best <= self.whole


def failure_sentence(converged: Tensor, residual: Tensor, solver: Any) -> str:
    """One sentence that names the samples that failed, their worst residual and what to try."""
    converged, residual = over_maps(converged, torch.all), over_maps(residual, torch.amax)
    failed = (~converged).nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, failed[:8])) + (", ..." if len(failed) > 8 else "")
    return (
        f"{len(failed)} of {len(converged)} samples did not reach tol={solver.tol:g} in {solver.max_iterations} iterations "
        f"(samples {shown}; worst relative residual {residual.max():.2g}): raise max_iterations, take more substeps, or "
        f"use another solver"
    )


def select(keep: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows `keep` of each tensor."""
    return tuple(tensor.index_select(0, keep) for tensor in tensors)
