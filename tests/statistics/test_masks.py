"""From masks to a table's verdicts: which seeds count, what a look uses, what a split of its own costs."""

import numpy as np
import pytest

from experiments.harness import statistics
from experiments.harness.statistics.two_way import by_split, interval, two_way

RNG = np.random.default_rng(4)


def masks(rate, seeds, images=80):
    return {seed: RNG.random(images) < rate for seed in seeds}


def test_a_family_of_one_is_the_interval_of_its_table():
    a, b = masks(0.6, range(6)), masks(0.5, range(6))
    found = statistics.gaps({"a": (a, b)})["a"].estimate
    alone = interval(two_way([a[seed].astype(float) - b[seed] for seed in range(6)]))
    assert found == alone == statistics.difference(a, b)


def test_pairs_use_the_seeds_they_have():
    reference = masks(0.5, range(5))
    pairs = {"all": masks(0.9, range(5)), "some": masks(0.9, (1, 2, 4)), "one": masks(0.9, (3,)), "none": masks(0.9, (7,))}
    found = statistics.gaps({name: (own, reference) for name, own in pairs.items()})
    assert {name: gap.estimate.n for name, gap in found.items()} == {"all": 5, "some": 3, "one": 80}
    assert found["one"].estimate.over == "images" and found["one"].needed is None
    disjoint = statistics.gaps({"a": (masks(0.9, (0, 1)), reference), "b": (masks(0.9, (2, 3)), reference)})
    assert disjoint["a"].estimate.level == pytest.approx(0.975), "Bonferroni, where no seeds are common"


def test_an_interval_ends_where_no_difference_of_accuracies_lies():
    reference = masks(0.5, range(2))
    found = statistics.gaps({i: (masks(0.1 + 0.1 * i, range(2)), reference) for i in range(8)})
    ends = np.array([(gap.estimate.low, gap.estimate.high) for gap in found.values()])
    assert ends.min() == -1 and ends.max() == 1


def test_a_look_waits_for_its_seeds():
    reference, other = masks(0.2, range(11), 200), masks(0.9, range(11), 200)
    looks = statistics.schedule(30)
    found = statistics.gaps({"a": (other, reference)}, looks=looks)["a"]
    assert (found.estimate.n, found.verdict) == (8, statistics.MORE) and found.estimate.level > 0.98
    early = {seed: other[seed] for seed in range(4)}
    found = statistics.gaps({"a": (early, reference)}, looks=looks)["a"]
    assert (found.estimate.n, found.verdict) == (4, statistics.OPEN), "before the first look nothing is said"


def test_a_split_of_its_own_is_corrected_and_promises_no_number_of_seeds():
    a, b = masks(0.62, range(6)), masks(0.6, range(6))
    found = statistics.gaps({"a": (a, b)}, train=240)["a"]
    rows = [a[seed].astype(float) - b[seed] for seed in range(6)]
    assert found.estimate == interval(by_split([row.mean() for row in rows], [row.var() for row in rows], 240, 80))
    same = statistics.gaps({"a": (a, b)})["a"]
    assert found.verdict == same.verdict == statistics.OPEN and found.needed is None and same.needed > 6


def test_identical_nets_are_equivalent():
    a = masks(0.6, range(5), 450)
    assert statistics.gaps({"a": (a, a)})["a"].verdict == statistics.EQUIVALENT
