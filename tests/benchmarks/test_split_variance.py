"""The splits behind `--splits fixed`: the analysis of variance, and which images a run sees."""

import numpy as np
import pytest
import torch
from records import config
from scipy import stats

from experiments.benchmarks import splits
from experiments.harness.run.case import load_data
from experiments.harness.run.checkpoints import split_of
from experiments.harness.training.data import SPLIT_SEED


def test_the_analysis_is_scipys_and_the_component_that_of_the_design():
    random = np.random.default_rng(0)
    table = 3 * random.normal(size=(40, 1)) + 2 * random.normal(size=(40, 5))
    found, expected = splits.nested(table), stats.f_oneway(*table)
    assert (found.split / found.seed, found.p) == pytest.approx(tuple(expected)) and found.degrees == (39, 160)
    assert found.component == pytest.approx(9, rel=0.4) and found.seed == pytest.approx(4, rel=0.3)
    assert splits.nested(2 * random.normal(size=(400, 5))).component < 0.3
    with pytest.raises(ValueError, match="two of each"):
        splits.nested([[1.0, 2.0]])


def test_a_run_has_the_split_that_it_names():
    usual, other = config(data={}), config(data={}, split_seed=3)
    assert usual.split_of(7) == SPLIT_SEED and other.split_of(7) == 3
    assert not torch.equal(load_data(usual, 0).test.images, load_data(other, 0).test.images)
    assert split_of({"seed": 7, "config": {"splits": "fixed", "split_seed": 3}}) == 3
    assert split_of({"seed": 7, "config": {"splits": "per-seed", "split_seed": 3}}) == 7
    assert split_of({"seed": 7, "config": {}}) == split_of(None) == SPLIT_SEED


def test_every_split_is_a_run_with_its_own_images(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(splits, "conduct", lambda config, cases, args: seen.append((config.split_seed, args.out)) or 1)
    monkeypatch.setattr(splits, "read_run", lambda folder: pytest.skip("what is asked stands in what was seen"))
    try:
        splits.main(["--splits", "3", "--out", str(tmp_path)])
    except pytest.skip.Exception:
        pass
    assert seen == [(n, str(tmp_path / f"split-{n}")) for n in range(3)]


@pytest.mark.parametrize(
    "line, sentence",
    [
        (["--splits", "1"], "--splits must be finite and at least 2, got 1"),
        (["--seeds", "0"], "two at least tell what a split adds"),
        (["--schemes", "explicit"], "--schemes takes two, got 'explicit'"),
    ],
)
def test_bad_input(line, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        splits.main([*line, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
