"""What the solves of one pass through a stage leave behind, and where they start."""

from collections.abc import Sequence
from typing import Any

import torch

from odenets.solve.solution import Solution
from odenets.solve.transforms import transforming
from odenets.types import PerSample, State

Known = tuple[State, PerSample]  # of a solve: its increments (B, ...) and the scale (B,) of its tolerance


class Guesses:
    """Where each solve of a pass starts, and where it ended: a warm start's memory, held by the caller.

    Args:
        known: What is `Known` of each solve of the pass; None: cold starts.
        adjoints: The solution (B, ...) of the backward pass's linear system for each solve; None: they start at zero.
    """

    def __init__(self, known: Sequence[Known] | None = None, adjoints: Sequence[State] | None = None) -> None:
        self.known, self.adjoints = known, adjoints
        self._ends: dict[int, list[Known]] = {}
        self._adjoints: dict[tuple[int, int], State] = {}

    def start(self, base: State, first: int) -> tuple[State, PerSample | None]:
        """(increments, scale) for the next solve of the rows from `first` on; zeros and None where nothing is known."""
        if self.known is None:
            return torch.zeros_like(base), None
        increments, scale = self.known[len(self._ends.get(first, ()))]
        return increments[first : first + len(base)], scale[first : first + len(base)]

    def end(self, solution: Solution, first: int) -> None:
        """Note where a solve of the rows from `first` on ended."""
        self._ends.setdefault(first, []).append((solution.value.detach(), solution.scale.detach()))

    def adjoint(self, first: int) -> "Adjoint":
        """That of the last solve of the rows from `first` on."""
        return Adjoint(self, len(self._ends[first]) - 1, first)

    def found(self) -> list[Known]:
        """What this pass found, as the next one's `known`."""
        pieces = [self._ends[first] for first in sorted(self._ends)]
        return [(torch.cat([z for z, _ in solve]), torch.cat([scale for _, scale in solve])) for solve in zip(*pieces)]

    def found_adjoints(self) -> list[State] | None:
        """What the backward passes through this one found so far, as the next one's `adjoints`; None where one is missing."""
        count = len(self._ends[0]) if self._ends else 0
        keys = [[(index, first) for first in sorted(self._ends)] for index in range(count)]
        if any(key not in self._adjoints for row in keys for key in row):
            return None
        return [torch.cat([self._adjoints[key] for key in row]) for row in keys]


class Adjoint:
    """Where the linear system of a backward pass starts, up to a factor for each row, and where it ends."""

    def __init__(self, guesses: Guesses, index: int, first: int) -> None:
        self.guesses, self.index, self.first = guesses, index, first

    def start(self, count: int) -> State | None:
        """The guess for `count` rows."""
        known = self.guesses.adjoints
        return None if known is None else known[self.index][self.first : self.first + count]

    def end(self, u: State) -> None:
        """Note the solution; what is not finite is no guess."""
        self.guesses._adjoints[self.index, self.first] = torch.nan_to_num(u, posinf=0.0, neginf=0.0)


class Record:
    """The entries of a pass, a `Solution` for each equation solved, forward or backward.

    Args:
        guesses: `Guesses` for warm starts, or None.
        entries, first: The record of a piece of the batch writes into the whole one's entries; its first sample.
    """

    def __init__(self, guesses: Guesses | None = None, entries: list[Any] | None = None, first: int = 0) -> None:
        self.guesses, self.entries, self.first = guesses, [] if entries is None else entries, first

    def piece(self, first: int) -> "Record":
        """The record of the samples from `first` on."""
        return Record(self.guesses, self.entries, first)

    def append(self, entry: Any) -> None:
        """Add an entry; under torch.func.vmap its figures are the worst of those that are mapped over."""
        if transforming() and isinstance(entry, Solution):
            entry = entry.over_maps()
        self.entries.append(entry._replace(start=self.first) if self.first else entry)

    def start(self, base: State) -> tuple[State, PerSample | None]:
        """Where the next solve starts, and what its residual is relative to; see `Solver.__call__`."""
        return self.guesses.start(base, self.first) if self.guesses else (torch.zeros_like(base), None)

    def end(self, solution: Solution) -> State:
        """Note how it ended; its value."""
        if self.guesses:
            self.guesses.end(solution, self.first)
        self.append(solution._replace(value=None, scale=None))
        return solution.value

    def adjoint(self) -> Adjoint | None:
        """Where the backward solve of the last equation starts."""
        return None if self.guesses is None else self.guesses.adjoint(self.first)
