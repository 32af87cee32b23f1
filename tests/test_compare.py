"""The main script from the command line: one small run end to end, resumed, and every kind of bad input."""
import csv
import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from experiments import compare_schemes, sweep_steps
from experiments.harness import checkpoints, runner
from experiments.harness.case import Case
from experiments.harness.experiment import add_arguments, make_config
from experiments.harness.records import RECORD_KEYS, Run

ROOT = Path(__file__).parent.parent
SMOKE = ["--schemes", "explicit,ie_skip(gamma=0.05),implicit", "--smoke", "--epsilons", "0.1"]


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def record(seed, substeps=1):
    return dict.fromkeys(RECORD_KEYS, []) | {"scheme": "explicit_euler", "trained_substeps": 1, "seed": seed,
                                             "substeps": substeps, "seconds": {}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished smoke run, made the way a user makes it."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    done = subprocess.run([sys.executable, "experiments/compare_schemes.py", *SMOKE, "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "implicit_euler: unconverged solves" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    assert str(out / "report.html") in done.stdout.replace("\n", "")
    assert "interval over images" in done.stdout and "over seeds" not in done.stdout, "one seed has no interval over seeds"
    return out


def test_the_folder_of_a_run(run):
    assert {"config.json", "records.jsonl", "accuracy.csv", "stability.csv", "audit.csv", "figures", "checkpoints", "report.html"} <= set(os.listdir(run))
    config = json.loads((run / "config.json").read_text())
    assert config["schemes"] == ["explicit_euler", "ie_skip(gamma=0.05)", "implicit_euler"] and torch.__version__.startswith(config["environment"]["torch"])
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert sorted(r["scheme"] for r in records) == sorted(config["schemes"])


def test_accuracy_table(run):
    table = rows(run / "accuracy.csv")
    assert list(table[0])[:12] == ["dataset", "model", "scheme", "substeps", "training", "seed", "attack", "epsilon", "gradient", "correct", "total", "accuracy"]
    assert {row["attack"] for row in table} == {"clean", "pgd2"} and {row["gradient"] for row in table} == {"exact", "detached"}
    detached = {row["scheme"] for row in table if row["gradient"] == "detached"}
    assert detached == {"ie_skip(gamma=0.05)", "implicit_euler"}
    for row in table:
        assert int(row["total"]) == 24 and 0 <= float(row["accuracy"]) <= 1
        assert float(row["accuracy"]) == pytest.approx(int(row["correct"]) / 24, abs=1e-6)


def test_stability_and_audit_tables(run):
    table = rows(run / "stability.csv")
    assert list(table[0])[:6] == ["scheme", "seed", "stage", "block", "metric", "value"]
    assert {(row["stage"], row["block"]) for row in table} == {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}
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


def test_resuming_runs_only_what_is_missing_and_gives_the_same(run, tmp_path):
    """A run whose last case was cut off in the middle of its line."""
    copy = tmp_path / "cut"
    copy.mkdir()
    (copy / "config.json").write_bytes((run / "config.json").read_bytes())
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (copy / "records.jsonl").write_text(lines[0] + lines[1][:100])
    assert compare_schemes.main([*SMOKE, "--out", str(copy), "--resume"]) == 0
    resumed = [json.loads(line) for line in (copy / "records.jsonl").read_text().splitlines()]
    assert resumed[0] == json.loads(lines[0]) and len(resumed) == 3
    assert (copy / "accuracy.csv").read_text() == (run / "accuracy.csv").read_text()


def test_one_missing_case_runs_in_this_process_and_gives_the_same(run, tmp_path, monkeypatch, capsys):
    """One thread, as in a worker; and the line about another environment, since the recorded one is made to differ."""
    copy, seen, run_case = tmp_path / "cut", [], runner.run_case
    copy.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["environment"]["torch"] = "1.0"
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "records.jsonl").write_text("".join((run / "records.jsonl").read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr(runner, "run_case", lambda *arguments: seen.append(torch.get_num_threads()) or run_case(*arguments))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert compare_schemes.main([*SMOKE, "--out", str(copy), "--resume", "--no-download"]) == 0
        assert seen == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert (copy / "accuracy.csv").read_text() == (run / "accuracy.csv").read_text()
    assert "another environment: torch was '1.0' and is now" in capsys.readouterr().out


def test_a_case_without_its_reruns_runs_again(tmp_path):
    whole, run = [record(seed=1), record(seed=1, substeps=2)], Run(tmp_path / "run", {})
    run.append([record(seed=0)])
    run.append(whole)
    run = Run(tmp_path / "run", {}, resume=True)
    cases = [Case("explicit_euler", 1, seed, (2,)) for seed in range(3)]
    assert run.missing(cases) == [cases[0], cases[2]]
    assert run.records == whole == Run(tmp_path / "run", {}, resume=True).records


@pytest.mark.parametrize(("error", "sentence"), [
    (RuntimeError("unsolved\nby far"), "unsolved"), (AssertionError("underflow in dt 0.0"), "AssertionError: underflow in dt 0.0"),
    (ZeroDivisionError(), "ZeroDivisionError"), (ValueError("diverged"), "diverged")])
def test_a_case_that_fails_leaves_the_others_and_its_sentence(error, sentence, tmp_path, monkeypatch):
    def run_case(config, folder, case, progress, say):
        if case.seed == 0:
            raise error
        return [record(seed=case.seed)]
    monkeypatch.setattr(runner, "run_case", run_case)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {"device": "cpu"})
    assert runner.run_cases(run, cases, console, workers=1) == {cases[0].name: sentence}
    assert run.records == [record(seed=1)]


def test_exit_code_of_a_run_with_a_failure(tmp_path, capsys):
    arguments = ["--schemes", "explicit,implicit(on_failure=raise,max_iterations=1,tol=1e-6)", "--workers", "1", *SMOKE[2:]]
    assert compare_schemes.main([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert "substeps1-seed0 failed: " in capsys.readouterr().out
    assert {row["scheme"] for row in rows(tmp_path / "run" / "accuracy.csv")} == {"explicit_euler"}


def _fail_or_die(config, folder, case):
    """In place of a worker's job."""
    if config["fatal"]:
        os.kill(os.getpid(), signal.SIGKILL)
    raise FloatingPointError(case.name)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_that_fail_and_workers_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", _fail_or_die)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    failures = runner.run_cases(Run(tmp_path / "failing", {"device": "cpu", "fatal": False}), cases, console, workers=2)
    assert failures == {case.name: f"FloatingPointError: {case.name}" for case in cases}
    with pytest.raises(ChildProcessError, match="a worker was killed .out of memory.*; --resume goes on"):
        runner.run_cases(Run(tmp_path / "killed", {"device": "cpu", "fatal": True}), cases, console, workers=2)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_a_killed_parent():
    worker = ("import time; from experiments.harness.runner import _start_worker; _start_worker(None, {}); "
              "print(1, flush=True); time.sleep(60)")
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}.format(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.kill()
    # The worker holds the pipe open for as long as it lives.
    assert process.communicate(timeout=20)[0] == b""


def test_sweep_of_substeps(tmp_path):
    out = tmp_path / "sweep"
    assert sweep_steps.main(["--schemes", "explicit", "--substeps", "1,2", "--smoke", "--epsilons", "0.1", "--out", str(out)]) == 0
    arms = {(row["trained_substeps"], row["substeps"]) for row in rows(out / "accuracy.csv")}
    assert arms == {("1", "1"), ("1", "2"), ("2", "2")}, "retrained with 1 and 2 substeps, and trained with 1 and run with 2"


BAD = [
    (["--schemes", "explicit,magic"], "unknown scheme 'magic'; choose from explicit, implicit"),
    (["--schemes", "ie_skip(gama=0.1)"], "unknown parameter 'gama'"),
    (["--schemes", "ie_skip(gamma=0)"], "gamma must be positive and finite, got 0.0"),
    (["--schemes", ""], "--schemes is empty"),
    (["--schemes", "explicit,euler"], "scheme 'euler' stands twice"),
    (["--schemes", "explicit", "--substeps", "0"], "--substeps must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--substeps", "1,2"], "sweep_steps.py"),
    (["--schemes", "explicit", "--epsilons", "-0.1"], "--epsilons must be finite and at least 0, got -0.1"),
    (["--schemes", "explicit", "--epsilons", "nan"], "--epsilons"),
    (["--schemes", "explicit", "--epsilons", "a"], "--epsilons takes numbers"),
    (["--schemes", "explicit", "--seeds", ","], "--seeds is empty"),
    (["--schemes", "explicit", "--seeds", "0,0"], "--seeds names 0 twice"),
    (["--schemes", "explicit", "--attacks", "pgd"], "unknown attack 'pgd'"),
    (["--schemes", "explicit", "--attacks", ""], "--attacks is empty"),
    (["--schemes", "explicit", "--dataset", "imagenet"], "unknown --dataset 'imagenet'; choose from digits, mnist"),
    (["--schemes", "explicit", "--model", "vgg"], "unknown --model 'vgg'; choose from small, resnet18"),
    (["--schemes", "explicit", "--training", "magic"], "unknown --training 'magic'; choose from standard"),
    (["--schemes", "explicit", "--dataset", "mnist", "--data-dir", "/nowhere", "--no-download"], "no mnist files in /nowhere"),
    (["--schemes", "explicit", "--device", "tpu"], "unknown device 'tpu'"),
    (["--schemes", "explicit", "--resume"], "--resume needs --out"),
    (["--schemes", "explicit", "--out", ""], "--out is empty"),
    (["--schemes", "explicit", "--epochs", "0"], "--epochs must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--scheme", "rk4"], "unrecognized arguments"),
    (["--smoke"], "--schemes"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "")
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, capsys):
    out = [] if {"--resume", "--out"} & {*arguments} else ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main([*arguments, *out])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_asked_for_and_absent(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--device", "cuda", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2 and "finds no CUDA here; choose auto or cpu" in capsys.readouterr().err


def test_an_unwritable_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--smoke", "--out", str(tmp_path / "file" / "run")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "file/run" in error and "Traceback" not in error


@pytest.mark.parametrize("line", [b"{not json}", b"\xff\x00\xfe", b"[]", b"{}", b""])
def test_a_damaged_record_is_named(line, tmp_path):
    config = {"schemes": ["explicit_euler"]}
    Run(tmp_path / "run", config)
    (tmp_path / "run" / "records.jsonl").write_bytes(json.dumps(record(0)).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"records.jsonl is damaged \(line 2\); remove that line"):
        Run(tmp_path / "run", config, resume=True)


@pytest.mark.parametrize("text", [b"{not json}", b"\xff\x00\xfe", b"[]", b""])
def test_a_damaged_configuration_is_named(text, tmp_path):
    Run(tmp_path / "run", {})
    (tmp_path / "run" / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json is damaged .*choose another --out"):
        Run(tmp_path / "run", {}, resume=True)


def test_a_folder_that_tells_of_no_run_counts_as_empty(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "a.tmp").touch()
    (tmp_path / "run" / "config.json.tmp").touch()
    Run(tmp_path / "run", {})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {}
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    Run(tmp_path / "run", {}, resume=True)
    assert (tmp_path / "run" / "checkpoints").is_dir(), "killed between the configuration and the folder"


@pytest.mark.parametrize(("given", "used"), [([], 0.1), (["--train-epsilon", "0"], 0), (["--train-epsilon", "0.3"], 0.3)])
def test_the_radius_of_the_training_attack(given, used):
    parser = ArgumentParser()
    add_arguments(parser)
    assert make_config(parser.parse_args(["--schemes", "explicit", *given]), "test")["train_epsilon"] == used


def test_case_names_are_file_names():
    names = {Case(scheme, substeps, 0).name for scheme in ("ie_skip", "ie_skip(gamma=0.05,iterations=2)") for substeps in (1, 2)}
    assert len(names) == 4 and not any(set(name) & set("()/, ") for name in names)
