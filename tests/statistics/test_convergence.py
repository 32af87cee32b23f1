"""The observed order: a slope over the finest steps, its interval over seeds, what it says of a scheme's own order."""

import numpy as np
import pytest
from scipy import stats

from experiments.harness.statistics.convergence import observed_order, slope

STEPS = (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_power_of_the_steps_has_its_exponent(order):
    assert slope(STEPS, [3.0 * n**-order for n in STEPS], 0.0) == pytest.approx(order)


def test_coarse_steps_blow_ups_and_the_floor_of_the_reference_do_not_count():
    errors = [np.inf, 50.0, *(0.1 * n**-2.0 for n in STEPS[2:])]
    assert slope(STEPS, errors, 0.0) == pytest.approx(2)
    floored = [max(n**-2.0, 2e-3) for n in STEPS]
    assert slope(STEPS, floored, 3e-4) == pytest.approx(2) and slope(STEPS, floored, 0.0) < 1.9
    assert slope(STEPS, errors, 1.0) is None and slope((1,), (0.1,), 0.0) is None


def test_the_interval_is_students():
    slopes = [0.9, 1.1, 1.05]
    found = observed_order([*slopes, None])
    low, high = stats.t.interval(0.95, 2, np.mean(slopes), stats.sem(slopes))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high)) and found.slopes == tuple(slopes)


@pytest.mark.parametrize(
    "slopes, order, said",
    [
        ([0.98, 0.99, 1.0], 1, "at its order"),
        ([2.4, 2.42, 2.41], 2, "at its order"),  # more than the theory promises is no fault
        ([2.0, 2.02, 2.01], 4, "slower than its order"),
        ([-0.1, -0.11, -0.12], 1, "does not converge"),
        ([1.0, 3.0, 2.0], 2, "cannot tell"),
        ([0.5, -0.5, 0.1], 1, "cannot tell"),
        ([1.0, 1.01, 1.02], None, "converges"),
        ([1.0], 1, "cannot tell"),
        ([None, None], 1, "cannot tell"),
    ],
)
def test_verdicts(slopes, order, said):
    assert observed_order(slopes).verdict(order) == said
