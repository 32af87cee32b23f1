"""A run that adds seeds until it is clear: its looks, its ends, and going on."""

import json
from pathlib import Path

import pytest
from records import measured

from experiments import compare_schemes
from experiments.harness import conduct
from experiments.harness.report import comparison as report


@pytest.fixture
def runs(monkeypatch):
    """Calls of the runner as numbers of seeds; records are made up: heun is behind by `gap`."""
    calls = []
    gap = {"heun": 0.0}

    def run_cases(run, config, cases, console, workers, budget, audits, cluster):
        calls.append(len(config.seeds))
        run.missing(cases)
        for seed in range(len(config.seeds), (budget.at_most or 0) if budget else 0):
            run.take_seed(seed)
            cases = [*cases, *budget.cases(seed)]
        known = {record.key for record in run.records}
        run.append([measured(c.scheme, c.seed, gap=gap[c.scheme]) for c in cases if c.key not in known])
        return {}

    gap["explicit_euler"] = 0.0
    monkeypatch.setattr(conduct, "run_cases", run_cases)
    return calls, gap


def run(out, *options):
    return compare_schemes.main(["--schemes", "explicit,heun", "--until-clear", "--out", str(out), *options])


def seeds_of(out):
    return json.loads((Path(out) / "config.json").read_text())["seeds"]


def test_it_ends_when_it_is_clear(runs, tmp_path, capsys):
    calls, gap = runs
    gap["heun"] = 0.06
    assert run(tmp_path / "run") == 0 and calls == [5] and seeds_of(tmp_path / "run") == [0, 1, 2, 3, 4]
    page = (tmp_path / "run" / "report.html").read_text()
    assert (
        "Until it was clear" in page and "because every difference had a verdict" in page and "5, 8, 12, 20, 30 seeds" in page
    )
    assert "heun is less robust than explicit_euler" in " ".join(capsys.readouterr().out.split())


def test_it_goes_on_while_it_is_not_and_ends_at_the_most(runs, tmp_path):
    calls, _ = runs
    run(tmp_path / "run", "--seeds-at-most", "9", "--margin", "0.01")
    assert calls == [5, 8, 9] and len(seeds_of(tmp_path / "run")) == 9
    assert "that was the most it may take" in (tmp_path / "run" / "report.html").read_text()
    calls.clear()
    run(tmp_path / "run", "--seeds-at-most", "9", "--margin", "0.01", "--resume")
    assert calls == [9], "a look that the run has passed did not end it"


def test_a_budget_ends_it_anywhere(runs, tmp_path):
    calls, _ = runs
    run(tmp_path / "run", "--budget", "1h", "--seeds-at-most", "8", "--margin", "0.01")
    assert calls == [3, 5] and len(seeds_of(tmp_path / "run")) == 8, "three seeds begin, the planner takes the rest"


def test_the_sequence_keeps_what_was_seen(runs, tmp_path):
    from experiments.harness.report.arms import comparison
    from experiments.harness.run.config import RunConfig
    from experiments.harness.run.folder import Run

    run(tmp_path / "run", "--seeds-at-most", "10", "--margin", "0.01")
    config = RunConfig.from_json(json.loads((tmp_path / "run" / "config.json").read_text()))
    found = comparison(config, Run(tmp_path / "run", config.to_json(), resume=True).records)
    assert report.differences(found.first(10))["heun"] == (found.arms[0], found.gap(found.arms[1], found.middle))
    assert report.differences(found.first(5))["heun"][1].estimate.n == 5
    rows = report._looks(found).parts[1].rows
    assert [row[0] for row in rows] == ["5", "8", "10"]


def test_what_was_fixed_stays_fixed(runs, tmp_path, capsys):
    run(tmp_path / "run", "--seeds-at-most", "6")
    for options, sentence in (
        (["--seeds-at-most", "20"], "looks was [5, 6] and is now [5, 8, 12, 20]"),
        (["--margin", "5"], "margin was 0.02 and is now 0.05"),
    ):
        with pytest.raises(SystemExit):
            run(tmp_path / "run", "--resume", *options)
        assert sentence in capsys.readouterr().err
    other = tmp_path / "fixed"
    compare_schemes.main(["--schemes", "explicit,heun", "--seeds", "0,1,2", "--out", str(other)])
    with pytest.raises(SystemExit):
        run(other, "--resume")
    assert "looks was [] and is now" in capsys.readouterr().err, "who has looked already cannot begin to look by plan"


def test_seeds_that_are_added_after_a_report_are_no_plan(runs, tmp_path):
    out, caveat = tmp_path / "run", "The run was reported after 3 seeds and then went on"
    options = ["--schemes", "explicit,heun", "--out", str(out)]
    compare_schemes.main([*options, "--seeds", "0,1,2"])
    assert json.loads((out / "config.json").read_text())["reported"] == [3]
    assert caveat not in (out / "report.html").read_text()
    compare_schemes.main([*options, "--seeds", "0,1,2,3", "--resume"])
    assert json.loads((out / "config.json").read_text())["reported"] == [3, 4] and caveat in (out / "report.html").read_text()
