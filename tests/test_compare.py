"""The main script from the command line: one small run end to end, resumed, and every kind of bad input."""
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import compare_schemes, sweep_steps
from experiments.harness.case import Case, build
from experiments.harness.records import Run

ROOT = Path(__file__).parent.parent
SMOKE = ["--schemes", "explicit,ie_skip(gamma=0.05),implicit", "--smoke", "--epsilons", "0.1"]


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished smoke run, made the way a user makes it."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    done = subprocess.run([sys.executable, "experiments/compare_schemes.py", *SMOKE, "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    assert str(out / "report.html") in done.stdout.replace("\n", "")
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
    assert {"spectral_radius", "log_norm", "step_norm", "mean_abs_R"} <= {row["metric"] for row in table}
    assert {row["scheme"] for row in rows(run / "audit.csv")} == {"explicit_euler", "ie_skip(gamma=0.05)", "implicit_euler"}


def test_the_checkpoint_holds_the_weights(run):
    for path in (run / "checkpoints").iterdir():
        saved = torch.load(path, weights_only=True)
        net = build({"model": saved["model"]}, saved["num_classes"], saved["in_channels"], saved["scheme"], saved["substeps"])
        net.load_state_dict(saved["state_dict"])


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
    (["--schemes", "explicit", "--epochs", "0"], "--epochs must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--scheme", "rk4"], "unrecognized arguments"),
    (["--smoke"], "--schemes"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "")
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, capsys):
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
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


def test_a_damaged_record_is_named(tmp_path):
    config = {"schemes": ["explicit_euler"]}
    Run(tmp_path / "run", config)
    (tmp_path / "run" / "records.jsonl").write_text("{not json}\n")
    with pytest.raises(ValueError, match="records.jsonl is damaged"):
        Run(tmp_path / "run", config, resume=True)


def test_case_names_are_file_names():
    names = {Case(scheme, substeps, 0).name for scheme in ("ie_skip", "ie_skip(gamma=0.05,iterations=2)") for substeps in (1, 2)}
    assert len(names) == 4 and not any(set(name) & set("()/, ") for name in names)
