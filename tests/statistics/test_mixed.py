"""The mixed model: against a balanced analysis of variance, its coverage, and what cannot be fitted."""

import numpy as np
import pytest
from scipy import stats

from experiments.harness.statistics import mixed
from experiments.harness.statistics.mixed import mixed_effect

pytest.importorskip("statsmodels", reason="statsmodels is not installed")


def study(random, schemes=12, seeds=5, slope=0.0, of_scheme=0.05, of_seed=0.02, rest=0.02):
    """x is constant within schemes: (x, y, schemes, seeds), y having `slope` for a standard deviation of x."""
    scheme, seed = np.repeat(np.arange(schemes), seeds), np.tile(np.arange(seeds), schemes)
    x = stats.norm.ppf((random.permutation(schemes) + 0.5) / schemes)
    x = (x / x.std())[scheme]
    y = 0.4 + slope * x + of_scheme * random.normal(size=schemes)[scheme] + of_seed * random.normal(size=seeds)[seed]
    return x, y + rest * random.normal(size=len(x)), scheme, seed


def test_a_balanced_table_is_an_analysis_of_variance():
    """The slope, its interval and the components have closed forms there: least squares on means, and mean squares."""
    schemes, seeds = 10, 6
    x, y, scheme, seed = study(np.random.default_rng(0), schemes, seeds, 0.03)
    found = mixed_effect(x, y, None, [0] * len(x), list(scheme), list(seed))
    scores = mixed._scores(x, np.zeros(len(x)))[::seeds]
    table = y.reshape(schemes, seeds)
    line = stats.linregress(scores, table.mean(1))
    half = stats.t.ppf(0.975, schemes - 2) * line.stderr
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == pytest.approx(
        (line.slope, line.slope - half, line.slope + half), rel=2e-3
    )
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    of_rest = (residual**2).sum() / ((schemes - 1) * (seeds - 1))
    of_schemes = seeds * ((table.mean(1) - line.intercept - line.slope * scores) ** 2).sum() / (schemes - 2)
    of_seeds = schemes * table.mean(0).var(ddof=1)
    expected = (of_schemes - of_rest) / seeds, (of_seeds - of_rest) / schemes, of_rest
    assert (found.scheme, found.seed, found.rest) == pytest.approx(expected, rel=0.02) and not found.note


def test_what_the_given_explains_is_not_the_predictors():
    random = np.random.default_rng(1)
    z, y, scheme, seed = study(random, 20, 4, 0.08, of_scheme=0.01)
    x = z + 0.5 * random.normal(size=20)[scheme]
    alone = mixed_effect(x, y, None, [0] * len(x), list(scheme), list(seed)).estimate
    beside = mixed_effect(x, y, z, [0] * len(x), list(scheme), list(seed)).estimate
    assert alone.low > 0.03 and beside.low < 0 < beside.high


def test_a_stratum_moves_all_and_nothing_else():
    x, y, scheme, seed = study(np.random.default_rng(2), 8, 4, 0.05)
    stratum = [0] * len(x) + [1] * len(x)
    both = mixed_effect([*x, *(x + 9)], [*y, *(y + 0.3)], None, stratum, [*scheme, *scheme], [*seed, *seed]).estimate
    one = mixed_effect(x, y, None, [0] * len(x), list(scheme), list(seed)).estimate
    assert both.value == pytest.approx(one.value, rel=1e-3) and both.n == 8


def test_unknown_values_are_left_out_and_a_blow_up_is_a_last_place():
    x, y, scheme, seed = study(np.random.default_rng(3), 9, 4, 0.05)
    labels = [0] * len(x), list(scheme), list(seed)
    far = mixed_effect(np.where(x == x.max(), np.inf, x), y, None, *labels)
    assert far.estimate.value == pytest.approx(mixed_effect(x, y, None, *labels).estimate.value)
    half = mixed_effect(np.where(scheme < 4, np.nan, x), y, None, *labels)
    assert (
        half.estimate.n == 5 and mixed_effect(np.where(scheme < 5, np.nan, x), y, None, *labels).note == "4 schemes are too few"
    )


def test_what_cannot_be_fitted_is_said():
    x, y, scheme, seed = study(np.random.default_rng(4), 6, 3)
    labels = [0] * len(x), list(scheme), list(seed)
    for found in (mixed_effect(0 * x, y, None, *labels), mixed_effect(x, y, x, *labels), mixed_effect(x, 0 * y, None, *labels)):
        assert found.estimate is None and found.note.startswith("the fit is singular")
    table = np.random.default_rng(0).normal(size=(6, 3))
    table -= table.mean(1, keepdims=True)  # neither schemes nor seeds differ
    silent = mixed_effect(x, 0.5 + (table - table.mean(0)).ravel(), None, *labels)
    assert silent.estimate is not None and "no variance between" in silent.note
    with pytest.raises(ValueError, match="lengths"):
        mixed_effect(x[:-1], y, None, *labels)


def test_without_statsmodels_it_says_so(monkeypatch):
    monkeypatch.setattr(mixed, "find_spec", lambda name: None)
    x, y, scheme, seed = study(np.random.default_rng(5))
    found = mixed_effect(x, y, None, [0] * len(x), list(scheme), list(seed))
    assert found.estimate is None and "odenets[mixed]" in found.note


@pytest.mark.slow
@pytest.mark.parametrize("schemes, seeds", [(8, 5), (12, 10), (29, 5)])
def test_intervals_cover(schemes, seeds):
    """At least 0.93, give or take three standard errors of 300 draws."""
    random, inside = np.random.default_rng(0), []
    for _ in range(300):
        x, y, scheme, seed = study(random, schemes, seeds, 0.02)
        estimate = mixed_effect(x, y, None, [0] * len(x), list(scheme), list(seed)).estimate
        inside.append(estimate.low <= 0.02 <= estimate.high)
    assert np.mean(inside) >= 0.93 - 0.044
