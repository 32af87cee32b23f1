"""What a comparison may claim: intervals, families of them, verdicts, looks, associations. Pure functions of arrays."""

from experiments.harness.statistics.estimates import (
    LEVEL,
    Estimate,
    accuracy,
    difference,
    middle,
    paired_images,
    t_interval,
    wilson,
)

__all__ = ["LEVEL", "Estimate", "accuracy", "difference", "middle", "paired_images", "t_interval", "wilson"]
