"""The folder of a run: its tables, what it takes for one, what is missing from it, and which damage is named."""
import csv
import json

import pytest

from experiments.harness.case import Case
from experiments.harness.records import RECORD_KEYS, Run


def record(seed, substeps=1):
    return dict.fromkeys(RECORD_KEYS, []) | {"scheme": "explicit_euler", "trained_substeps": 1, "seed": seed,
                                             "substeps": substeps, "seconds": {}}


def test_the_table_has_a_row_for_the_worst_of_several_attacks(tmp_path):
    run = Run(tmp_path / "run", {})
    shared = {"epsilon": 0.1, "gradient": "exact", "total": 8, "untrusted": 0}
    run.append([{**record(seed=1), "measurements": [{**shared, "attack": "pgd20", "correct": 6, "bits": "fc"},
                                                    {**shared, "attack": "square9", "correct": 6, "bits": "3f"}]}])
    run.append([{**record(seed=2), "measurements": [{**shared, "attack": "pgd20", "correct": 6, "bits": "fc"}]}])
    run.write_tables()
    with open(tmp_path / "run" / "accuracy.csv", newline="") as file:
        rows = [(row["seed"], row["attack"], row["accuracy"]) for row in csv.DictReader(file)]
    assert rows == [("1", "pgd20", "0.75"), ("1", "square9", "0.75"), ("1", "worst", "0.5"), ("2", "pgd20", "0.75")]


def test_a_case_without_its_reruns_runs_again(tmp_path):
    whole, run = [record(seed=1), record(seed=1, substeps=2)], Run(tmp_path / "run", {})
    run.append([record(seed=0)])
    run.append(whole)
    run = Run(tmp_path / "run", {}, resume=True)
    cases = [Case("explicit_euler", 1, seed, (2,)) for seed in range(3)]
    assert run.missing(cases) == [cases[0], cases[2]]
    assert run.records == whole == Run(tmp_path / "run", {}, resume=True).records


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


def test_a_setting_that_moves_results_may_not_change_and_others_may(tmp_path):
    config = {"weight_decay": 0.01, "checkpoint_seconds": 300, "workers": None}
    Run(tmp_path / "run", config)
    Run(tmp_path / "run", {**config, "checkpoint_seconds": 1, "workers": 2}, resume=True)
    with pytest.raises(ValueError, match="weight_decay was 0.01 and is now 0.1"):
        Run(tmp_path / "run", {**config, "weight_decay": 0.1}, resume=True)
