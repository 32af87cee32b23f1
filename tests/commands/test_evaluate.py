"""evaluate.py from the command line: networks of ours and a user's own, killed and resumed, marked, and bad input."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from audited import trained, widened
from records import described, measurement, record

from experiments import evaluate
from experiments.harness.report import evaluation as evaluation_report
from experiments.harness.run import checkpoints
from experiments.harness.run import measure as evaluation
from experiments.harness.run.schema import Measurement
from odenets.errors import InputError

ROOT = Path(__file__).parents[2]
QUICK = ["--epsilons", "0.1", "--test-limit", "20", "--audit-images", "6", "--device", "cpu"]
OWN = """
import torch
from torch import nn

class Cheat(nn.Module):
    '''Knows its digits, and rounds its logits so that no gradient gets through.'''
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        return torch.round(self.layer(x.flatten(1)) * 8) / 8

def linear(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
def cheat():
    torch.manual_seed(0)
    return Cheat()
class Stuck(Cheat):
    '''Overwrites what its backward pass would need.'''
    def forward(self, x):
        h = x.flatten(1).sigmoid()
        logits = self.layer(h)
        h.zero_()
        return logits
def stuck():
    torch.manual_seed(0)
    return Stuck()
class Lost(Cheat):
    def forward(self, x):
        return {}["logits"]
def few(): return linear(4)
def nan(): return nn.Sequential(linear(), nn.Threshold(9.0, float("nan")))
def pair():
    net = nn.Flatten()
    net.forward = lambda x: (x, x)
    return net
"""


def save(path, scheme="explicit_euler", **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"scheme": scheme, "seed": 3, "epochs": 3, "epoch": 3, "state_dict": widened(trained().state_dict())}
    checkpoints.save(path, described(**known | changes))
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own", None)


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_folder_of_ours(folder, capsys):
    for scheme in ("explicit_euler", "ie_skip"):
        save(folder / "run" / "checkpoints" / f"{scheme}.pt", scheme)
    assert evaluate.main(["run", "--attacks", "pgd3,square5", *QUICK, "--audit", "--out", "out"]) == 0
    table = rows("out/accuracy.csv")
    assert [(row["scheme"], row["attack"], row["gradient"]) for row in table] == [
        ("explicit_euler", "clean", "exact"),
        ("explicit_euler", "pgd3", "exact"),
        ("explicit_euler", "square5", "exact"),
        ("explicit_euler", "worst", "all"),
        ("ie_skip", "clean", "exact"),
        ("ie_skip", "pgd3", "exact"),
        ("ie_skip", "pgd3", "detached"),
        ("ie_skip", "square5", "exact"),
        ("ie_skip", "worst", "all"),
    ]
    assert {row["seed"] for row in table} == {"3"} and {row["total"] for row in table} == {"20"}
    right = {(row["scheme"], row["attack"], row["gradient"]): int(row["correct"]) for row in table}
    for scheme in ("explicit_euler", "ie_skip"):
        assert right[scheme, "worst", "all"] <= min(n for key, n in right.items() if key[0] == scheme)
    assert {row["audit"] for row in table} <= {"passed", "failed"}
    assert {row["check"] for row in rows("out/audit.csv")} >= {"black_box", "tolerance", "more_steps"}
    page, said = (folder / "out" / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    for phrase in ("explicit_euler", "worst of all", "detached", "Audit", "audit"):
        assert phrase in page, phrase
    assert "report.html" in said and "worst of all" in said and "square5" in said


def test_a_cheat_of_the_users_own_is_marked_everywhere(folder, capsys):
    assert evaluate.main(["own.py:cheat", "--dataset", "digits", "--attacks", "pgd3", *QUICK, "--out", "out"]) == 0
    assert {row["audit"] for row in rows("out/accuracy.csv")} == {"failed"}
    assert {(row["model"], row["scheme"], row["training"]) for row in rows("out/accuracy.csv")} == {
        ("own.py:cheat", "none", "unknown")
    }
    page, said = (folder / "out" / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert page.count("own.py:cheat \u2020") >= 3 and "own.py:cheat \u2020" in said
    assert "failed its audit (zero_gradients" in re.sub(r"\s+", " ", said)
    assert (
        evaluate.main(
            [
                "own:linear",
                "--dataset",
                "digits",
                "--attacks",
                "fgsm",
                *QUICK,
                "--audit",
                "none",
                "--threat",
                "l2",
                "--out",
                "other",
            ]
        )
        == 0
    )
    assert {row["audit"] for row in rows("other/accuracy.csv")} == {"not audited"}
    assert "not audited" in (said := capsys.readouterr().out) and "measurements to make of 1 network, on 20" in said
    assert said.count(": done (") == int(said.split(" measurements")[0].split()[-1])
    assert "\u2020 " not in (folder / "other" / "accuracy.csv").read_text()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_and_resumed_gives_the_same(folder):
    path = save(folder / "net.pt", "ie_skip")
    arguments = [path, "--attacks", "pgd2,pgd40,square4", *QUICK, "--audit", "none"]
    assert evaluate.main([*arguments, "--out", "whole"]) == 0
    process = subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "evaluate.py", *arguments, "--out", "cut"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    records, deadline = folder / "cut" / "records.jsonl", time.monotonic() + 120
    while not (records.exists() and records.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = records.read_bytes()
    assert evaluate.main([*arguments, "--out", "cut", "--resume"]) == 0
    assert records.read_bytes().startswith(kept[: kept.rindex(b"\n")])
    assert (folder / "cut" / "accuracy.csv").read_bytes() == (folder / "whole" / "accuracy.csv").read_bytes()


def test_a_finished_run_is_not_measured_again_and_another_network_is_refused(folder, monkeypatch, capsys):
    path = save(folder / "net.pt")
    arguments = [path, "--attacks", "fgsm", *QUICK, "--audit", "none", "--out", "out"]
    assert evaluate.main(arguments) == 0
    monkeypatch.setattr(evaluation, "measure_attack", None)
    assert evaluate.main([*arguments, "--resume"]) == 0
    save(folder / "net.pt", state_dict={key: value + 1 for key, value in widened(trained().state_dict()).items()})
    for extra, sentence in ((["--resume"], "another configuration (weights was"), ([], "already holds a run")):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([*arguments, *extra])
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_a_network_that_fails_in_an_attack_leaves_a_sentence_and_what_came_before(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(
            [
                "own.py:stuck",
                "--dataset",
                "digits",
                "--attacks",
                "square5,fgsm",
                *QUICK,
                "--test-limit",
                "200",
                "--audit",
                "none",
                "--out",
                "out",
            ]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1
    assert "own.py:stuck fails in fgsm at 0.1: RuntimeError: one of the variables needed for gradient" in error
    assert f"(traceback: {Path('out/failures/measurement.txt')}); what" in error
    assert "input_gradient" in Path("out/failures/measurement.txt").read_text()
    assert error.strip().endswith("what was measured before is in out")
    assert len(Path("out/records.jsonl").read_text().splitlines()) == 2


def test_a_line_that_stands_twice_counts_once_and_a_foreign_one_is_named(folder, capsys):
    arguments = [save(folder / "net.pt"), "--attacks", "fgsm", *QUICK, "--audit", "none", "--out", "out"]
    assert evaluate.main(arguments) == 0
    records, table = Path("out/records.jsonl"), Path("out/accuracy.csv").read_text()
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join([*lines, lines[-1]]))
    assert evaluate.main([*arguments, "--resume"]) == 0 and Path("out/accuracy.csv").read_text() == table
    records.write_text(lines[0].replace('"measurements"', '"measured"'))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*arguments, "--resume"])
    assert stopped.value.code == 2 and "records.jsonl is damaged (line 1); remove that line" in capsys.readouterr().err


def test_the_worst_case_is_counted_image_by_image():
    masks = {"a": [1, 1, 0, 0], "b": [0, 1, 1, 0]}  # only the second image withstands both
    measured = [measurement(name, 0.1, mask, untrusted=index) for index, (name, mask) in enumerate(masks.items())]
    (merged,) = evaluation_report.merged([record(network="net", measurements=(m,)) for m in measured], ["net"])
    assert merged.measurements[-1] == Measurement("worst", 0.1, "all", 1, 4, 1, "40")


BAD = [
    (["none.pt"], "there is no 'none.pt'; give a checkpoint of a run"),
    (["own.py:cheat"], "--dataset is needed for a network of your own; choose from digits"),
    (["own.py:cheat", "--dataset", "imagenet"], "unknown --dataset 'imagenet'"),
    (["own.py:few", "--dataset", "digits"], "own.py:few: labels must lie in 0 to 3, theirs reach from 0 to 9"),
    (["own.py:nan", "--dataset", "digits"], "own.py:nan: the logits hold NaN"),
    (["own.py:pair", "--dataset", "digits"], "must return a floating-point tensor of logits, got tuple"),
    (["own.py:Lost", "--dataset", "digits"], "own.py:Lost cannot take images of shape (1, 8, 8): KeyError at "),
    (["net.pt", "--dataset", "mnist"], "net.pt was trained on digits, and --dataset says mnist; leave --dataset out"),
    (["colour.pt"], "colour cannot take images of shape (1, 8, 8): "),
    (["old.pt"], "another architecture than this version's small: "),
    (["net.pt", "--attacks", "magic"], "unknown attack 'magic'; choose from fgsm"),
    (["net.pt", "--attacks", ""], "--attacks is empty"),
    (["net.pt", "--threat", "l1"], "unknown --threat 'l1'; choose from linf, l2"),
    (["net.pt", "--audit", "slow"], "unknown --audit 'slow'; choose from none, quick, full"),
    (["net.pt", "--epsilons", "-1"], "--epsilons must be finite and at least 0, got -1"),
    (["net.pt", "--epsilons", "nan"], "--epsilons"),
    (["net.pt", "--resume"], "--resume needs --out"),
    (["net.pt", "--device", "tpu"], "unknown device 'tpu'"),
    ([], "network"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(folder, arguments, sentence, capsys):
    save(folder / "net.pt")
    if arguments[:1] == ["colour.pt"]:
        colour = {"stem.0.weight": torch.zeros(16, 3, 3, 3)}
        save(folder / "colour.pt", in_channels=3, state_dict=widened(trained().state_dict()) | colour)
    if arguments[:1] == ["old.pt"]:
        save(folder / "old.pt", state_dict={"stem.weight": torch.zeros(1)})
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*arguments, *([] if "--resume" in arguments else ["--out", "out"])])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1
    assert not (folder / "out").exists()


def test_the_example_of_the_readme(folder, capsys):
    section = (ROOT / "docs/guide.md").read_text(encoding="utf-8").split("## Evaluate a network")[1].split("\n## ")[0]
    (code,) = re.findall("```python\n(.*?)```", section, flags=re.S)
    (folder / "mynet.py").write_text(code)
    lines = re.findall(r"^\.venv/bin/python experiments/evaluate\.py (.*)$", section, flags=re.M)
    assert len(lines) == 2
    for line in lines:
        evaluate._parser().parse_args(line.split())
    assert evaluate.main([*lines[1].split(), "--out", "out"]) == 0
    assert {row["attack"] for row in rows("out/accuracy.csv")} == {"clean", "fgsm", "pgd20", "square200", "worst"}
    assert "mynet.py:make" in capsys.readouterr().out


def test_an_error_in_the_users_code_names_the_line(folder, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["own.py:Lost", "--dataset", "digits", "--out", "out"])
    line = 1 + OWN.splitlines().index('        return {}["logits"]')
    assert f"own.py:{line}: 'logits'" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(folder, monkeypatch):
    """A ValueError is not what a user has done wrong just because InputError is one too."""

    def faulty(*arguments):
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(evaluation_report, "merged", faulty)
    with pytest.raises(ValueError, match="broadcast") as caught:
        evaluate.main([save(folder / "net.pt"), "--attacks", "fgsm", *QUICK, "--audit", "none", "--out", "out"])
    assert not isinstance(caught.value, InputError)
