"""The page of a sweep, from synthetic records: rates, each arm beside what it is compared with, the matrix, the CSV files."""

from dataclasses import replace

import pytest
from records import measured, measurement, sweep

from experiments.harness.report import comparison as report
from experiments.harness.report import readings as found_readings
from experiments.harness.report import step_figures
from experiments.harness.report import steps as page
from experiments.harness.report.arms import comparison
from experiments.harness.run.schema import Record


@pytest.fixture(scope="module")
def found():
    return sweep()


def test_arms_are_told_apart(found):
    names = [arm.name for arm in found.arms if arm.trained_with == "explicit_euler"]
    assert names == [
        "explicit_euler, 1 step",
        "rk4, 1 step (trained with explicit_euler)",
        "explicit_euler, 2 steps (trained with 1)",
        "explicit_euler, 2 steps",
    ]
    assert [arm.swapped for arm in found.arms if arm.trained_with == "explicit_euler"] == [False, True, False, False]


def test_each_question_compares_with_its_own_reference(found):
    compared = [(r.question, r.arm.name, r.against.name) for r in found_readings.readings(found) if r.gaps]
    assert compared == [
        (found_readings.FINER, "explicit_euler, 2 steps (trained with 1)", "explicit_euler, 1 step"),
        (found_readings.FINER, "rk4, 2 steps (trained with 1)", "rk4, 1 step"),
        (found_readings.TRAINED, "explicit_euler, 2 steps", "explicit_euler, 1 step"),
        (found_readings.TRAINED, "rk4, 2 steps", "rk4, 1 step"),
        (found_readings.SWAP, "rk4, 1 step (trained with explicit_euler)", "explicit_euler, 1 step"),
        (found_readings.SWAP, "explicit_euler, 1 step (trained with rk4)", "rk4, 1 step"),
    ]


def test_what_was_made_worse_is_said_and_what_is_the_same_is_not(found):
    told = " ".join(page.headline(found))
    assert "2 less robust" in told and "The lowest: " in told and "Not every net converges" not in told
    assert (
        "explicit_euler at finer steps: observed order 1.01 [0.99, 1.03] over 3 seeds (order 1 by theory): at its order."
        in told
    )
    assert (
        "rk4 at finer steps: observed order 2.01 [1.99, 2.03] over 3 seeds (order 4 by theory): slower than its order (" in told
    )
    same = next(r for r in found_readings.readings(found) if r.question == found_readings.FINER and r.gaps)
    assert same.gaps[found.middle].estimate.value == 0


def test_what_does_not_converge_is_named_and_not_counted_as_right():
    found = sweep(lost=45)
    assert "leaves up to 10.0 % of the images without an answer to trust. They count as wrong." in " ".join(
        page.headline(found)
    )
    cells = [row[-1] for row in page.summary(found)]
    assert cells[0] == "not converged, max %" and "10.0" in cells


def test_one_seed_has_no_rate_to_tell():
    assert "an interval takes two seeds" in page.headline(sweep(seeds=(0,)))[0]


def test_the_page_and_its_files(found, tmp_path):
    report.write_report(found, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for title in (
        "Does the network converge to its differential equation?",
        "Run with another scheme",
        "The same weights, finer",
    ):
        assert title in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"convergence.png", "swap.png", "sweep.png"}
    files = {name: [dict(zip(header, row)) for row in rows] for name, (header, *rows) in report.further_files(found).items()}
    rows = files["steps.csv"]
    assert len(rows) == 2 * (4 + 4 + 4) and {row["seeds"] for row in rows} == {3}
    swapped = [row for row in rows if row["trained_with"] != row["scheme"] and row["epsilon"] == 0.1]
    assert {row["verdict"] for row in swapped} == {"less robust"} and len(files["convergence.csv"]) == 2 * 3 * 4


def test_no_scale_of_the_matrix_goes_beyond_all_images(found):
    def whole(record):
        return replace(record, measurements=tuple(measurement(m.attack, m.epsilon, [1] * 9) for m in record.measurements))

    perfect = comparison(found.config, [whole(record) for record in found.records])
    for shown in (perfect, found):
        own = [r for r in found_readings.readings(shown) if r.question == found_readings.SWAP]
        for axes in step_figures.swap(shown, own).axes:
            scale = [image.get_clim() for image in axes.images]
            assert all(0 <= low < high <= 100 for low, high in scale)
            assert not axes.get_label() == "<colorbar>" or axes.get_ylim()[1] <= 100


def test_records_of_a_swap_go_through_json():
    record = sweep().records[1]
    swapped = next(record for record in sweep().records if record.swapped)
    assert Record.from_json(swapped.to_json()) == swapped and Record.from_json(record.to_json()) == record
    refined = next(record for record in sweep().records if record.refinement)
    assert Record.from_json(refined.to_json()).refinement == refined.refinement
    assert swapped.key == (swapped.trained_as, "residual", 1, swapped.seed) != swapped.walk


def test_a_spec_looser_in_training_is_no_swap():
    """Records of earlier versions have another tolerance in `trained_as`."""
    base = measured("implicit_euler", 0)
    assert base.trained_as != base.scheme and base.key[0] == "implicit_euler" and base.trained_with == "implicit_euler"
    assert measurement("clean", 0.0, [True]).accuracy == 1
