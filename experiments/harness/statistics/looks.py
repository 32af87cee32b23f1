"""Adding seeds until it is clear, honestly: the numbers of seeds at which one looks are fixed before, and paid for.

A group-sequential design. An anytime-valid confidence sequence (Wang & Ramdas, 2024, Electronic Journal of Statistics 18) would
allow a look after every seed; at 5 to 30 seeds its intervals are so much wider that it ends later: docs/statistics.md.
"""

from experiments.harness.statistics.verdicts import MOST_SEEDS
from odenets.errors import InputError

SCHEDULE = (5, 8, 12, 20, 30)  # seeds; beyond, half as many again
FEWEST = 3


def schedule(most: int = 30) -> tuple[int, ...]:
    """Numbers of seeds after which a run of at most `most` is looked at; the last look is at `most`."""
    if most < FEWEST:
        raise InputError(f"a run that ends when it is clear needs {FEWEST} seeds at least, got {most}")
    if most > MOST_SEEDS:
        raise InputError(f"a run that ends when it is clear takes {MOST_SEEDS} seeds at most, got {most}")
    looks = list(SCHEDULE)
    while looks[-1] < most:
        looks.append(looks[-1] * 3 // 2)
    return tuple(look for look in looks if look < most) + (most,)
