"""What passes did: through one stage, and through a whole network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from odenets.schemes.adaptive import AcceptedSteps
from odenets.solve.solution import Solution
from odenets.types import Counts, Flags, PerSample


@dataclass(frozen=True)
class StageStats:
    """What one pass through a stage did; every figure is computed when asked for.

    steps: number of time steps. batch, device: of the states. entries: what solves and adaptive steps left so far.
    startup_only: the scheme is a multistep one, but the stage has so few steps that only its start-up ran. solving: whether the
    scheme solves equations at all.
    """

    steps: int
    batch: int
    device: torch.device
    entries: list[Solution | AcceptedSteps]
    startup_only: bool = False
    solving: bool = False

    @property
    def solutions(self) -> tuple[Solution, ...]:
        """One `Solution` (without its value) for each equation solved, forward and, so far, backward."""
        return tuple(entry for entry in self.entries if isinstance(entry, Solution))

    @property
    def accepted(self) -> tuple[AcceptedSteps, ...]:
        """Of an adaptive scheme, the `AcceptedSteps` of each sample and interval."""
        return tuple(entry for entry in self.entries if not isinstance(entry, Solution))

    def _per_sample(
        self, field: str, combine: Callable[..., torch.Tensor], start: bool | float, backward: bool = False
    ) -> torch.Tensor:
        result = torch.full((self.batch,), start)
        for solution in self.solutions:
            if solution.backward == backward:
                values = getattr(solution, field)
                values = torch.full(solution.converged.shape, torch.nan) if values is None else values.to(result)
                part = slice(solution.start, solution.start + len(values))
                result[part] = combine(result[part], values)
        return result.to(self.device)

    @property
    def converged(self) -> Flags:
        """(B,) bool: every equation of the forward pass reached its tolerance."""
        return self._per_sample("converged", torch.logical_and, True)

    @property
    def residual(self) -> PerSample:
        """(B,) largest relative residual of the forward pass."""
        return self._per_sample("residual", torch.maximum, 0.0)

    @property
    def absolute_residual(self) -> PerSample:
        """(B,) largest residual of the forward pass itself, whatever it is relative to; NaN where a solve tells none."""
        return self._per_sample("norm", torch.maximum, 0.0)

    @property
    def iterations(self) -> Counts:
        """(B,) iterations of the forward pass, all equations together."""
        return self._per_sample("iterations", torch.add, 0)

    @property
    def backward_converged(self) -> Flags:
        """(B,) bool: every linear system of the backward passes so far reached its tolerance."""
        return self._per_sample("converged", torch.logical_and, True, backward=True)

    @property
    def backward_iterations(self) -> Counts:
        """(B,) iterations of the backward passes so far."""
        return self._per_sample("iterations", torch.add, 0, backward=True)

    @property
    def unconverged(self) -> int:
        """Number of samples with an equation of the forward pass unsolved."""
        return int((~self.converged).sum())

    @property
    def solves(self) -> int:
        """Number of equations solved for each sample in the forward pass."""
        return sum(not solution.backward and solution.start == 0 for solution in self.solutions)

    @property
    def evaluations(self) -> float:
        """Evaluations of the fields spent on the equations of the forward pass, the mean per sample."""
        spent = (solution.evaluations * len(solution.converged) for solution in self.solutions if not solution.backward)
        return sum(spent) / max(1, self.batch)


@dataclass(frozen=True)
class Outcome:
    """What became of the equations of one evaluation of a network, see `odenets.evaluate`; computed when asked for.

    batch: Number of images. passes: each pass through a stage that solves equations, with the images that it belongs to. Where
    such a pass has other than one state for each of them, they share the worst of its states.
    """

    batch: int
    passes: tuple[tuple[slice, StageStats], ...]

    @classmethod
    def of(cls, batch: int, passes: Iterable[StageStats]) -> "Outcome":
        """That of `batch` images evaluated together, from all `StageStats` of their evaluation."""
        return cls(batch, tuple((slice(0, batch), found) for found in passes if found.solving))

    @classmethod
    def joined(cls, outcomes: Iterable["Outcome"]) -> "Outcome":
        """That of images evaluated in parts."""
        passes: list[tuple[slice, StageStats]] = []
        batch = 0
        for outcome in outcomes:
            passes += [(slice(batch + part.start, batch + part.stop), found) for part, found in outcome.passes]
            batch += outcome.batch
        return cls(batch, tuple(passes))

    @property
    def converged(self) -> Flags | None:
        """(B,) bool: every equation was solved; None where there was none."""
        return self._worst("converged", torch.all, torch.logical_and, True)

    @property
    def backward_converged(self) -> Flags | None:
        """(B,) bool: so was every linear system of the backward passes through it so far; None as above."""
        return self._worst("backward_converged", torch.all, torch.logical_and, True)

    @property
    def residual(self) -> PerSample | None:
        """(B,) largest relative residual; None as above."""
        return self._worst("residual", torch.max, torch.maximum, 0.0)

    @property
    def solutions(self) -> list[Solution]:
        """The `Solution`s of all passes."""
        return [solution for _, found in self.passes for solution in found.solutions]

    def _worst(
        self, figure: str, of_all: Callable[..., torch.Tensor], of_two: Callable[..., torch.Tensor], start: bool | float
    ) -> torch.Tensor | None:
        if not self.passes:
            return None
        result = torch.full((self.batch,), start, device=self.passes[0][1].device)
        for part, found in self.passes:
            values = getattr(found, figure)
            own = result[part]
            result[part] = of_two(own, values.to(own.dtype) if len(values) == len(own) else of_all(values).expand_as(own))
        return result
