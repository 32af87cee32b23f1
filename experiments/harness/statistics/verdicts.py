"""What an interval of a difference says against a margin of practical equivalence, and how many seeds would say more."""

from math import sqrt

from scipy.special import ndtr

from experiments.harness.statistics.estimates import LEVEL, Estimate
from experiments.harness.statistics.two_way import TwoWay
from odenets.errors import InputError

MORE, LESS, EQUIVALENT, OPEN = "more robust", "less robust", "equivalent within the margin", "cannot tell yet"
UNMOVED = (EQUIVALENT, OPEN)  # say of no scheme that it is ahead
MARGIN = 0.02
POWER = 0.8
MOST_SEEDS = 1000  # beyond which nobody trains


def verdict(estimate: Estimate, margin: float = MARGIN) -> str:
    """One of `MORE`, `LESS`, `EQUIVALENT` and `OPEN`.

    Equivalent: the interval lies within the margin, on whichever side of 0. More, less: it lies on one side of 0 and not within
    the margin. Each is false only where the interval misses the difference, so that of a family whose intervals cover together
    with probability 95 % at most 5 % hold a false verdict.

    Args:
        estimate: Of a difference to the reference; it must have a width.
        margin: Positive, in the unit of the estimate: below it nobody would care.

    Source: Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15, for equivalence by an interval; Goeman,
    Solari, Stijnen (2010), Statistics in Medicine 29, for superiority and equivalence read off one interval.
    """
    check_margin(margin)
    if not estimate.high - estimate.low > 1e-12:
        return OPEN
    if -margin < estimate.low and estimate.high < margin:
        return EQUIVALENT
    return MORE if estimate.low > 0 else LESS if estimate.high < 0 else OPEN


def check_margin(margin: float) -> None:
    """InputError unless it is a difference of accuracies that someone could call small."""
    if not 0 < margin < 1:
        raise InputError(f"a margin of equivalence lies between 0 and 1 (0 and 100 points), got {margin}")


def chance(found: TwoWay, seeds: int, margin: float = MARGIN, level: float = LEVEL) -> float:
    """Probability that an interval over so many seeds would have a verdict, were mean and variances what they were found to be.

    The images' part of the variance stays, the seeds' falls as 1 / seeds.
    """
    check_margin(margin)
    if seeds < 2:
        raise InputError(f"an interval over seeds and images needs two seeds at least, got {seeds}")
    own, images = found.seeds * found.n / seeds, found.images
    known = found.known + seeds - found.n
    spread = own**2 / known + images**2 / max(found.cells - 1, 1)
    degrees = (own + images) ** 2 / spread if spread else known
    then = TwoWay(found.mean, own, images, degrees, seeds, found.cells, known)
    error = sqrt(then.variance)
    half = then.errors(level) * error

    def below(bound: float) -> float:
        return float(ndtr((bound - found.mean) / error))

    clear, narrow = 1 - below(half) + below(-half), max(margin - half, 0.0)
    # Between the two lies what has no verdict; where the interval is narrower than the margin there is nothing between.
    return 1.0 if narrow >= half else clear + below(narrow) - below(-narrow)


def seeds_needed(found: TwoWay, margin: float = MARGIN, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many seeds in all, more than there are, give a verdict with probability `power`; None: not even `MOST_SEEDS` do.

    A plan, not a promise: mean and variances are those of a few seeds. None says that the images are too few.
    """
    if not 0 < power < 1:
        raise InputError(f"a power lies between 0 and 1, got {power}")
    enough = (seeds for seeds in range(found.n + 1, MOST_SEEDS + 1) if chance(found, seeds, margin, level) >= power)
    return next(enough, None)
