"""Variances of many schemes, told by one another. Oracle: the distribution that they are drawn from."""

import numpy as np
import pytest
from scipy.special import polygamma

import experiments.harness.statistics as statistics
from experiments.harness.statistics.moderation import FEWEST, SHARE, _inverse_trigamma, _prior, between_seeds


def means(schemes=34, seeds=5, deviations=1.0, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(schemes, seeds)) * np.broadcast_to(deviations, schemes)[:, None] + random.normal(size=seeds)


@pytest.mark.parametrize(("others", "scale"), [(4.0, 1.0), (20.0, 9.0)])
def test_the_prior_is_found_again(others, scale):
    random = np.random.default_rng(1)
    variances = others * scale / random.chisquare(others, 40_000)
    found, common = _prior(variances * random.chisquare(4, len(variances)) / 4, 4)
    assert found == pytest.approx(others, rel=0.1) and common == pytest.approx(scale, rel=0.05)


def test_variances_that_are_alike_are_nearly_known():
    found = between_seeds(means())
    variances, degrees = np.array([(own.variance, own.degrees) for own in found]).T
    assert len(found) == 33 and (degrees > 8).all()
    direct = (means()[1:] - means()[0]).var(axis=1, ddof=1)
    assert (variances >= direct).all() and np.log(variances).std() < 0.7 * np.log(direct).std(), "lucky seeds count for less"


def test_a_scheme_that_scatters_keeps_what_its_seeds_say():
    deviations = np.where(np.arange(34) == 7, 20.0, 1.0)
    values = means(deviations=deviations)
    own = (values[7] - values.mean(0)).var(ddof=1)
    assert between_seeds(values)[6].variance > 0.9 * own and np.median([f.variance for f in between_seeds(values)]) < 8


def test_a_reference_that_scatters_is_not_smoothed_away():
    values = means(seeds=8, deviations=np.where(np.arange(34) == 0, 5.0, 1.0))
    found = between_seeds(values)
    assert min(f.variance for f in found) > values[0].var(ddof=1) / 2 and max(f.degrees for f in found) < 12


def test_the_others_count_for_a_share_at_most():
    seeds = 40
    for own in between_seeds(means(seeds=seeds)):
        assert own.degrees <= 2 * (seeds - 1 + SHARE * 34)


def test_seeds_that_make_no_difference_have_no_variance():
    assert {(own.variance, own.degrees) for own in between_seeds(np.tile(np.arange(10.0)[:, None], 4))} == {(0.0, 3)}


def test_a_table_of_many_schemes_has_narrower_intervals_than_each_for_itself():
    random, found = np.random.default_rng(0), {}
    tables = [{seed: random.random(200) < 0.5 + 0.05 * random.normal() for seed in range(5)} for _ in range(30)]
    for count in (FEWEST - 1, FEWEST, 30):
        gaps = statistics.gaps({i: (tables[i], tables[0]) for i in range(1, count)})
        found[count] = np.median([gap.estimate.high - gap.estimate.low for gap in gaps.values()])
    assert found[30] < found[FEWEST - 1] and found[FEWEST] < 0.95 * found[FEWEST - 1], found


def test_schemes_without_some_seed_are_read_by_themselves():
    random = np.random.default_rng(0)
    tables = [{seed: random.random(200) < 0.5 + 0.05 * random.normal() for seed in range(6)} for _ in range(12)]
    whole = {i: (tables[i], tables[0]) for i in range(1, 12)}
    part = {**whole, 1: ({seed: tables[1][seed] for seed in range(5)}, tables[0])}
    (alone,) = (statistics.difference(*part[1], level=statistics.gaps(part)[1].estimate.level),)
    assert statistics.gaps(part)[1].estimate == alone
    assert statistics.gaps(part)[2].estimate.high == pytest.approx(statistics.gaps(whole)[2].estimate.high, abs=0.05)


@pytest.mark.parametrize("x", [0.1, 1.0, 7.0, 300.0])
def test_the_inverse_of_trigamma(x):
    assert _inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x)


def test_few_seeds_and_a_reference_that_never_moves_are_read_by_themselves():
    random = np.random.default_rng(0)
    for seeds, rate in ((4, 0.5), (6, 0.0)):
        tables = [
            {s: random.random(100) < (rate or 0.3 * bool(i)) + 0.05 * random.normal() for s in range(seeds)} for i in range(12)
        ]
        reference = tables[0] if rate else {s: np.zeros(100, bool) for s in range(seeds)}
        for gap, own in zip(statistics.gaps({i: (tables[i], reference) for i in range(1, 12)}).values(), tables[1:]):
            assert gap.estimate == statistics.difference(own, reference, level=gap.estimate.level)
