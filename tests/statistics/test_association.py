"""Rank correlations across groups of nets: against SciPy; what their intervals cover and what they claim falsely, simulated."""

import numpy as np
import pytest
import scipy.stats
from scipy.stats import rankdata

from experiments.harness.statistics.association import FEWEST, permutation_p, rank_association


def spearmans(rho):
    """Of a bivariate normal distribution."""
    return 6 / np.pi * np.arcsin(rho / 2)


def estimates(x, y):
    """Of each row of x and y, without ties. All depends on the correlation alone then, so that each is computed once."""
    n = x.shape[1]
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    keys = ((ranks[0] - ranks[1]) ** 2).sum(1)
    known = {key: rank_association(x[row], y[row], range(n)) for key, row in zip(*np.unique(keys, return_index=True))}
    return [known[key] for key in keys]


@pytest.mark.parametrize("n", [5, 6])
def test_value_and_test_are_scipys(n):
    random = np.random.default_rng(n)
    for ties in (False, True):
        x, y = (random.integers(0, 3, (2, n)) if ties else random.normal(size=(2, n))).astype(float)
        x[0], y[-1] = 9, 9  # not constant
        found = rank_association(x, y, range(n))
        assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic) and found.low <= found.value <= found.high
        exact = scipy.stats.permutation_test(
            (x,), lambda x, y=y: scipy.stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=np.inf
        )
        assert permutation_p(rankdata(x), rankdata(y)) == pytest.approx(exact.pvalue)


def test_many_groups_are_tested_by_random_orders():
    random = np.random.default_rng(0)
    x = random.normal(size=30)
    for slope in (0.0, 0.5, 3.0):
        y = slope * x + random.normal(size=30)
        assert permutation_p(rankdata(x), rankdata(y)) == pytest.approx(scipy.stats.spearmanr(x, y).pvalue, abs=0.01)
    assert 0 < permutation_p(rankdata(x), rankdata(x)) < 1e-4


@pytest.mark.parametrize(("n", "least_claim"), [(3, None), (4, None), (5, 1.0), (6, 0.886), (8, 0.738)])
def test_claims_are_those_of_the_table_and_none_has_no_width(n, least_claim):
    """Two-sided 5 % critical values: Zar (1972), JASA 67, table 1."""
    orders = {}
    y = np.array([np.random.default_rng(seed).permutation(n) for seed in range(2000)])
    for found in set(estimates(np.tile(np.arange(n), (len(y), 1)), y)):
        orders[round(found.value, 3)] = found.verdict
        assert found.high - found.low > 0.05, "five in the same order are no certainty"
    orders[1.0] = rank_association(np.arange(n), np.arange(n), range(n)).verdict
    claims = [value for value, verdict in orders.items() if verdict == "higher"]
    assert (min(claims, default=None) == least_claim) and all(
        verdict == "cannot tell" for value, verdict in orders.items() if abs(value) < (least_claim or 2)
    )


@pytest.mark.parametrize("n", [5, 8, 12])
def test_intervals_cover(n, draws=2000):
    """Groups are a bivariate normal sample, distorted: rates and accuracies are anything but normal."""
    random = np.random.default_rng(n)
    for rho in (0.0, 0.5, -0.8, 0.95):
        x = random.normal(size=(draws, n))
        y = rho * x + np.sqrt(1 - rho**2) * random.normal(size=(draws, n))
        found = estimates(np.exp(x), y**3)
        covered = np.mean([estimate.low <= spearmans(rho) <= estimate.high for estimate in found])
        assert covered >= 0.93 and all(estimate.high - estimate.low > 0 for estimate in found)


def false_claims(schemes, seeds, within, draws=400):
    """Share of runs with a claim where measure and robustness are independent across schemes; seeds scatter about them."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(schemes), seeds)
    x, y = (
        random.normal(size=(draws, schemes))[:, groups] + within * random.normal(size=(draws, len(groups))) for _ in range(2)
    )
    found = [rank_association(a, b, groups) for a, b in zip(x, y)]
    return np.mean([estimate is not None and estimate.verdict != "cannot tell" for estimate in found])


@pytest.mark.parametrize(("schemes", "seeds"), [(2, 5), (4, 5), (8, 3)])
@pytest.mark.parametrize("within", [0.1, 0.5])
def test_seeds_make_no_claim_of_what_schemes_do_not_show(schemes, seeds, within):
    assert false_claims(schemes, seeds, within) <= (0.05 if schemes >= FEWEST else 0)


def test_what_schemes_do_show_is_found():
    random, found = np.random.default_rng(0), []
    for _ in range(100):
        centre = random.normal(size=8)
        groups = np.repeat(np.arange(8), 3)
        x, y = (centre[groups] + 0.3 * random.normal(size=24) for _ in range(2))
        found.append(rank_association(x, y, groups).verdict == "higher")
    assert np.mean(found) > 0.8


def test_lengths_are_checked_and_too_little_is_none():
    with pytest.raises(ValueError, match="equally long, got 2, 2 and 3"):
        rank_association([1, 2], [1, 2], "abc")
    assert rank_association([1, 2, 1, 2], [1, 2, 3, 4], "aabb") is None
    assert rank_association([1, 1, 1], [1, 2, 3], "abc") is None
