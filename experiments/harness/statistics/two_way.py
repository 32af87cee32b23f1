"""One interval for what varies: seeds and test images, crossed; or splits drawn anew by the seed.

Every net of a scheme judges the same images: right or wrong is a table of seeds x images. Its mean varies because another
seed is another row effect and another image another column effect, and an interval over one of them leaves the other out.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from experiments.harness.statistics.estimates import LEVEL, Estimate
from experiments.harness.statistics.moderation import Between
from odenets.errors import InputError

Values = NDArray | np.floating  # one for each table


@dataclass(frozen=True)
class TwoWay:
    """A mean of a table of seeds x images, and its variance by source.

    mean: of all cells. seeds, images: what each adds to the variance of the mean. degrees: of freedom of their sum. n: seeds.
    cells: images a seed has. known: degrees of freedom of the seeds' part. By `split` the images belong to the seeds, and
    `images` is the part of `seeds` that they explain.
    """

    mean: float
    seeds: float
    images: float
    degrees: float
    n: int
    cells: int
    known: float

    @property
    def variance(self) -> float:
        """Of the mean, no less than what agreement on every image still leaves open: see `paired_images`."""
        return max(self.seeds + self.images, 1 / (self.cells + 2) ** 2 / self.n)

    def errors(self, level: float) -> float:
        """Half of a symmetric interval, in standard errors: t(degrees), and no less than Student's over the seeds alone.

        Satterthwaite's degrees of freedom rise where a few seeds lie together by chance. At 95 % that does little; at the
        levels of a family one of many comparisons would be taken for a finding (33, three seeds: in one table of five).
        """
        alone = stdtrit(self.known, (1 + level) / 2) * sqrt(max(self.seeds, 0.0) / self.variance)
        return float(max(stdtrit(self.degrees, (1 + level) / 2), alone))

    @property
    def share(self) -> float:
        """Of the variance that test images cause; the rest is the seeds'."""
        total = self.seeds + self.images
        return self.images / total if total else 0.0


def mean_squares(table: NDArray) -> tuple[Values, Values, Values, Values]:
    """(mean, mean square of the rows, of the columns, of the residuals) of tables (..., rows, columns), one value a cell.

    Source: Searle, Casella, McCulloch (1992), Variance Components, section 4.3.
    """
    table = np.asarray(table, dtype=float)
    rows, columns = table.shape[-2:]
    mean, by_row, by_column = table.mean((-2, -1)), table.mean(-1), table.mean(-2)
    of_rows = columns * ((by_row - mean[..., None]) ** 2).sum(-1)
    of_columns = rows * ((by_column - mean[..., None]) ** 2).sum(-1)
    rest = ((table - mean[..., None, None]) ** 2).sum((-2, -1)) - of_rows - of_columns
    return mean, of_rows / (rows - 1), of_columns / (columns - 1), np.maximum(rest, 0) / ((rows - 1) * (columns - 1))


def two_way(table: ArrayLike, between: Between | None = None) -> TwoWay:
    """The mean of a table of seeds x images, both of them samples.

    value(seed, image) = mean + a(seed) + b(image) + e: the mean over S seeds and I images has the variance
    var(a)/S + var(b)/I + var(e)/(S I), estimated by (MS_seeds + max(0, MS_images - MS_rest)) / (S I): a negative component of
    the images counts as zero, and the seeds' part is never below Student's. Degrees of freedom are Satterthwaite's.

    Args:
        table: (seeds, images), at least two of each: 0 and 1 for an accuracy, -1, 0, 1 for a paired difference.
        between: What is known of the variance between seeds; None: what the table says.

    Source: Satterthwaite (1946), Biometrics Bulletin 2; Searle, Casella, McCulloch (1992), section 4.3; Owen (2007), Annals of
    Applied Statistics 1, for why a bootstrap of rows and columns, which counts var(e)/(S I) three times, is not used here.
    """
    table = _checked(table)
    seeds, images = table.shape
    mean, of_seeds, of_images, rest = (float(part) for part in mean_squares(table))
    between = between or Between(of_seeds / images, seeds - 1)
    own, others = images * between.variance, max(of_images - rest, 0.0)
    # MS_rest counts among what is uncertain although it cancels in part: simulated coverage is nearer to its level with it.
    parts = ((own, between.degrees), (of_images, images - 1), (rest, (seeds - 1) * (images - 1)))
    spread = sum(part**2 / degrees for part, degrees in parts)
    degrees = max((own + others) ** 2 / spread, 1.0) if spread else float(seeds - 1)
    return TwoWay(mean, own / table.size, others / table.size, degrees, seeds, images, between.degrees)


def by_split(values: ArrayLike, within: ArrayLike, train: int, test: int, between: Between | None = None) -> TwoWay:
    """The mean of values whose seeds draw training and test images anew from one pool.

    Two seeds share images, so that their values are correlated and their variance over S is too small: it is multiplied by
    1/S + test/train. That takes all variance between seeds for the data's, and is too much where most of it is that of
    initial weights and batches: the interval then covers more often than its level says, and it does not vanish with S.

    Args:
        values: (seeds,) mean over each seed's own test images.
        within: (seeds,) variance over each seed's test images, of which the mean's part is within/test.
        train, test: images in each.
        between: As in `two_way`.

    Source: Nadeau & Bengio (2003), Machine Learning 52, section 3.3, the corrected resampled t-test.
    """
    values, within = np.asarray(values, dtype=float), np.asarray(within, dtype=float)
    if values.ndim != 1 or len(values) < 2 or values.shape != within.shape:
        raise InputError(
            f"values by split need two seeds at least, and a variance for each, got {values.shape}, {within.shape}"
        )
    if train < 1 or test < 1:
        raise InputError(f"train and test must be positive numbers of images, got {train} and {test}")
    between = between or Between(values.var(ddof=1), len(values) - 1)
    variance = between.variance * (1 / len(values) + test / train)
    images = min(within.mean() / test * (1 / len(values) + test / train), variance)
    return TwoWay(
        float(values.mean()), float(variance - images), float(images), between.degrees, len(values), test, between.degrees
    )


def interval(found: TwoWay, level: float = LEVEL) -> Estimate:
    """Of a mean that may have any sign, such as a paired difference: mean -+ so many standard errors (`TwoWay.errors`)."""
    half = found.errors(level) * sqrt(found.variance)
    return _estimate(found, found.mean - half, found.mean + half, level)


def proportion(found: TwoWay, level: float = LEVEL) -> Estimate:
    """Of a share of right answers: Wilson's score interval for as many images as would give this variance.

    It stays within [0, 1] and is honest near 1, where a symmetric interval is not.

    Source: Wilson (1927), JASA 22; Dean & Pagano (2015), Journal of Survey Statistics and Methodology 3, and Franco, Little,
    Louis, Slud (2019), the same 7, for effective sample sizes.
    """
    t, p = found.errors(level), found.mean
    n = min(max(p * (1 - p), 1 / found.cells) / found.variance, found.n * found.cells)
    centre = (p + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * sqrt(p * (1 - p) / n + t**2 / (4 * n**2))
    return _estimate(found, min(p, max(centre - half, 0.0)), max(p, min(centre + half, 1.0)), level)


def _estimate(found: TwoWay, low: float, high: float, level: float) -> Estimate:
    return Estimate(found.mean, float(low), float(high), found.n, "seeds and images", level, found.share)


def _checked(table: ArrayLike) -> NDArray:
    table = np.asarray(table, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise InputError(f"seeds and images are crossed in a table with at least two of each, got shape {table.shape}")
    return table
