"""What the solves of one pass through a stage leave behind, and where they start."""

import torch

from odenets.solve.solution import Solution
from odenets.solve.transforms import transforming


class Guesses:
    """Where each solve of a pass starts, and where it ended: a warm start's memory, held by the caller.

    Args:
        known: For each solve of the pass its increments (B, ...) and the scale (B,) of its tolerance; None: cold starts.
    """

    def __init__(self, known=None):
        self.known, self._ends = known, {}

    def start(self, base, first):
        """(increments, scale) for the next solve of the rows from `first` on; zeros and None where nothing is known."""
        if self.known is None:
            return torch.zeros_like(base), None
        increments, scale = self.known[len(self._ends.get(first, ()))]
        return increments[first : first + len(base)], scale[first : first + len(base)]

    def end(self, solution, first):
        """Note where a solve of the rows from `first` on ended."""
        self._ends.setdefault(first, []).append((solution.value.detach(), solution.scale.detach()))

    def found(self):
        """What this pass found, as the next one's `known`."""
        pieces = [self._ends[first] for first in sorted(self._ends)]
        return [tuple(torch.cat(parts) for parts in zip(*solve)) for solve in zip(*pieces)]


class Record:
    """The entries of a pass, a `Solution` for each equation solved, forward or backward.

    Args:
        guesses: `Guesses` for warm starts, or None.
        entries, first: The record of a piece of the batch writes into the whole one's entries; its first sample.
    """

    def __init__(self, guesses=None, entries=None, first=0):
        self.guesses, self.entries, self.first = guesses, [] if entries is None else entries, first

    def piece(self, first):
        """The record of the samples from `first` on."""
        return Record(self.guesses, self.entries, first)

    def append(self, entry):
        """Add an entry; under torch.func.vmap its figures are the worst of those that are mapped over."""
        if transforming() and isinstance(entry, Solution):
            entry = entry.over_maps()
        self.entries.append(entry._replace(start=self.first) if self.first else entry)

    def solved(self, solve, base):
        """solve(guess, scale), its outcome recorded; see `Solver.__call__`."""
        guess, scale = self.guesses.start(base, self.first) if self.guesses else (torch.zeros_like(base), None)
        solution = solve(guess, scale)
        if self.guesses:
            self.guesses.end(solution, self.first)
        self.append(solution._replace(value=None, scale=None))
        return solution.value
