"""TensorBoard beside the bars: what is logged, and what is said where it is not installed."""

import json

import pytest

from experiments import compare_schemes

RUN = ["--schemes", "explicit,heun", "--smoke", "--audit", "none", "--device", "cpu", "--epochs", "2", "--training", "fast"]


def test_each_epoch_of_each_training_and_what_was_measured(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra log is not installed"
    )
    assert compare_schemes.main([*RUN, "--log", "tensorboard", "--workers", "2", "--out", str(tmp_path / "out")]) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 2
    for record in records:
        found = accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard" / f"{record['scheme']}-substeps1-seed0"))
        found.Reload()
        for key in ("loss", "held_out", "held_out_pgd"):
            logged = [(event.step, event.value) for event in found.Scalars(f"training/{key}")]
            assert logged == [(entry["epoch"], pytest.approx(entry[key], rel=1e-6)) for entry in record["history"]]
        (clean,) = found.Scalars("accuracy/clean, exact")
        assert clean.value == pytest.approx(record["measurements"][0]["correct"] / record["measurements"][0]["total"])


@pytest.mark.parametrize(
    ("name", "sentence"), [("tensorboard", 'pip install "odenets[log]"'), ("paper", "unknown --log 'paper'")]
)
def test_a_log_that_cannot_be_had_is_a_sentence(tmp_path, monkeypatch, capsys, name, sentence):
    monkeypatch.setattr("experiments.harness.run.log.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main([*RUN, "--log", name, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
