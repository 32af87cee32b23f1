"""Predictors against robustness: what is known, what is claimed, and how often falsely."""

import numpy as np
import pytest
from scipy import stats

from experiments.benchmarks.coverage_relation import claims, study, within
from experiments.harness.statistics.association import cluster_bootstrap, rank_association
from experiments.harness.statistics.relation import Nets, held_out_order, relations, reliability, within_groups


def relation_of(strength, schemes=12, seeds=6, **settings):
    known, nets = study(np.random.default_rng(3), schemes, seeds, 3, strength)
    return relations(known, nets, given={}, expected={}, **settings), known, nets


def test_what_is_there_is_supported_and_the_other_sign_is_refuted():
    found, known, nets = relation_of(0.99, schemes=14)
    assert {relation.verdict for relation in found} == {"supported"} and all(relation.order > 0.7 for relation in found)
    turned = relations(known, nets, given={}, expected=dict.fromkeys(known, 1))
    assert {relation.verdict for relation in turned} == {"refuted"}


def test_the_family_makes_claims_dearer():
    found, known, nets = relation_of(0.9)
    alone = relations({"predictor 0": known["predictor 0"]}, nets, given={}, expected={})[0]
    assert found[0].between.level > alone.between.level >= 0.94 and found[0].p >= alone.p
    assert alone.between.value == found[0].between.value


@pytest.mark.parametrize("draw", range(12))
def test_few_schemes_are_claimed_only_where_the_adjusted_p_says_so(draw):
    # Six schemes have 720 orders: the level of the family falls between two p-values that there are.
    random = np.random.default_rng(draw)
    y = random.normal(size=6)
    known = {str(i): 3 * y + random.normal(size=6) for i in range(9)}
    for found in relations(known, Nets(y, list(range(6)), [0] * 6, [0] * 6), given={}, expected=dict.fromkeys(known, 1)):
        assert found.verdict != "supported" or found.p <= 0.05, found


def noisy(random, schemes, seeds, noise, correlation, shared=0.0):
    """({predictor}, nets): predictor and robustness of schemes correlate so; seeds add noise to robustness, and to
    the predictor what correlates with that by `shared`, if it is not 0."""
    scheme, seed = np.repeat(np.arange(schemes), seeds), np.tile(np.arange(seeds), schemes)
    cause, other, common = random.normal(size=schemes), random.normal(size=schemes), random.normal(size=seeds)
    of_seeds, own = random.normal(size=(2, len(scheme)))
    robust = (correlation * cause + np.sqrt(1 - correlation**2) * other)[scheme] + noise * of_seeds
    moved = noise * (shared * of_seeds + np.sqrt(1 - shared**2) * own) if shared else 0.0
    return {"x": cause[scheme] + moved}, Nets(3 * common[seed] + robust, list(scheme), [0] * len(scheme), list(seed))


def test_reliability_is_cronbachs_alpha_and_its_bound_holds():
    # Of an ANOVA of schemes by seeds; alpha is the same from the variances of the seeds and of their sum.
    random, below = np.random.default_rng(0), []
    for _ in range(200):
        nets = noisy(random, 30, 4, 1.0, 0.5)[1]
        found = reliability(nets.robust, nets)
        items = ((stats.rankdata(nets.robust) - 0.5) / 120).reshape(30, 4)
        alpha = 4 / 3 * (1 - items.var(0, ddof=1).sum() / items.sum(1).var(ddof=1))
        assert found.value == pytest.approx(max(alpha, 0), abs=1e-9) and found.low <= found.value
        below.append(found.low <= 4 / 5)  # what it is of values, before they become ranks
    assert np.mean(below) >= 0.93


def test_what_seeds_hide_is_not_refuted():
    random, said = np.random.default_rng(1), []
    for _ in range(40):
        found = relations(*noisy(random, 30, 1, 2.0, 0.4), given={}, expected={"x": 1})[0]
        said.append((found.verdict == "refuted", found.between.high < 0.3))
    by_noise, plainly = np.mean(said, 0)
    assert by_noise <= 0.05 < plainly  # by the interval alone the noise of one seed would refute what is there


def test_what_seeds_turn_round_is_not_refuted():
    # A seed that makes a net more robust makes its predictor smaller; of schemes, free of noise, both go together.
    random, said = np.random.default_rng(1), []
    for _ in range(40):
        known, nets = noisy(random, 34, 4, 1.0, 0.3, shared=-0.8)
        found = relations(known, nets, given={}, expected={"x": 1})[0]
        hidden = [reliability(side, nets).low for side in (known["x"], nets.robust)]
        said.append((found.verdict == "refuted", found.between.high < 0.3 * np.prod(hidden) ** 0.5))
    now, before = np.mean(said, 0)
    assert now <= 0.05 < before  # by what noise hides alone, without what it adds


def test_seeds_hide_as_much_where_a_predictor_is_not_known_for_all_schemes():
    # Schemes that it is not known for, far from all others, make the order of all schemes repeat: not that of the others.
    random = np.random.default_rng(0)
    known, nets = noisy(random, 16, 4, 1.0, 0.3)
    apart = [(i, j, 30.0 * i * (-1) ** i + random.normal()) for i in range(16, 24) for j in range(4)]
    scheme, seed, robust = ([*own, *more] for own, more in zip((nets.scheme, nets.seed, nets.robust), zip(*apart)))
    wider = {"x": np.append(known["x"], [np.nan] * len(apart))}, Nets(np.array(robust), scheme, [0] * len(scheme), seed)
    alone, among = (relations(*study, given={}, expected={"x": 1})[0] for study in ((known, nets), wider))
    assert reliability(wider[1].robust, wider[1]).low > 0.8 and among.schemes == 16
    hidden = reliability(nets.robust, nets)
    assert 0.1 < hidden.low < hidden.value - 0.1 and reliability(known["x"], nets).low == 1
    assert among.least == pytest.approx(alone.least) == 0.3 * hidden.low**0.5


def test_a_stratum_moves_all_schemes_and_nothing_else():
    """A training that makes every net more robust and every predictor larger is no relation."""
    random = np.random.default_rng(0)
    scheme, stratum, seed = (np.repeat(np.arange(8), 8), np.tile(np.repeat([0, 1], 4), 8), np.tile(np.arange(4), 16))
    x, y = random.normal(size=(2, 64)) + 10 * stratum
    found = relations({"x": x}, Nets(y, list(scheme), list(stratum), list(seed)), given={}, expected={})[0]
    apart = relations(
        {"x": x - 10 * stratum}, Nets(y - 10 * stratum, list(scheme), list(stratum), list(seed)), given={}, expected={}
    )[0]
    assert found.between == apart.between and abs(found.between.value) < 0.9


def test_unknown_and_infinite_values():
    found, known, nets = relation_of(0.99, schemes=14)
    half = known["predictor 0"].copy()
    half[np.array(nets.scheme) >= 7] = np.nan
    known = {
        "half": half,
        "blown up": np.where(known["predictor 0"] > 1, np.inf, known["predictor 0"]),
        "nothing": half * np.nan,
    }
    found = {relation.predictor: relation for relation in relations(known, nets, given={}, expected={})}
    assert (found["half"].schemes, found["half"].total) == (7, 14) and found["blown up"].between.value < -0.5
    assert found["nothing"].between is None and found["nothing"].verdict == "cannot tell" and found["nothing"].p is None


def test_what_the_given_explains_is_gone():
    """y follows z alone, x follows z: nothing is left of it. Against the formula of partial correlation."""
    random = np.random.default_rng(1)
    z = random.normal(size=25)
    x, y = z + 0.4 * random.normal(size=(2, 25))
    alone, partial = rank_association(x, y, range(25)), rank_association(x, y, range(25), given=z)
    assert alone.verdict == "higher" and partial.verdict == "cannot tell"
    scores = [stats.norm.ppf((stats.rankdata(values) - 0.5) / 25) for values in (x, y, z)]
    inverse = np.linalg.inv(np.corrcoef(scores))
    assert partial.value == pytest.approx(-inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1]))
    assert rank_association(x, y, range(25), given=x) is None


def test_partial_claims_are_rarely_false():
    random, false = np.random.default_rng(0), []
    for _ in range(300):
        z = random.normal(size=9)
        x, y = z + random.normal(size=(2, 9))
        found = rank_association(x, y, range(9), given=z)  # None: one of them stands in the order of z
        false.append(found is not None and found.verdict != "cannot tell")
    assert np.mean(false) <= 0.05 + 0.025


def test_the_bootstrap_of_schemes_is_scipys():
    random = np.random.default_rng(0)
    x = random.normal(size=12)
    y = x + random.normal(size=12)
    expected = stats.bootstrap((x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, method="percentile", rng=1)
    found = cluster_bootstrap(x, y, range(12))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.06)


def test_order_of_schemes_not_seen():
    x = np.arange(9.0)
    assert held_out_order(x, x**3)[0] == 1 and held_out_order(x, -x)[0] == 1 and held_out_order(x, x)[1] < 0.01
    assert held_out_order(x[:4], x[:4]) == (None, None) == held_out_order(x, 0 * x)
    random = np.random.default_rng(0)
    shares, p = np.array([held_out_order(*random.normal(size=(2, 9))) for _ in range(200)]).T
    assert shares.mean() == pytest.approx(0.5, abs=0.07) and (p <= 0.05).mean() <= 0.09


def test_seeds_of_a_scheme_by_hand():
    """Two schemes of three seeds, in the same order in one and in the opposite in the other."""
    y, schemes, seeds = [1, 2, 3, 3, 2, 1], list("aaabbb"), [0, 1, 2] * 2
    assert within_groups([1, 2, 3] * 2, y, schemes, schemes, seeds).value == pytest.approx(0)
    assert within_groups(y, y, schemes, schemes, seeds).value == pytest.approx(1)
    assert within_groups([1, 2] * 2, [1, 2] * 2, list("aabb"), list("aabb"), [0, 1] * 2) is None


@pytest.mark.slow
@pytest.mark.parametrize("schemes", [8, 12])
def test_false_claims_of_a_study(schemes):
    assert claims(schemes, 0.0, 150)[0] <= 0.05 + 0.036


@pytest.mark.slow
@pytest.mark.parametrize("schemes, seeds", [(8, 5), (10, 10), (29, 8), (6, 30)])
@pytest.mark.parametrize("shared", [0.0, 0.3, 0.7])
def test_intervals_within_schemes_cover(schemes, seeds, shared):
    assert within(schemes, seeds, 0.5, shared, 400) >= 0.93 - 0.026


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        Nets(np.zeros(3), ["a", "b"], [0, 0, 0], [0, 1, 2])
