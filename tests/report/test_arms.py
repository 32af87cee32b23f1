"""What is compared with what where cases are missing, came in another order, or are read again otherwise than trained."""

import json
import random
from dataclasses import replace
from pathlib import Path

from records import compared, config, measured, run, sweep, verdict

from experiments.harness import statistics
from experiments.harness.report import certificates, collection, figures, sentences, steps
from experiments.harness.report import comparison as report
from experiments.harness.report.arms import comparison
from experiments.harness.report.readings import TRAINED, readings
from experiments.harness.run.certified import CertifyConfig, Line, by_pair
from experiments.harness.statistics import Estimate

THREE = ("explicit_euler", "heun", "rk4")


def of(schemes, keep, **changes):
    """A run of which only the cases are there that `keep(scheme, seed)`."""
    made, records = run(schemes)
    return comparison(replace(made, **changes), [r for r in records if keep(r.scheme, r.seed)])


def test_a_look_takes_the_first_seeds_in_whatever_order_they_ended():
    made, records = run(seeds=tuple(range(7)))
    made, ended = replace(made, looks=(5, 8)), random.Random(1).sample(records, len(records))
    assert comparison(made, ended) == comparison(made, records)
    assert comparison(made, ended).gaps == comparison(made, records).gaps


def test_where_the_first_scheme_has_no_net_the_next_is_the_reference_and_is_named():
    found = of(THREE, lambda scheme, seed: scheme != "explicit_euler")
    table = sentences.summary_table(found)
    assert [row[1] for row in table.rows if row[7] == "reference"] == ["heun"] * 4
    assert "All comparisons are with heun." in table.caption
    said = sentences.headline(found)
    assert "rk4 against heun" in said[0] and "alone" not in said[0] and not report.clear(found)
    assert any(f"explicit_euler, seed {seed}" in text for seed in range(3) for text in sentences.caveats(found))
    assert "Difference to heun" in report.COMPARED["accuracy"](found).axes[1].get_title("left")
    assert "Difference to heun" in report.CROWDED["accuracy"](found).axes[1].get_title("left")


def test_what_shares_no_seed_with_the_reference_is_no_reference():
    found = of(THREE, lambda scheme, seed: (seed == 2) == (scheme == "heun"))
    table = sentences.summary_table(found)
    assert [row[7] for row in table.rows if row[1] == "heun"] == ["no seed in common"] * 4
    assert "Of a scheme with one net left the interval is over its images alone." in table.caption
    assert "one net left" not in sentences.summary_table(compared(THREE)).caption
    alone = of(THREE[:2], lambda scheme, seed: (seed == 2) == (scheme == "heun"))
    assert sentences.headline(alone)[0].endswith("No other scheme has a seed in common with it.")


def test_in_a_sweep_too():
    found = sweep()
    found = comparison(found.config, [r for r in found.records if (r.trained_substeps == 2) == (r.seed == 2)])
    page = Path("run")
    rows = {row[1]: row[7] for row in collection.grid(collection.Collection({page: found})).rows}
    cells = [(r.arm.name, steps._cells(found, r)[-2]) for r in readings(found)]
    told = [row[3:5] + row[12:13] for row in steps.files(found)["steps.csv"][1:] if row[0] == TRAINED and row[5]]
    for scheme in ("explicit_euler", "rk4"):
        assert rows[f"{scheme}, 2 steps"] == "no seed in common" and rows[f"{scheme}, 1 step"] == "reference"
        assert [said for name, said in cells if name == f"{scheme}, 2 steps"] == ["no seed in common"]
        assert {said for name, said in cells if name == f"{scheme}, 1 step"} == {"reference"}
        assert (scheme, 2, "no seed in common") in told and (scheme, 1, "reference") in told


def test_and_among_certified_nets():
    folder = Path(__file__).parents[2] / "docs" / "records" / "certified-peers"
    lines = [Line.from_json(json.loads(line)) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]
    nets = by_pair([line for line in lines if line.network in ("mnist, CPL, seed 0", "mnist, splitting, seed 1")])
    given = json.loads((folder / "config.json").read_text("utf-8"))
    made = CertifyConfig(**{k: v for k, v in given.items() if k not in ("experiment", "parameters")})
    header, *rows = certificates.rows(made, nets)
    assert [row[header.index("verdict")] for row in rows] == ["reference", "no seed in common"]


def test_a_run_with_one_scheme_left_did_not_end_because_all_was_clear():
    found = of(THREE[:2], lambda scheme, seed: scheme == "heun", looks=(3, 5))
    assert "It ended because one scheme alone has nets." in report._looks(found).parts[0].text


def test_nets_that_a_figure_cannot_show_are_counted():
    made, records = run(THREE)
    infinite = tuple(replace(m, value=float("inf")) if m.metric == "step_norm" else m for m in records[0].stability)
    drawn = figures.measure_figure(comparison(made, [replace(records[0], stability=infinite), *records[1:]]))
    assert drawn.get_supxlabel().endswith("mean over blocks and images (1 net at infinity not shown)")
    assert figures.measure_figure(comparison(made, records)).get_supxlabel().endswith("mean over blocks and images")


def test_a_sweep_is_clear_where_its_own_readings_are():
    """rk4 is far from explicit Euler, which says nothing of rk4 with finer steps against itself."""
    records = []
    for scheme, gap, noise in (("explicit_euler", 0.08, 0.0005), ("rk4", 0.0, 0.004)):
        for seed in range(6):
            again = measured(scheme, seed, gap=gap + noise * (-1) ** seed * seed)
            records += [measured(scheme, seed, gap=gap), replace(again, substeps=2, trained_substeps=1)]
    made = config(THREE[::2], range(6), experiment="sweep_steps", substeps=(1, 2), reads=("finer",), looks=(5, 8), margin=0.05)
    found = comparison(made, records)
    assert all(gap.verdict != "cannot tell yet" for (_, eps), gap in found.gaps.items() if eps == found.middle)
    said = {f"{name}: {against.name}": gap.verdict for name, (against, gap) in report.differences(found).items()}
    assert list(said) == [f"{scheme}, 2 steps (trained with 1): {scheme}, 1 step" for scheme in made.schemes]
    assert said.popitem()[1] == "cannot tell yet" and not report.clear(found)
    rows = report._looks(found).parts[1].rows
    assert [row[0] for row in rows] == ["5", "5"] and rows[1][1].startswith("rk4, 2 steps")


def test_a_scheme_of_a_sweep_of_which_nothing_is_left_is_named():
    found = sweep()
    left = comparison(found.config, [r for r in found.records if r.trained_with != "rk4"])
    assert any(text.startswith("Cases are missing (rk4, 1 step, seed 0; ") for text in sentences.caveats(left))
    assert steps.sections(left), "the page is drawn without it"


def test_nets_are_counted_once_however_often_they_are_read():
    found = sweep()
    read = [r.swapped or r.substeps != r.trained_substeps for r in found.records]
    records = [r if again else replace(r, audit=verdict(r.seed > 0)) for r, again in zip(found.records, read)]
    found = comparison(found.config, records)
    assert len(found.nets) == 12 and len(found.records) == 24
    said = sentences.caveats(found)
    assert (
        any("across 12 nets is no cause" in text for text in said)
        and "Only the nets in the audit table were audited." not in said
    )
    assert any(text.startswith("Not to be trusted: explicit_euler, 1 step") for text in steps.headline(found))
    passed = [replace(r, audit=r.audit and verdict()) for r in records]
    assert "All 12 nets passed the audit." in steps.headline(comparison(found.config, passed))


def test_many_schemes_are_more_robust_and_one_is():
    names = ("explicit_euler", "heun", "midpoint", "rk4", "ssprk33", "ralston2", "kutta3", "implicit_euler", "trapezoid")
    told = sentences.headline(compared(names, seeds=tuple(range(12))))[0]
    assert "8 of 8 schemes are less robust than explicit_euler" in told


def test_how_many_seeds_would_tell_is_said_of_those_that_they_would_tell():
    found, open_ = compared(), Estimate(0.01, -0.03, 0.05, 3, "seeds and images", 0.95)

    def said(*needed):
        gaps = {str(i): (found.arms[1], statistics.Gap(open_, statistics.OPEN, seeds)) for i, seeds in enumerate(needed)}
        return [text.split(": ")[0] for text in sentences._further(found, gaps)]

    assert said() == []
    assert said(7, 12) == ["By the variances seen here, about 12 seeds in all would tell in four runs of five."]
    assert said(None, None) == ["By the variances seen here no number of seeds would tell"]
    (some,) = said(7, None, 12)
    assert "about 12 seeds in all would tell for 2 of 3" in some and "for the others there are too few test images" in some
