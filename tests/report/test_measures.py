"""What is said of measures: rank correlations with intervals, scheme by field, and a run of several fields."""
import csv
import json

import numpy as np
import pytest
import scipy.stats

from experiments import compare_schemes
from experiments.harness.report import measures
from experiments.harness.report import sentences as findings
from experiments.harness.run.case import Case
from experiments.harness.run.checkpoints import load_net

N = 200


def record(scheme, seed, field, robust, log_norm=0.5):
    def measurement(epsilon, correct):
        mask = np.arange(N) < correct
        return {"attack": "pgd20" if epsilon else "clean", "epsilon": epsilon, "gradient": "exact", "correct": correct,
                "total": N, "untrusted": 0, "bits": np.packbits(mask).tobytes().hex()}
    rows = [{"stage": 0, "block": block, "metric": "log_norm", "value": log_norm + 0.1 * block} for block in (-1, 1)]
    return {"scheme": scheme, "seed": seed, "field": field, "substeps": 1, "trained_substeps": 1, "stability": rows,
            "measurements": [measurement(0.0, 190), measurement(0.1, robust)], "audit": None, "cloud": {}, "dataset": "digits"}


def run(gap_on_gradient_flow=30):
    config = {"schemes": ["explicit_euler", "implicit_euler"], "fields": ["residual", "gradient_flow"], "seeds": [0, 1, 2],
              "dataset": "digits"}
    records = [record("explicit_euler", s, "residual", 100 + 3 * s) for s in range(3)]
    records += [record("implicit_euler", s, "residual", 101 + 2 * s, 0.6) for s in range(3)]
    records += [record("explicit_euler", s, "gradient_flow", 80 + 3 * s, -0.1) for s in range(3)]
    records += [record("implicit_euler", s, "gradient_flow", 80 + gap_on_gradient_flow + 4 * s, -0.2) for s in range(3)]
    return config, records


def test_differences_are_within_a_field():
    config, records = findings.arms(*run())
    assert config["schemes"] == [f"{scheme} on {field}" for field in ("residual", "gradient_flow")
                                 for scheme in ("explicit_euler", "implicit_euler")]
    rows = measures.by_field(config, records)
    assert [(row["field"], row["scheme"]) for row in rows] == [
        (field, scheme) for field in ("residual", "gradient_flow") for scheme in ("explicit_euler", "implicit_euler")]
    assert rows[0]["gap"] is rows[2]["gap"] is None and rows[3]["gap"].value == pytest.approx(31 / N)
    assert [row["gap"].verdict for row in (rows[1], rows[3])] == ["cannot tell", "higher"]
    assert rows[3]["log_norm"] == pytest.approx(-0.2) and rows[0]["max_abs_R"] is None
    sentences = list(measures.field_sentences(config, records))
    assert sentences == ["On residual (mean \u03bc\u2082(hJ) 0.5 to 0.6): implicit_euler against explicit_euler: cannot tell.",
                         "On gradient_flow (mean \u03bc\u2082(hJ) -0.2 to -0.1): implicit_euler is more robust than "
                         "explicit_euler by 15.5 points."]
    assert set(sentences) <= set(findings.headline(*run()))


def test_one_field_needs_no_table():
    config, records = run()
    config, records = {**config, "fields": ["residual"]}, records[:6]
    assert measures.by_field(config, records) == [] and findings.arms(config, records)[0] is config


def test_rank_correlation_is_spearmans_with_an_interval_that_covers(generator_count=400):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 12))
    y += x
    found = measures.rank_correlation(x, y)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic) and found.low < found.value < found.high <= 1
    true, covered = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for _ in range(generator_count):
        x, e = random.normal(size=(2, 25))
        estimate = measures.rank_correlation(x, 0.6 * x + 0.8 * e)
        covered += estimate.low <= true <= estimate.high
    assert 0.91 < covered / generator_count < 0.985
    assert measures.rank_correlation(np.arange(6), np.arange(6)).value == 1


def test_correlations_take_nets_that_have_the_measure_and_need_several():
    config, records = run()
    found = measures.correlations(records, 0.1)
    x = [measures.mean_of(r, "log_norm") for r in records]
    y = [r["measurements"][1]["correct"] for r in records]
    assert found["log_norm"].value == pytest.approx(scipy.stats.spearmanr(x, y).statistic) and found["log_norm"].n == 12
    records[0]["stability"][0]["value"] = float("inf")
    assert measures.correlations(records, 0.1)["log_norm"].n == 11
    assert measures.correlations(records[:4], 0.1) == {} and measures.mean_of(records[0], "log_norm") is None
    assert measures.correlations([record("a", s, "residual", 90) for s in range(8)], 0.1) == {}, "constant: no correlation"


def test_a_run_of_two_fields(tmp_path, monkeypatch):
    out = tmp_path / "run"
    fields = "residual,damped(rate=0.2)"
    monkeypatch.setattr("experiments.harness.experiment.SMOKE", {
        "epochs": 1, "seeds": [0], "train_limit": 64, "test_limit": 12, "attacks": ["pgd2"], "probe_images": 1,
        "audit_images": 4})
    assert compare_schemes.main(["--schemes", "explicit", "--fields", fields, "--log-norm-penalty", "0.1", "--smoke",
                                 "--epsilons", "0.1", "--workers", "1", "--out", str(out)]) == 0
    names = ["residual", "damped(rate=0.2)"]
    for table in ("accuracy.csv", "stability.csv"):
        with open(out / table) as file:
            assert list(dict.fromkeys(row["field"] for row in csv.DictReader(file))) == names
    assert json.loads((out / "config.json").read_text())["log_norm_penalty"] == 0.1
    page = (out / "report.html").read_text()
    assert "Scheme and field" in page and "explicit_euler on damped(rate=0.2)" in page
    for field in names:
        net, meta = load_net(out / "checkpoints" / (Case("explicit_euler", 1, 0, field=field).name + ".pt"))
        rate = getattr(net.blocks[0].fields[0], "rate", None)
        assert meta["field"] == field and rate == (None if field == "residual" else 0.2)


@pytest.mark.parametrize(("fields", "sentence"), [
    ("", "--fields is empty"), ("nonsense", "unknown field 'nonsense'; choose from residual"),
    ("damped,damped(rate=0.5)", "field 'damped' stands twice"), ("damped(rate=-1)", "rate in the field")])
def test_bad_fields(fields, sentence, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--fields", fields, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err and not (tmp_path / "run").exists()
