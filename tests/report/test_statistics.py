from dataclasses import replace

import numpy as np
import pytest
from records import measurement, record
from scipy import stats

from experiments.harness import statistics
from experiments.harness.report.arms import Arm
from experiments.harness.statistics.estimates import Estimate

RNG = np.random.default_rng(3)


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1, t(2; 0.975) = 4.302653.
    estimate = statistics.t_interval([1, 2, 3])
    assert (estimate.value, estimate.n, estimate.over) == (2, 3, "seeds")
    assert estimate.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    values = RNG.normal(size=7)
    low, high = stats.t.interval(0.9, 6, values.mean(), stats.sem(values))
    estimate = statistics.t_interval(values, 0.9)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("successes, total", [(0, 30), (30, 30), (441, 450), (1, 2)])
def test_wilson_agrees_with_scipy(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    estimate = statistics.wilson(successes, total)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_paired_images_by_hand():
    # 100 images, 12 won and 4 lost: (12.5 - 4.5) / 102 +- 1.96 sqrt((17 - 8^2/102) / 102^2).
    correct, reference = np.zeros(100, bool), np.zeros(100, bool)
    correct[:12] = True
    reference[12:16] = True
    correct[50:90] = reference[50:90] = True
    estimate = statistics.paired_images(correct, reference)
    assert estimate.value == pytest.approx(0.08) and estimate.over == "images" and estimate.n == 100
    half = 1.959964 * (17 - 64 / 102) ** 0.5 / 102
    assert (estimate.low, estimate.high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-7)


def test_agreement_on_every_image_is_not_certainty():
    mask = RNG.random(50) < 0.5
    estimate = statistics.paired_images(mask, mask)
    assert estimate.low < 0 < estimate.high and estimate.verdict == "cannot tell"


def test_paired_images_covers_the_truth():
    inside, repeats, n = 0, 400, 120
    for _ in range(repeats):  # P(won) = 0.15, P(lost) = 0.08
        u = RNG.random(n)
        estimate = statistics.paired_images(u < 0.15, (u >= 0.15) & (u < 0.23))
        inside += estimate.low <= 0.07 <= estimate.high
    assert 0.91 <= inside / repeats <= 0.99


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (-0.1, 0.2, "cannot tell"),
        (0.0, 0.2, "cannot tell"),
        (0.01, 0.2, "higher"),
        (-0.2, -0.01, "lower"),
        (0.02, 0.02, "cannot tell"),
    ],
)
def test_verdict(low, high, verdict):
    assert Estimate((low + high) / 2, low, high, 3, "seeds").verdict == verdict


def test_one_seed_speaks_of_images_and_several_of_seeds():
    one, three = {0: np.arange(10) < 9}, {seed: np.arange(10) < 9 - seed for seed in range(3)}
    assert statistics.accuracy(one).over == "images" and statistics.accuracy(three).over == "seeds and images"
    assert statistics.accuracy(three).high < 1.0  # Student's interval would reach 1.05
    assert statistics.difference(one, three).over == "images"
    assert statistics.difference(three, {1: one[0], 2: one[0], 9: one[0]}).n == 2
    assert statistics.difference(one, {5: one[0]}) is None


def test_the_difference_is_paired_by_seed():
    # Seeds differ by 30 points, the schemes by 10 or 11 in each: pairing sees it, unpaired intervals would not.
    good = {0: np.arange(100) < 40, 1: np.arange(100) < 71, 2: np.arange(100) < 99}
    bad = {2: np.arange(100) < 89, 1: np.arange(100) < 60, 0: np.arange(100) < 30}
    estimate = statistics.difference(good, bad)
    assert estimate.value == pytest.approx(0.31 / 3) and estimate.verdict == "higher"
    assert statistics.accuracy(good).low < statistics.accuracy(bad).high


def arm(*measurements, scheme="rk4", seed=4):
    return Arm(scheme, scheme, "residual", 1, 1, (record(scheme, seed, measurements=measurements),))


def test_masks_come_from_bits_and_take_the_worst_attack():
    first, second = np.arange(13) % 2 == 0, np.arange(13) < 9
    under = measurement("fgsm", 0.1, first), measurement("pgd20", 0.1, second)
    masks = arm(*under).masks(0.1)
    assert list(masks) == [4] and (masks[4] == (first & second)).all()
    assert arm(*under).masks(0.1, "detached") == arm(*under).masks(0.2) == {}
    with pytest.raises(ValueError, match="damaged record: fgsm at epsilon 0.1 says 6 of 13"):
        arm(replace(under[0], correct=6), under[1]).masks(0.1)


def test_masking_is_told_from_what_an_attack_without_gradients_breaks():
    """Square breaks the same images whichever gradient the others follow: it stands on both sides of the comparison."""
    pgd, detached, square = np.arange(12) < 6, np.arange(12) < 10, np.arange(12) % 2 == 0
    own = arm(
        measurement("pgd20", 0.1, pgd),
        measurement("pgd20", 0.1, detached, "detached"),
        measurement("square200", 0.1, square),
        scheme="implicit_euler",
        seed=0,
    )
    found = {way: own.masks(0.1, way)[0] for way in ("exact", "detached")}
    assert (found["exact"] == (pgd & square)).all() and (found["detached"] == (detached & square)).all()
    for attack, way, expected in (("pgd20", "exact", pgd), ("pgd20", "detached", detached), ("square200", "exact", square)):
        assert (own.masks(0.1, way, attack)[0] == expected).all()
    assert own.masks(0.1, "detached", "square200") == {}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: statistics.t_interval([0.5]), "at least two of them, got 1"),
        (lambda: statistics.wilson(5, 4), "got 5 of 4"),
        (lambda: statistics.paired_images([True], [True, False]), "two masks of one length"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
