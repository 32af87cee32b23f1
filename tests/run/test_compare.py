"""The main script from the command line: one small run end to end, and resumed."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import compare_schemes, sweep_steps
from experiments.harness.run import checkpoints, runner
from experiments.harness.run import measure as evaluation
from experiments.harness.run.case import Case

ROOT = Path(__file__).parents[2]
SMOKE = ["--schemes", "explicit,ie_skip(gamma=0.05),implicit", "--smoke", "--epsilons", "0.1"]


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def implicit_first(run):
    """The lines of a run's records: a test that keeps the first ones does the cheap cases again, not the one that solves."""
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    return sorted(lines, key=lambda line: json.loads(line)["scheme"] != "implicit_euler")


@pytest.fixture
def no_stability(monkeypatch):
    """Without the measurement that takes most of a smoke run's time, where a test does not look at it (in this process)."""
    monkeypatch.setattr(evaluation, "measure_stability", lambda *arguments, **settings: ([], {}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished smoke run, made the way a user makes it."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    done = subprocess.run(
        [sys.executable, "experiments/compare_schemes.py", *SMOKE, "--out", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "implicit_euler: unconverged solves" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    assert str(out / "report.html") in done.stdout.replace("\n", "")
    assert "interval over images" in done.stdout and "over seeds" not in done.stdout, "one seed has no interval over seeds"
    return out


def test_the_folder_of_a_run(run):
    assert {
        "config.json",
        "records.jsonl",
        "accuracy.csv",
        "stability.csv",
        "audit.csv",
        "figures",
        "checkpoints",
        "report.html",
    } <= set(os.listdir(run))
    config = json.loads((run / "config.json").read_text())
    assert config["schemes"] == ["explicit_euler", "ie_skip(gamma=0.05)", "implicit_euler"] and torch.__version__.startswith(
        config["environment"]["torch"]
    )
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert sorted(r["scheme"] for r in records) == sorted(config["schemes"])


def test_accuracy_table(run):
    table = rows(run / "accuracy.csv")
    assert list(table[0])[:12] == [
        "dataset",
        "model",
        "scheme",
        "substeps",
        "training",
        "seed",
        "attack",
        "epsilon",
        "gradient",
        "correct",
        "total",
        "accuracy",
    ]
    assert {row["attack"] for row in table} == {"clean", "pgd2"} and {row["gradient"] for row in table} == {"exact", "detached"}
    detached = {row["scheme"] for row in table if row["gradient"] == "detached"}
    assert detached == {"ie_skip(gamma=0.05)", "implicit_euler"}
    for row in table:
        assert int(row["total"]) == 24 and 0 <= float(row["accuracy"]) <= 1
        assert float(row["accuracy"]) == pytest.approx(int(row["correct"]) / 24, abs=1e-6)


def test_stability_and_audit_tables(run):
    table = rows(run / "stability.csv")
    assert list(table[0])[:6] == ["scheme", "seed", "stage", "block", "metric", "value"]
    blocks = {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}
    assert {(row["stage"], row["block"]) for row in table} == {*blocks, ("0", ""), ("1", ""), ("", "")}
    assert {"spectral_radius", "log_norm", "step_norm", "max_abs_R"} <= {row["metric"] for row in table}
    assert {row["scheme"] for row in rows(run / "audit.csv")} == {"explicit_euler", "ie_skip(gamma=0.05)", "implicit_euler"}


def test_the_checkpoint_holds_the_weights(run):
    for path in (run / "checkpoints").iterdir():
        net, meta = checkpoints.load_net(path)
        assert not net.training and (meta["dataset"], meta["seed"], meta["epochs"], meta["epoch"]) == ("digits", 0, 1, 1)
        assert meta["scheme"] in meta["config"]["schemes"] and path.stem == Case(meta["scheme"], meta["substeps"], 0).name


def test_report_is_one_file(run):
    page = (run / "report.html").read_text()
    assert "<html" in page and "http" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_a_finished_run_is_left_alone(run, capsys):
    before = {path: path.read_bytes() for path in run.glob("*.jsonl")}
    with pytest.raises(SystemExit) as refused:
        compare_schemes.main([*SMOKE, "--out", str(run)])
    assert refused.value.code == 2 and "already holds a run" in capsys.readouterr().err
    with pytest.raises(SystemExit) as changed:
        compare_schemes.main([*SMOKE, "--out", str(run), "--resume", "--learning-rate", "0.5"])
    assert changed.value.code == 2 and "learning_rate was 0.006 and is now 0.5" in capsys.readouterr().err
    assert compare_schemes.main([*SMOKE, "--out", str(run), "--resume"]) == 0
    assert "3 of 3 cases are already there" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}


def test_resuming_runs_only_what_is_missing_and_gives_the_same(run, tmp_path, no_stability):
    """A run whose last case was cut off in the middle of its line."""
    copy = tmp_path / "cut"
    copy.mkdir()
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    lines = implicit_first(run)
    (copy / "records.jsonl").write_text(lines[0] + lines[1][:100])
    assert compare_schemes.main([*SMOKE, "--out", str(copy), "--resume", "--workers", "1"]) == 0
    resumed = [json.loads(line) for line in (copy / "records.jsonl").read_text().splitlines()]
    assert resumed[0] == json.loads(lines[0]) and len(resumed) == 3
    assert (copy / "accuracy.csv").read_text() == (run / "accuracy.csv").read_text()


def test_one_missing_case_runs_in_this_process_and_gives_the_same(run, tmp_path, monkeypatch, capsys, no_stability):
    """One thread, as in a worker; and the line about another environment, since the recorded one is made to differ."""
    copy, seen, run_task = tmp_path / "cut", [], runner.run_task
    copy.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["environment"]["torch"] = "1.0"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "records.jsonl").write_text("".join(implicit_first(run)[:2]))
    monkeypatch.setattr(runner, "run_task", lambda *arguments: seen.append(torch.get_num_threads()) or run_task(*arguments))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert compare_schemes.main([*SMOKE, "--out", str(copy), "--resume", "--no-download", "--workers", "1"]) == 0
        assert {*seen} == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (copy / "accuracy.csv").read_text() == (run / "accuracy.csv").read_text()
    assert "another environment: torch was '1.0' and is now" in capsys.readouterr().out


def test_exit_code_of_a_run_with_a_failure(tmp_path, capsys, no_stability):
    arguments = ["--schemes", "explicit,implicit(on_failure=raise,max_iterations=1,tol=1e-6)", "--workers", "1", *SMOKE[2:]]
    assert compare_schemes.main([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert "substeps1-seed0 failed: " in capsys.readouterr().out
    assert {row["scheme"] for row in rows(tmp_path / "run" / "accuracy.csv")} == {"explicit_euler"}


def test_sweep_of_substeps(tmp_path, no_stability):
    out = tmp_path / "sweep"
    assert (
        sweep_steps.main(
            [
                "--schemes",
                "explicit",
                "--substeps",
                "1,2",
                "--read",
                "finer,trained",
                "--smoke",
                "--epsilons",
                "0.1",
                "--audit",
                "none",
                "--workers",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    arms = {(row["trained_substeps"], row["substeps"]) for row in rows(out / "accuracy.csv")}
    assert arms == {("1", "1"), ("1", "2"), ("2", "2")}, "retrained with 1 and 2 substeps, and trained with 1 and run with 2"


def test_weights_run_with_every_other_scheme(tmp_path, capsys, no_stability):
    line = [
        "--read",
        "swap",
        "--schemes",
        "explicit,heun,rk4",
        "--smoke",
        "--test-limit",
        "8",
        "--seeds",
        "0,1",
        "--audit",
        "none",
    ]
    line += ["--workers", "1", "--out", str(tmp_path / "swap")]
    assert sweep_steps.main(line) == 0
    told = capsys.readouterr().out
    assert "6 nets to train, 18 to attack (explicit_euler, heun, rk4; seeds 0, 1)" in told
    pairs = {(row["trained_with"], row["scheme"]) for row in rows(tmp_path / "swap" / "accuracy.csv")}
    assert len(pairs) == 9 and (tmp_path / "swap" / "steps.csv").exists()
    lines = (tmp_path / "swap" / "records.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 18
    # A case whose records are not all there runs again.
    (tmp_path / "swap" / "records.jsonl").write_text("".join(lines[:-1]))
    assert sweep_steps.main([*line, "--resume"]) == 0 and "5 of 6 cases are already there" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep_steps.main([*line, "--resume", "--read", "finer", "--substeps", "1,2"])
    assert "reads was ['swap'] and is now ['finer']" in capsys.readouterr().err
