"""At which rate do errors fall as steps get finer? The observed order of a scheme, a slope for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.harness.statistics.estimates import LEVEL, Estimate, t_interval

POINTS = 4  # the finest step sizes that a slope is taken over: coarser ones are no asymptotics
CLEAR = 10  # errors that are not so many times as large as what is uncertain of the exact solution are not their own
SLACK = 0.2  # below its order at which a slope of few steps still counts as of that order
AS_STATED, SLOWER, DIVERGES, UNKNOWN = "at its order", "slower than its order", "does not converge", "cannot tell"
CONVERGES = "converges"  # of a scheme without a stated order


@dataclass(frozen=True)
class ObservedOrder:
    """slopes: of each seed, -d log(error) / d log(steps). estimate: their mean with Student's interval; None of one seed."""

    slopes: tuple[float, ...]
    estimate: Estimate | None

    def verdict(self, order: int | None) -> str:
        """Against the scheme's own order: `AS_STATED` at an interval above it less `SLACK`, `SLOWER` at one below that."""
        if self.estimate is None:
            return UNKNOWN
        low, high = self.estimate.low, self.estimate.high
        if low <= 0:
            return DIVERGES if high <= 0 else UNKNOWN
        if order is None:
            return CONVERGES
        return AS_STATED if low >= order - SLACK else SLOWER if high < order - SLACK else UNKNOWN


def slope(steps: Sequence[int], errors: Sequence[float], uncertain: float) -> float | None:
    """-d log(error) / d log(steps), least squares over the `POINTS` finest steps whose errors are their own.

    None where there are fewer than two of these. An error that is not finite ends what is known: finer steps alone count.
    """
    known = [(n, e) for n, e in zip(steps, errors) if np.isfinite(e) and e > CLEAR * uncertain][-POINTS:]
    if len(known) < 2:
        return None
    n, e = np.log(np.array(known)).T
    return float(-np.polyfit(n, e, 1)[0])


def observed_order(slopes: Sequence[float | None], level: float = LEVEL) -> ObservedOrder:
    """The order over seeds, each of which gave a slope or None.

    Source: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.4, for orders read off errors.
    """
    known = tuple(value for value in slopes if value is not None)
    return ObservedOrder(known, t_interval(known, level) if len(known) > 1 else None)
