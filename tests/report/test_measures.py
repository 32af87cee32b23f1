"""What is said of measures: rank correlations with intervals, scheme by field, and a run of several fields."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from records import config, measurement
from records import record as any_record

from experiments import compare_schemes
from experiments.harness import statistics
from experiments.harness.report import measures
from experiments.harness.report import sentences as findings
from experiments.harness.report.arms import comparison, mean_of
from experiments.harness.run.case import Case
from experiments.harness.run.checkpoints import load_net
from experiments.harness.run.schema import Metric

N = 200
SCHEMES = "abcdefg"


def record(scheme, seed, field, robust, log_norm=0.5):
    under = [
        measurement("clean" if not epsilon else "pgd20", epsilon, np.arange(N) < correct)
        for epsilon, correct in ((0.0, 190), (0.1, robust))
    ]
    rows = [Metric(0, block, "log_norm", log_norm + 0.1 * block) for block in (-1, 1)]
    return any_record(scheme, seed, field=field, stability=tuple(rows), measurements=tuple(under))


def found(records):
    """The comparison of records, whatever schemes and fields they are of."""
    schemes, fields, seeds = (dict.fromkeys(getattr(r, key) for r in records) for key in ("scheme", "field", "seed"))
    return comparison(config(schemes, seeds, fields=tuple(fields), epsilons=(0.1,)), records)


def run(gap_on_gradient_flow=30):
    records = [record("explicit_euler", s, "residual", 100 + 3 * s) for s in range(3)]
    records += [record("implicit_euler", s, "residual", 101 + 2 * s, 0.6) for s in range(3)]
    records += [record("explicit_euler", s, "gradient_flow", 80 + 3 * s, -0.1) for s in range(3)]
    records += [record("implicit_euler", s, "gradient_flow", 80 + gap_on_gradient_flow + 4 * s, -0.2) for s in range(3)]
    return records


def test_differences_are_within_a_field():
    compared = found(run())
    assert [arm.name for arm in compared.arms] == [
        f"{scheme} on {field}" for field in ("residual", "gradient_flow") for scheme in ("explicit_euler", "implicit_euler")
    ]
    rows = measures.by_field(compared)
    assert [(row.arm.field, row.arm.scheme) for row in rows] == [
        (field, scheme) for field in ("residual", "gradient_flow") for scheme in ("explicit_euler", "implicit_euler")
    ]
    assert rows[0].gap is rows[2].gap is None and rows[3].gap.estimate.value == pytest.approx(31 / N)
    assert [row.gap.verdict for row in (rows[1], rows[3])] == [statistics.EQUIVALENT, statistics.MORE]
    assert rows[3].shown["log_norm"] == pytest.approx(-0.2) and rows[0].shown["max_abs_R"] is None
    sentences = list(measures.field_sentences(compared))
    assert sentences == [
        "On residual (mean \u03bc\u2082(hJ) 0.5 to 0.6): implicit_euler against explicit_euler: equivalent within the margin.",
        "On gradient_flow (mean \u03bc\u2082(hJ) -0.2 to -0.1): implicit_euler is more robust than "
        "explicit_euler by 15.5 points.",
    ]
    assert set(sentences) <= set(findings.headline(compared))


def test_a_scheme_without_a_seed_in_common_is_no_reference():
    apart = [r for r in run() if (r.seed == 2) == (r.scheme == "implicit_euler" and r.field == "residual")]
    verdicts = [row[7] for row in measures.fields_section(found(apart)).parts[0].rows]
    assert verdicts[:3] == ["reference", "no seed in common", "reference"] and verdicts[3] == statistics.MORE


def test_one_field_needs_no_table():
    assert measures.by_field(found(run()[:6])) == []


def test_correlations_are_those_of_group_means():
    """Nets of one scheme are one observation, whatever their number; nets without the measure do not count."""
    robust, norms = [100, 90, 95, 60, 70, 50], [0.1, 0.3, 0.2, 0.6, 0.7, 0.9]
    records = [
        record(s, seed, "residual", n + 3 * seed, v + 0.01 * seed)
        for s, n, v in zip(SCHEMES, robust, norms)
        for seed in range(3)
    ]
    result = measures.correlations(found(records), 0.1)["log_norm"]
    assert result.value == pytest.approx(scipy.stats.spearmanr(robust, norms).statistic)
    assert (result.n, result.over, result.verdict) == (6, "schemes", "lower")
    broken = replace(records[0].stability[0], value=float("inf"))
    records[0] = replace(records[0], stability=(broken, *records[0].stability[1:]))
    assert mean_of(records[0], "log_norm") == float("inf") and mean_of(records[0], "kreiss") is None
    blown = measures.correlations(found(records), 0.1)["log_norm"]
    last = [float("inf"), *norms[1:]]
    assert blown.n == 6 and blown.value == pytest.approx(scipy.stats.spearmanr(robust, last).statistic), "a last place"
    unknown = replace(broken, value=float("nan"))
    records[0] = replace(records[0], stability=(unknown, *records[0].stability[1:]))
    for kept, n in ((records, 6), (records[2:], 6), (records[3:], 5)):
        assert measures.correlations(found(kept), 0.1)["log_norm"].n == n
    assert measures.correlations(found(records[:12]), 0.1) == {}, "four schemes"
    assert mean_of(records[0], "log_norm") is None
    constant = found([record(s, 0, "residual", 90) for s in SCHEMES[:6]])
    assert measures.correlations(constant, 0.1) == {}, "constant: no correlation"


def test_nets_are_grouped_by_what_the_run_varies_most():
    what, groups = measures.grouping(found(run()))
    assert (what, [sum(len(arm.records) for arm in own) for own in groups.values()]) == ("schemes", [6, 6])
    what, groups = measures.grouping(found([record(s, seed, f, 90) for s in "ab" for f in ("x", "y", "z") for seed in (0, 1)]))
    assert what == "fields"
    assert {name: sum(len(arm.records) for arm in own) for name, own in groups.items()} == {"x": 4, "y": 4, "z": 4}


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "its 3 nets are 1 scheme, and one has nothing to be compared with."),
        (2, "its 6 nets are 2 schemes, and two always"),
        (4, "4 stand in one of 24 orders: no test of a rank correlation can reach a p-value below 0.083. From 5 on"),
    ],
)
def test_a_run_of_few_schemes_says_that_it_cannot_tell(count, sentence):
    def section(count):
        return measures.measures_section(
            found([record(s, seed, "residual", 90 + i, 0.1 * i) for i, s in enumerate(SCHEMES[:count]) for seed in range(3)])
        )

    assert sentence in section(count).parts[0].text
    (row,) = section(7).parts[0].rows
    assert row[4:] == ("7", "more robust")


def test_a_run_of_two_fields(tmp_path, monkeypatch):
    out = tmp_path / "run"
    fields = "residual,damped(rate=0.2)"
    monkeypatch.setattr(
        "experiments.harness.options.SMOKE",
        {
            "epochs": 1,
            "seeds": (0,),
            "train_limit": 64,
            "test_limit": 12,
            "attacks": ("pgd2",),
            "probe_images": 1,
            "audit_images": 4,
        },
    )
    assert (
        compare_schemes.main(
            [
                "--schemes",
                "explicit",
                "--fields",
                fields,
                "--log-norm-penalty",
                "0.1",
                "--smoke",
                "--epsilons",
                "0.1",
                "--workers",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
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


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ("", "--fields is empty"),
        ("nonsense", "unknown field 'nonsense'; choose from residual"),
        ("damped,damped(rate=0.5)", "field 'damped' stands twice"),
        ("damped(rate=-1)", "rate in the field"),
    ],
)
def test_bad_fields(fields, sentence, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--fields", fields, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err and not (tmp_path / "run").exists()
