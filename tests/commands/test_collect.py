"""One page for a set of runs: what stands side by side, what is refused and why, and runs of earlier versions."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from records import run, sweep

from experiments import collect
from experiments.harness.report import steps
from experiments.harness.report.readings import readings


def write(folder, training="standard", line=None, **changes):
    made, records = run(seeds=(0, 1, 2))
    made = replace(made, settings=replace(made.settings, training=training), **changes)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.to_json()))
    lines = [json.dumps(r.to_json()) for r in records]
    (folder / "records.jsonl").write_text("".join(f"{text}\n" for text in (lines if line is None else [line])))
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    return [write(tmp_path / "standard"), write(tmp_path / "pgd", "pgd", environment={"torch": "2.10.0"})]


def test_runs_stand_side_by_side_each_with_its_own_family(folders, tmp_path, capsys):
    (tmp_path / "pgd" / "report.html").write_text("a page")
    config = json.loads((tmp_path / "pgd" / "config.json").read_text())
    (tmp_path / "pgd" / "config.json").write_text(json.dumps(config | {"version": 2}))
    assert collect.main([*folders, "--out", str(tmp_path / "out")]) == 0
    page, said = (tmp_path / "out" / "collected.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert "digits, standard" in said and "digits, pgd" in said and said.count("reference") == 2
    assert '<a href="../pgd/report.html">its page</a>' in page and "standard</b>: it has no page" in page
    assert page.count("python experiments/compare_schemes.py --schemes explicit,implicit") == 2
    assert "torch 2.11.0 and 2.10.0" in page and re.search("read as today.{1,5}s: [^ ]*pgd", page)
    assert {p.name for p in (tmp_path / "out" / "tables").iterdir()} == {"collected.csv", "collected.tex"}
    rows = (tmp_path / "out" / "tables" / "collected.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[-1] for row in rows[1:]] == ["pgd", "pgd", "standard", "standard"]


def test_a_sweep_stands_there_with_the_differences_of_its_own_page(tmp_path):
    found = sweep()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text(json.dumps(found.config.to_json()))
    lines = [json.dumps(r.to_json()) + "\n" for r in found.records]
    (tmp_path / "sweep" / "records.jsonl").write_text("".join(lines))
    assert collect.main([str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]) == 0
    header, *rows = csv.reader(io.StringIO((tmp_path / "out" / "tables" / "collected.csv").read_text(encoding="utf-8")))
    collected = {row[header.index("scheme")]: tuple(row[5:8]) for row in rows}
    own = {(r.arm.name, *steps._cells(found, r)[8:11]) for r in readings(found)}
    assert len(collected) == 8 and {(name, *cells) for name, cells in collected.items()} <= own
    page = (tmp_path / "out" / "collected.html").read_text(encoding="utf-8")
    assert "explicit_euler at finer steps: observed order" in page and "compares with nothing" not in page


def test_folders_of_one_name_are_told_apart(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
    folders = [write(tmp_path / "a" / "run"), write(tmp_path / "b" / "run", "pgd"), write(tmp_path / "b" / "other", "trades")]
    assert collect.main([*folders, "--out", str(tmp_path / "out")]) == 0
    rows = (tmp_path / "out" / "tables" / "collected.csv").read_text(encoding="utf-8").splitlines()
    assert {row.split(",")[-1] for row in rows[1:]} == {folders[0], folders[1], "other"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "mnist"}, "dataset 'digits' and 'mnist'; --across sets several data sets"),
        ({"attacks": ("fgsm",)}, "attacks ('pgd20',) and ('fgsm',)"),
        ({"epsilons": (0.1,)}, "epsilons (0.05, 0.1, 0.15) and (0.1,)"),
        ({"threat": "l2"}, "threat 'linf' and 'l2'"),
        ({"test_limit": 100}, "test_limit None and 100"),
        ({"splits": "per-seed"}, "splits 'fixed' and 'per-seed'"),
        ({"split_seed": 3}, "split_seed 20 and 3"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(changes, sentence, tmp_path, capsys):
    folders = [write(tmp_path / "a"), write(tmp_path / "b", **changes)]
    with pytest.raises(SystemExit) as ended:
        collect.main([*folders, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "these runs cannot be compared: " in said and sentence in said
    assert not (tmp_path / "out").exists()


def test_several_data_sets_with_radii_of_their_own_when_asked_for(tmp_path, capsys):
    folders = [write(tmp_path / "a"), write(tmp_path / "b", dataset="mnist", epsilons=(0.1, 0.2), model="resnet18")]
    assert collect.main([*folders, "--across", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "mnist, standard" in told and "Networks differ (small and resnet18)" in told


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{}", "records.jsonl, line 1: no record of a network"),
        ("nonsense", "records.jsonl, line 1: "),
        (json.dumps({"version": 99}), "a record of version 99"),
        ("", "line 1"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(line, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        collect.main([write(tmp_path / "a"), write(tmp_path / "b", line=line), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and str(tmp_path / "b") in said


@pytest.mark.parametrize(("twice", "sentence"), [(True, "stands twice"), (False, "holds no run: it has no config.json")])
def test_folders_that_make_no_sense(twice, sentence, tmp_path, capsys):
    first = write(tmp_path / "a")
    with pytest.raises(SystemExit) as ended:
        collect.main([first, f"{first}/../a" if twice else str(tmp_path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
