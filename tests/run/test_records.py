"""The folder of a run: its tables, what it takes for one, what is missing from it, and which damage is named."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from records import config as run_config
from records import measurement, record, run, verdict

from experiments.harness.report import comparison as report
from experiments.harness.report.arms import comparison
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import Run, tables_of
from experiments.harness.run.schema import VERSION, Metric, Record

ROOT = Path(__file__).parents[2]


def test_the_table_has_a_row_for_the_worst_of_several_attacks(tmp_path):
    run = Run(tmp_path / "run", {})
    pgd, square = np.arange(8) < 6, np.arange(8) >= 2
    both = (measurement("pgd20", 0.1, pgd), measurement("square9", 0.1, square))
    run.append([record(seed=1, measurements=both)])
    run.append([record(seed=2, measurements=both[:1])])
    run.write_tables()
    with open(tmp_path / "run" / "accuracy.csv", newline="") as file:
        rows = [(row["seed"], row["attack"], row["accuracy"]) for row in csv.DictReader(file)]
    assert rows == [("1", "pgd20", "0.75"), ("1", "square9", "0.75"), ("1", "worst", "0.5"), ("2", "pgd20", "0.75")]


def test_a_row_of_any_table_says_whose_it_is(tmp_path):
    nets = [{"seed": 1}, {"seed": 1, "substeps": 2}, {"seed": 1, "field": "monotone"}]
    measured = {
        "audit": verdict(),
        "stability": (Metric(0, 0, "log_norm", 1.0),),
        "measurements": (measurement("clean", 0, [1]),),
    }
    for name, (header, *rows) in tables_of([record(**net, **measured) for net in nets]).items():
        keys = [header.index(key) for key in ("scheme", "seed", "substeps", "field")]
        assert len({tuple(row[key] for key in keys) for row in rows}) == 3, name


def test_a_case_without_its_reruns_runs_again(tmp_path):
    whole, run = [record(seed=1), record(seed=1, substeps=2, trained_substeps=1)], Run(tmp_path / "run", {})
    run.append([record(seed=0)])
    run.append(whole)
    run = Run(tmp_path / "run", {}, resume=True)
    cases = [Case("explicit_euler", 1, seed, (2,)) for seed in range(3)]
    assert run.missing(cases) == [cases[0], cases[2]]
    assert run.records == whole == Run(tmp_path / "run", {}, resume=True).records


@pytest.mark.parametrize(
    "line",
    [
        b"{not json}",
        b"\xff\x00\xfe",
        b"[]",
        b"{}",
        b"",
        json.dumps(record().to_json() | {"measurements": 5}).encode(),
        json.dumps(record().to_json() | {"measurements": [{}]}).encode(),
        json.dumps(record().to_json() | {"version": 99}).encode(),
    ],
)
def test_a_damaged_record_is_named(line, tmp_path):
    config = {"schemes": ["explicit_euler"]}
    Run(tmp_path / "run", config)
    (tmp_path / "run" / "records.jsonl").write_bytes(json.dumps(record().to_json()).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"records.jsonl is damaged \(line 2\); remove that line"):
        Run(tmp_path / "run", config, resume=True)


def test_a_record_survives_its_json():
    _, records = run()
    for entry in records:
        assert Record.from_json(json.loads(json.dumps(entry.to_json()))) == entry


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "folder",
    # What certify.py and certified_peers.py record are lines of their own.
    sorted(p.parent for p in (ROOT / "docs/records").glob("*/records.jsonl") if not p.parent.name.startswith("certif")),
    ids=lambda folder: folder.name,
)
def test_records_of_earlier_versions_still_read(folder, tmp_path):
    """Their tables are made anew as they were; what they did not say is said by the migration."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=lambda where, names: [name for name in names if name.endswith(".csv")])
    old = json.loads((copy / "config.json").read_text())
    found = Run(copy, old, resume=True)
    found.write_tables()
    assert {record.version for record in found.records} == {VERSION}
    if old["experiment"] != "evaluate":  # whose tables are of merged records
        for name in ("accuracy.csv", "stability.csv"):
            before = _rows(folder / name)
            columns = before[0].keys()  # early versions had fewer
            after = [{key: row[key] for key in columns} for row in _rows(copy / name)]
            assert sorted(map(str, after)) == sorted(map(str, before)), name
        report.write_report(comparison(RunConfig.from_json(old), found.records), copy / "report.html")


def test_a_run_of_an_earlier_version_is_resumed_and_a_changed_one_refused(tmp_path):
    now = run_config().to_json()
    before = {key: value for key, value in now.items() if key not in ("fields", "warmup_epochs")} | {
        "version": 2,
        "substeps": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(before))
    (tmp_path / "checkpoints").mkdir()
    Run(tmp_path, now, resume=True)
    with pytest.raises(ValueError, match="learning_rate was 0.006 and is now 0.5"):
        Run(tmp_path, now | {"learning_rate": 0.5}, resume=True)


@pytest.mark.parametrize("text", [b"{not json}", b"\xff\x00\xfe", b"[]", b""])
def test_a_damaged_configuration_is_named(text, tmp_path):
    Run(tmp_path / "run", {})
    (tmp_path / "run" / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json is damaged .*give another folder"):
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


def test_a_setting_that_moves_results_may_not_change_and_others_may(tmp_path):
    config = {"weight_decay": 0.01, "checkpoint_seconds": 300, "workers": None}
    Run(tmp_path / "run", config)
    Run(tmp_path / "run", {**config, "checkpoint_seconds": 1, "workers": 2}, resume=True)
    with pytest.raises(ValueError, match="weight_decay was 0.01 and is now 0.1"):
        Run(tmp_path / "run", {**config, "weight_decay": 0.1}, resume=True)


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (
            {"figures/mine.png": ""},
            "holds figures but no config.json, so that it is no run to go on with; choose another --out",
        ),
        ({"config.json": '{"lr": 1}'}, "holds the config.json of something else, and this is evaluate; choose another --out"),
        ({"config.json": '{"experiment": "sweep"}'}, "holds a run of sweep, and this is evaluate; choose another --out"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_named_as_what_it_is(held, sentence, resume, tmp_path):
    for name, text in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence):
        Run(tmp_path, {"experiment": "evaluate"}, resume)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, or lies in one, and a run needs a folder; choose another --out"):
        Run(tmp_path / place, {})


def test_a_run_takes_further_seeds_and_no_others(tmp_path):
    def config(*seeds):
        return {"seeds": list(seeds), "epochs": 3}

    Run(tmp_path / "run", config(0, 1)).append([record()])
    run = Run(tmp_path / "run", config(0, 1, 5), resume=True)
    assert run.records == [record()] and json.loads(run.path("config.json").read_text()) == config(0, 1, 5)
    for other in (config(0, 1), config(1, 0, 5), config(1), config(), {**config(0, 1, 5, 6), "epochs": 4}):
        with pytest.raises(ValueError, match="another configuration"):
            Run(tmp_path / "run", other, resume=True)
    assert json.loads(run.path("config.json").read_text()) == config(0, 1, 5)


def test_what_is_too_long_to_be_read_is_named_only(tmp_path):
    Run(tmp_path / "run", {"weights": {f"net{n}": "0" * 64 for n in range(9)}, "a": 1})
    with pytest.raises(ValueError, match=r"another configuration \(a was 1 and is now 2; weights differ\)"):
        Run(tmp_path / "run", {"weights": {f"net{n}": "1" * 64 for n in range(9)}, "a": 2}, resume=True)


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_two_processes_do_not_share_a_folder_and_a_killed_one_leaves_it(tmp_path):
    code = f"from experiments.harness.run.folder import Run; Run({str(tmp_path)!r}, {{}}); print(1, flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(ValueError, match="another process is at work in .*; let it end, or choose another --out"):
        Run(tmp_path, {}, resume=True)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert Run(tmp_path, {}, resume=True).records == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("name", ["config.json", "records.jsonl", "accuracy.csv"])
def test_a_full_disk_is_a_sentence_that_names_the_file(name, tmp_path, monkeypatch):
    run, full = Run(tmp_path / "run", {}), OSError(errno.ENOSPC, "No space left on device")

    def no_room(*arguments):
        raise full

    if name == "records.jsonl":
        os.symlink("/dev/full", tmp_path / "run" / name)
    else:
        monkeypatch.setattr(os, "replace", no_room)
    writes = {
        "config.json": lambda: Run(tmp_path / "other", {}),
        "records.jsonl": lambda: run.append([record(seed=1)]),
        "accuracy.csv": run.write_tables,
    }
    with pytest.raises(OSError, match=f"cannot write .*{name} .No space left on device.; what was saved before is intact"):
        writes[name]()
    assert not list(tmp_path.rglob("*.tmp"))
