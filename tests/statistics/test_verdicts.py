"""Verdicts, families and looks: by hand, against SciPy and statsmodels, and how often they are false."""

import numpy as np
import pytest
from scipy import stats

from experiments.benchmarks.coverage import WORLDS, World, family, moderated, stopping, t_sequence, tables, verdicts
from experiments.harness.statistics.estimates import Estimate
from experiments.harness.statistics.families import pointwise_level
from experiments.harness.statistics.looks import schedule
from experiments.harness.statistics.two_way import TwoWay, two_way
from experiments.harness.statistics.verdicts import EQUIVALENT, LESS, MORE, OPEN, chance, seeds_needed, verdict

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "low, high, said",
    [
        (0.01, 0.05, MORE),
        (-0.05, -0.001, LESS),
        (-0.01, 0.015, EQUIVALENT),
        (0.001, 0.019, EQUIVALENT),
        (-0.01, 0.03, OPEN),
        (-0.02, 0.01, OPEN),
        (0.0, 0.03, OPEN),
        (0.05, 0.05, OPEN),
    ],
)
def test_verdicts_by_hand(low, high, said):
    assert verdict(Estimate((low + high) / 2, low, high, 5, "seeds and images"), 0.02) == said


def test_equivalence_is_two_one_sided_tests():
    """The interval lies within the margin where both one-sided tests at half its error reject."""
    weights = pytest.importorskip("statsmodels.stats.weightstats", reason="statsmodels is not installed")
    for shift in (0.0, 0.005, 0.012):
        values = shift + 0.01 * RNG.normal(size=12)
        low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
        p = weights.DescrStatsW(values).ttost_mean(-0.02, 0.02)[0]
        assert (verdict(Estimate(values.mean(), low, high, 12, ""), 0.02) == EQUIVALENT) == (p < 0.025)


def test_power_is_that_of_the_t_test():
    """But for the noncentral t, in whose place a normal distribution stands."""
    power = pytest.importorskip("statsmodels.stats.power", reason="statsmodels is not installed")
    variance = 0.04**2
    for seeds in (8, 20, 60):
        found = TwoWay(0.03, variance / 5, 0.0, 4, 5, 450, 4)
        expected = power.TTestPower().power(0.03 / 0.04, seeds, 0.05)
        assert chance(found, seeds, margin=1e-9) == pytest.approx(expected, abs=0.06)


def test_seeds_needed_are_enough_and_none_where_images_are_too_few():
    found = TwoWay(0.0, 0.03**2 / 5, 1e-6, 4, 5, 450, 4)
    needed = seeds_needed(found)
    assert chance(found, needed) >= 0.8 > chance(found, needed - 1) and needed > 5
    assert seeds_needed(TwoWay(0.019, 0.03**2 / 5, 0.01**2, 4, 5, 450, 4)) is None


def test_a_family_of_one_is_no_family_and_copies_are_one():
    values = RNG.normal(size=(8, 1))
    assert pointwise_level(values) == 0.95 == pointwise_level(np.tile(values, 5))
    several = pointwise_level(RNG.normal(size=(8, 6)))
    assert 0.95 < several <= 1 - 0.05 / 6 / 1.1


def test_many_seeds_give_dunnetts_level():
    """Differences to one reference, correlated by 1/2."""
    shared = RNG.normal(size=(200, 1))
    values = np.sqrt(0.5) * (shared + RNG.normal(size=(200, 4)))
    expected = stats.dunnett(*RNG.normal(size=(4, 400)), control=RNG.normal(size=400))
    critical = expected.confidence_interval().high - (expected.statistic * 0 + expected._mean_samples - expected._mean_control)
    quantile = (critical / (expected._std * np.sqrt(2 / 400))).mean()
    assert 2 * stats.t.sf(quantile, 199) == pytest.approx(1 - pointwise_level(values), rel=0.12)


def test_pococks_level_at_many_seeds():
    """Five equally spaced looks at nearly normal values: 0.0158 (Jennison & Turnbull, 2000, table 2.1: 2.413)."""
    level = pointwise_level(RNG.normal(size=(100, 1)), looks=(100, 200, 300, 400, 500), draws=20_000)
    assert 1 - level == pytest.approx(0.0158, rel=0.15)


def test_the_schedule_ends_at_its_end():
    assert schedule(30) == (5, 8, 12, 20, 30) and schedule(4) == (4,) and schedule(50) == (5, 8, 12, 20, 30, 45, 50)


def test_stopping_by_looks_is_honest_and_looking_anyway_is_not():
    found = stopping(0.0, 5.0, 4000)
    assert found["looks fixed before"][2] <= 0.06 < 0.1 < found["looking anyway"][2]
    assert found["confidence sequence"][2] <= 0.05


def test_the_confidence_sequence_by_its_likelihood_ratio():
    """At its end the mixture's ratio is 1/alpha, integrated numerically."""
    values = RNG.normal(size=(1, 9))
    mean, half = t_sequence(values)
    t = np.sqrt(9) * half[0] / values.std(ddof=1)
    effects = np.linspace(-12, 12, 4001)
    ratio = (stats.nct.pdf(t, 8, effects * 3) / stats.t.pdf(t, 8) * stats.norm.pdf(effects)).sum() * (effects[1] - effects[0])
    assert ratio == pytest.approx(20, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("comparisons, correlation", [(4, 0.8), (12, 0.5)])
@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_false_verdicts_of_a_family(comparisons, correlation, seeds):
    assert family(comparisons, correlation, seeds, 600) <= 0.05 + 0.018  # two standard errors


@pytest.mark.slow
@pytest.mark.parametrize("schemes", [10, 34])
@pytest.mark.parametrize(("unlike", "apart", "most"), [(1, 0, 0.05), (5, 0, 0.071), (1, 6, 0.05)])
def test_false_findings_by_variances_told_by_one_another(schemes, unlike, apart, most):
    """5 %, but 7 where half of the schemes scatter five times as much, as docs/statistics.md says; two standard errors."""
    assert moderated(schemes, 5, 2000, unlike, apart) <= most + 0.0115


@pytest.mark.slow
@pytest.mark.parametrize(("schemes", "seeds"), [(2, 2), (3, 3), (9, 3), (9, 5), (10, 3), (34, 3), (34, 5)])
def test_false_findings_of_a_table(schemes, seeds):
    """Whole tables of masks: 34 schemes and three seeds had one in every fifth, where Satterthwaite stood alone."""
    assert tables(schemes, seeds, 200)[0] <= 0.05 + 0.031  # two standard errors


@pytest.mark.slow
@pytest.mark.parametrize("comparisons, correlation", [(1, 0.0), (4, 0.8)])
def test_false_verdicts_of_a_family_that_stops_when_it_is_clear(comparisons, correlation):
    assert family(comparisons, correlation, 0, 300, looks=schedule(30)) <= 0.05 + 0.025


@pytest.mark.slow
@pytest.mark.parametrize("difference", [0.0, 1.0, 1.99, 2.01])
@pytest.mark.parametrize("deviation", [1.5, 2.5, 5.0])
def test_false_verdicts_under_stopping(difference, deviation):
    found = stopping(difference, deviation, 20_000)
    assert found["looks fixed before"][2] <= 0.05 and found["confidence sequence"][2] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_false_verdicts_at_a_fixed_number_of_seeds(seeds):
    edge = World("a difference of the margin", (0.5, 0.582), 0.14, 0.25)
    for world in (*WORLDS, edge):
        assert verdicts(world, seeds, 500)[1] <= 0.05 + 0.02


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: verdict(Estimate(0, -1, 1, 3, ""), 0.0), "margin of equivalence lies between 0 and 1"),
        (lambda: verdict(Estimate(0, -1, 1, 3, ""), 2), "got 2"),
        (lambda: verdict(Estimate(0, -1, 1, 3, ""), float("nan")), "got nan"),
        (lambda: chance(two_way(np.eye(3)), 1), "two seeds at least, got 1"),
        (lambda: seeds_needed(two_way(np.eye(3)), power=80), "a power lies between 0 and 1, got 80"),
        (lambda: schedule(2), "needs 3 seeds at least, got 2"),
        (lambda: schedule(10**6), "takes 1000 seeds at most, got 1000000"),
        (lambda: pointwise_level(np.zeros(3)), "two seeds at least"),
        (lambda: pointwise_level(np.zeros((5, 2)), looks=(8, 5)), "ascending"),
        (lambda: pointwise_level(np.zeros((5, 2)), 95), "got 95"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
