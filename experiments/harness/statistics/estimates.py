"""Means and paired differences with the interval each deserves: over seeds, or over images where there is one seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit

from odenets.errors import InputError

LEVEL = 0.95
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    value, low, high: in the unit of the data. n: number of units. over: "seeds" (another draw of initial weights and
    batches, the same images), "images" (another draw of images, the same trained nets) or "seeds and images". level: coverage
    aimed at. images: share of the variance that the images cause, where both vary.
    """

    value: float
    low: float
    high: float
    n: int
    over: str
    level: float = LEVEL
    images: float | None = None

    @property
    def verdict(self) -> str:
        """higher, lower, or "cannot tell" where the interval covers zero, or has no width and so measures no noise."""
        if not self.high - self.low > 1e-12 or self.low <= 0 <= self.high:
            return "cannot tell"
        return "higher" if self.value > 0 else "lower"


def t_interval(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Mean of at least two values with Student's interval, n - 1 degrees of freedom.

    With three seeds t is 4.3 where a normal interval has 1.96: wide, as three values deserve.
    Source: Student (1908), The probable error of a mean.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        raise InputError(f"an interval over seeds needs at least two of them, got {n}")
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / sqrt(n)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n, "seeds", level)


def wilson(successes: int, total: int, level: float = LEVEL) -> Estimate:
    """A proportion with Wilson's score interval, which stays within [0, 1] and keeps a width at 0 and 1.

    Source: Wilson (1927), JASA 22; Brown, Cai, DasGupta (2001), section 3.1.1.
    """
    if not 0 <= successes <= total or total < 1:
        raise InputError(f"successes must lie in 0..total and total be positive, got {successes} of {total}")
    z, p = ndtri((1 + level) / 2), successes / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    # At 0 and at 1 an end coincides with p in exact arithmetic; rounding must not push it beyond.
    return Estimate(p, float(min(p, centre - half)), float(max(p, centre + half)), total, "images", level)


def paired_images(correct: ArrayLike, reference: ArrayLike, level: float = LEVEL) -> Estimate:
    """Difference of two accuracies on the same images, with an interval from the images on which the two disagree.

    Half an image is added to each cell of the 2x2 table, so that agreement everywhere does not pass for certainty.

    Args:
        correct, reference: (n,) bool, the same images in the same order.

    Source: Agresti & Min (2005), Statistics in Medicine 24, 729-740, adjusted Wald interval.
    """
    correct, reference = np.asarray(correct, dtype=bool), np.asarray(reference, dtype=bool)
    if correct.shape != reference.shape or correct.ndim != 1 or not len(correct):
        raise InputError(f"paired images need two masks of one length, got shapes {correct.shape} and {reference.shape}")
    n = len(correct)
    won, lost = int((correct & ~reference).sum()), int((~correct & reference).sum())
    p, q = (won + 0.5) / (n + 2), (lost + 0.5) / (n + 2)
    half = ndtri((1 + level) / 2) * sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Estimate((won - lost) / n, float(p - q - half), float(p - q + half), n, "images", level)


def middle(values: Sequence[T]) -> T:
    """The middle of sorted values, the upper of two: chosen by position, not by what was found there."""
    return values[len(values) // 2]
