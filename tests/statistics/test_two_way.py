"""Intervals over seeds and images: by hand, against SciPy and statsmodels, and what they cover."""

import warnings

import numpy as np
import pytest
from scipy import stats

from experiments.benchmarks.coverage import WORLDS, crossed, split
from experiments.harness.statistics.two_way import by_split, interval, mean_squares, proportion, two_way


def test_mean_squares_by_hand():
    # Rows differ by 4 in their means, columns by 1; nothing is left: 4 = 2 * (1 + 1), 1 = 2 * (.25 + .25).
    mean, rows, columns, rest = mean_squares(np.array([[0.0, 1.0], [4.0, 5.0]]))
    assert (mean, rows, columns, rest) == (2.5, 16.0, 1.0, 0.0)


def test_images_alike_leave_students_interval():
    """Rows of one value each: the table is a sample of seeds."""
    values = np.array([0.1, -0.2, 0.4, 0.3])
    found = interval(two_way(np.tile(values[:, None], 50)))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high)) and found.images == 0 and found.over == "seeds and images"


def test_seeds_alike_leave_students_interval_over_images():
    values = np.random.default_rng(0).normal(size=40)
    found = interval(two_way(np.tile(values, (6, 1))))
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high)) and found.images == pytest.approx(1)


def test_components_are_those_of_a_mixed_model():
    """Balanced tables have closed forms; REML finds the same by iteration."""
    formula = pytest.importorskip("statsmodels.formula.api", reason="statsmodels is not installed")
    import pandas

    random = np.random.default_rng(1)
    table = random.normal(size=(6, 1)) + 0.7 * random.normal(size=12) + 0.5 * random.normal(size=(6, 12))
    _, seeds, images, rest = mean_squares(table)
    row, column = np.indices(table.shape)
    data = pandas.DataFrame({"y": table.ravel(), "s": row.ravel(), "i": column.ravel(), "one": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = formula.mixedlm("y ~ 1", data, groups="one", re_formula="0", vc_formula={"s": "0 + C(s)", "i": "0 + C(i)"}).fit()
    expected = dict(zip(fit.model.exog_vc.names, fit.vcomp))
    assert [(seeds - rest) / 12, (images - rest) / 6, rest] == pytest.approx(
        [expected["s"], expected["i"], fit.scale], rel=2e-3
    )
    assert two_way(table).variance == pytest.approx(fit.bse_fe.iloc[0] ** 2, rel=2e-3)


def test_agreement_is_not_certainty_and_a_proportion_stays_one():
    nothing = interval(two_way(np.zeros((5, 100))))
    assert nothing.low < 0 < nothing.high < 0.02
    for right in (np.ones((5, 100)), np.zeros((5, 100))):
        found = proportion(two_way(right))
        assert 0 <= found.low <= found.value <= found.high <= 1 and 0 < found.high - found.low < 0.05


def test_half_of_what_varies_is_named():
    random = np.random.default_rng(0)
    table = random.normal(size=(20, 1)) / np.sqrt(20) + random.normal(size=200) / np.sqrt(10) / 10**-0.5 * 0.7
    assert two_way(table).share == pytest.approx(0.5, abs=0.25)


def test_the_corrected_interval_by_hand():
    values = np.array([0.02, 0.05, -0.01, 0.04])
    found = interval(by_split(values, np.full(4, 0.01), train=300, test=100))
    half = stats.t.ppf(0.975, 3) * np.sqrt((1 / 4 + 1 / 3) * values.var(ddof=1))
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.images == pytest.approx(0.01 / 100 / values.var(ddof=1))


@pytest.mark.parametrize("world", WORLDS[:2])
def test_it_covers_at_five_seeds(world):
    difference, accuracy, *_ = crossed(world, 5, 150)
    assert difference > 0.89 and accuracy > 0.87


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_intervals_cover(world, seeds):
    """At least 0.93 and at most 0.97, give or take three standard errors of 2,000 draws at 0.95."""
    difference, accuracy, *_ = crossed(world, seeds, 2000)
    assert 0.93 - 0.015 <= difference <= 0.97 + 0.015 and 0.93 - 0.015 <= accuracy <= 0.97 + 0.015


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_the_correction_is_exact_for_images_and_safe_for_seeds(seeds):
    assert 0.93 <= split(1.0, seeds, 1000)[0] <= 0.985
    corrected, student = split(0.5, seeds, 1000)
    assert corrected >= 0.95 and student < 0.93


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: two_way([[1, 0, 1]]), r"at least two of each, got shape \(1, 3\)"),
        (lambda: two_way([1, 0, 1]), "at least two of each"),
        (lambda: by_split([0.1], [0.1], 10, 10), "two seeds at least"),
        (lambda: by_split([0.1, 0.2], [0.1, 0.1], 0, 10), "got 0 and 10"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
