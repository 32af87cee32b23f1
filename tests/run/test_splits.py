"""Splits drawn by the seed: who sees which images, and what an older run means."""

import json

import pytest
import torch
from records import config, run

from experiments import compare_schemes, compare_solvers, evaluate
from experiments.harness.report import comparison as report
from experiments.harness.report.arms import comparison
from experiments.harness.run import measure as evaluation
from experiments.harness.run.case import load_data
from experiments.harness.run.checkpoints import split_of
from experiments.harness.run.config import RunConfig
from experiments.harness.training import data


def rows(split):
    return {tuple(image.flatten().tolist()) for image in split.images}


def test_a_split_is_the_seeds_and_the_same_for_all_schemes():
    drawn = config(splits="per-seed", data={})
    first, again, other = (load_data(drawn, seed) for seed in (3, 3, 4))
    assert torch.equal(first.test.images, again.test.images) and not torch.equal(first.test.images, other.test.images)
    assert (len(other.train), len(other.held_out), len(other.test)) == (1200, 147, 450)
    assert not rows(other.train) & rows(other.test), "no image is trained on and tested"
    fixed = load_data(config(data={}), 3)
    assert torch.equal(fixed.test.images, data.load("digits", "").test.images)
    with pytest.raises(ValueError, match="mnist comes with test images of its own"):
        data.load("mnist", "", split=3)


def test_a_run_of_an_older_version_keeps_its_meaning():
    entry = config().to_json()
    for key in ("splits", "margin", "looks"):
        del entry[key]
    old = RunConfig.from_json(entry | {"version": 2})
    assert (old.splits, old.margin, old.looks, old.resplit) == ("fixed", 0.02, (), None) and old.split_of(7) == data.SPLIT_SEED


def test_intervals_are_corrected_and_the_page_says_so(tmp_path):
    settings, records = run()
    fixed = comparison(settings, records)
    drawn = comparison(config(splits="per-seed"), records)
    arm = fixed.arms[1]
    wider = drawn.gap(drawn.arms[1], 0.1).estimate
    assert drawn.config.resplit == 1200 and wider.high - wider.low > (e := fixed.gap(arm, 0.1).estimate).high - e.low
    report.write_report(drawn, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "corrected for what splits share" in text and "a split for each seed" in text


def test_a_net_is_never_evaluated_on_images_that_it_was_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "measure_stability", lambda *arguments, **settings: ([], {}))  # on no image of the test
    out = tmp_path / "run"
    small = "--train-limit 64 --test-limit 24 --epochs 1 --attacks pgd2 --epsilons 0.1 --audit none --workers 1".split()
    options = ["--schemes", "explicit", "--splits", "per-seed", "--seeds", "0,1", *small, "--out", str(out)]
    assert compare_schemes.main(options) == 0
    assert json.loads((out / "config.json").read_text())["splits"] == "per-seed"
    with pytest.raises(SystemExit):
        compare_schemes.main([*options[:2], "--seeds", "0,1", *small, "--out", str(out), "--resume", "--splits", "fixed"])
    assert "splits was 'per-seed' and is now 'fixed'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([str(out), "--out", str(tmp_path / "both")])
    assert "have splits of their own; give the checkpoints of one seed" in capsys.readouterr().err
    one = out / "checkpoints" / "explicit_euler-substeps1-seed1.pt"
    short = ["--attacks", "pgd2", "--epsilons", "0.1", "--audit", "none", "--test-limit", "24"]
    assert evaluate.main([str(one), *short, "--out", str(tmp_path / "one")]) == 0
    clean = [json.loads((folder / "records.jsonl").read_text().splitlines()[-1]) for folder in (out, tmp_path / "one")]
    assert clean[0]["measurements"][0]["bits"] == clean[1]["measurements"][0]["bits"], "the same images as in its run"
    assert split_of(None) == data.SPLIT_SEED


def test_the_solvers_are_compared_on_images_that_the_net_has_not_seen(tmp_path, monkeypatch):
    """Each net of a run with a split for each seed is looked at on its own images, not on the first seed's."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config(splits="per-seed", data={}).to_json()))
    for seed in (3, 4):
        (tmp_path / "checkpoints" / f"{seed}.pt").touch()
    seen = []
    monkeypatch.setattr(compare_solvers, "load_net", lambda path: (None, {"seed": int(path.stem), "scheme": "implicit_euler"}))
    monkeypatch.setattr(compare_solvers, "_roots", lambda net, test, *rest: seen.append(test.images[:8].clone()) or [])
    assert compare_solvers.main([str(tmp_path), "--roots"]) == 0
    own = [load_data(config(splits="per-seed", data={}), seed).test.images[:8] for seed in (3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(seen, own)) and not torch.equal(*own)
