"""What a comparison may claim: intervals, families of them, verdicts, looks, associations. Pure functions of arrays."""

from experiments.harness.statistics.estimates import LEVEL, Estimate, middle, paired_images, t_interval, wilson
from experiments.harness.statistics.looks import schedule
from experiments.harness.statistics.masks import Gap, accuracy, difference, gaps
from experiments.harness.statistics.verdicts import EQUIVALENT, LESS, MARGIN, MORE, OPEN, UNMOVED, check_margin

__all__ = [
    "EQUIVALENT",
    "LESS",
    "LEVEL",
    "MARGIN",
    "MORE",
    "OPEN",
    "UNMOVED",
    "Estimate",
    "Gap",
    "accuracy",
    "check_margin",
    "difference",
    "gaps",
    "middle",
    "paired_images",
    "schedule",
    "t_interval",
    "wilson",
]
