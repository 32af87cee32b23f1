"""The figures of many schemes: each by name, none hidden by another, the numbers in their alternative text."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from records import config, measured

import odenets
from experiments.harness.report import comparison as report
from experiments.harness.report import crowd
from experiments.harness.report.arms import comparison
from experiments.harness.report.drawing import described
from experiments.harness.report.labels import label_dots

SCHEMES = tuple(odenets.list_schemes()[:20])


@pytest.fixture(scope="module")
def found():
    """Twenty schemes, the last without a net."""
    records = [measured(s, seed, gap=0.002 * i, total=60, stages=1) for i, s in enumerate(SCHEMES[:-1]) for seed in (0, 1)]
    return comparison(config(SCHEMES, (0, 1)), records)


def test_many_schemes_get_figures_of_their_own(found):
    drawn = {part.name: part for part in report._plots(found).parts}
    assert drawn["accuracy"].caption.startswith("A row for each scheme") and set(drawn) == set(report.COMPARED)
    few = report._plots(replace(found, arms=found.arms[:3]))
    assert not any(part.caption.startswith("A row for each scheme") for part in few.parts)


def test_the_radius_of_the_answer_is_shown_and_the_others_when_asked_for(found):
    shown, folded = report._results(found).parts
    assert len(shown.rows) == len(SCHEMES) - 1 and {row[0] for row in shown.rows} == {found.attack_at(found.middle)}
    (whole,) = folded.parts
    assert len(whole.rows) == 4 * len(shown.rows) and set(shown.rows) <= set(whole.rows)


def test_a_row_for_each_scheme_and_who_has_no_net_is_named(found):
    figure = crowd.accuracy_figure(found)
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == [*SCHEMES[:-1], f"{SCHEMES[-1]}: no net"]
    shown = {100 * found.accuracy(arm, 0.1).value for arm in found.arms[:-1]}
    line = next(line for line in left.lines if line.get_label().endswith("= 0.1"))
    assert set(line.get_xdata()) == shown
    gaps = [found.gap(arm, found.middle).estimate.value for arm in found.arms[1:-1]]
    told = described(figure)
    lowest = SCHEMES[1 + int(np.argmin(gaps))]
    assert f"difference: lowest {100 * min(gaps):.3g} at {lowest}, highest {100 * max(gaps):.3g} at " in told
    assert right.get_xlim()[0] < 100 * min(gaps)


def test_trainings_that_end_lowest_are_named(found):
    arm = found.arms[4]
    worse = tuple(replace(r, history=tuple(replace(e, held_out=e.held_out / 2) for e in r.history)) for r in arm.records)
    changed = replace(found, arms=(*found.arms[:4], replace(arm, records=worse), *found.arms[5:]))
    labels = [text.get_text() for text in crowd.training_figure(changed).legends[0].get_texts()]
    assert labels[0] == SCHEMES[4] and labels[-1] == "the other 14"


def boxes(axes):
    renderer = axes.figure.canvas.get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}


def test_names_hide_neither_each_other_nor_dots():
    random = np.random.default_rng(0)
    axes = (figure := Figure(figsize=(10, 5), layout="constrained")).subplots()
    dots, names = random.normal(size=(32, 2)), [f"scheme_{i}" for i in range(32)]
    axes.plot(*dots.T, "o")
    label_dots(axes, dots, names)
    figure.draw_without_rendering()
    placed = boxes(axes)
    assert set(placed) == set(names)
    assert not [pair for pair in combinations(names, 2) if placed[pair[0]].overlaps(placed[pair[1]])]
    inside = [name for name, box in placed.items() for x, y in axes.transData.transform(dots) if box.contains(x, y)]
    assert inside == []


@pytest.mark.parametrize("logarithmic", [False, True])
def test_infinite_values_stand_beyond_the_finite_ones(logarithmic):
    axes = Figure(layout="constrained").subplots()
    x = [1.0, 1e4 if logarithmic else 2.0, float("inf"), float("inf")]
    crowd.named_scatter(axes, x, [1.0, 2.0, 3.0, 5.0], ["a", "b", "c", "c"], colour="k", label="means")
    means = axes.lines[1].get_xydata() if axes.lines[0].get_label() != "means" else axes.lines[0].get_xydata()
    assert means[2, 0] > max(x[:2]) and means[2, 1] == 4.0 and axes.get_xscale() == ("log" if logarithmic else "linear")
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c", "\u221e"}
