"""The relation of predictors and robustness over runs: its page, its table, and what cannot be compared."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from records import config, measurement, record, verdict

from experiments import relate
from experiments.harness.report.study import _scatter, sentences, study, table
from experiments.harness.run.schema import Metric
from experiments.harness.statistics.relation import reliability
from odenets.errors import InputError

SCHEMES = ("explicit_euler", "midpoint", "heun", "rk4", "implicit_euler", "trapezoid", "sdirk2", "gauss4")
N = 300


def run_of(training, seeds=4, **changes):
    """Robustness falls with log_norm from scheme to scheme; kreiss is known for half of them, step_norm is noise."""
    random, records = np.random.default_rng(len(training)), []
    for index, scheme in enumerate(SCHEMES):
        for seed in range(seeds):
            rates = (0.95, 0.5 - 0.05 * index + 0.02 * random.normal())
            measured = tuple(
                measurement("pgd20" if eps else "clean", eps, random.random(N) < rate) for eps, rate in zip((0.0, 0.1), rates)
            )
            rows = [("log_norm", 0.3 + 0.1 * index), ("step_norm", random.normal()), ("lipschitz", 1 + random.random())]
            rows += [("kreiss", 2 + random.random())] if index < 4 else []
            stability = tuple(Metric(0, 0, name, value + 0.01 * random.normal()) for name, value in rows)
            records.append(record(scheme, seed, training=training, measurements=measured, stability=stability))
    made = config(SCHEMES, tuple(range(seeds)), **{"epsilons": (0.1,)} | changes)
    return replace(made, settings=replace(made.settings, training=training)), records


def write(folder, made, records):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.to_json()))
    (folder / "records.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    return str(folder)


def test_a_predictor_that_is_there_is_supported_and_the_answer_names_its_size():
    found = study([run_of("standard"), run_of("pgd")])
    first = found.relations[0]
    assert (first.predictor, first.verdict, first.schemes) == ("log_norm", "supported", 8) and first.between.value < -0.9
    assert not any(r.verdict == "supported" for r in found.relations[1:]) and len(found.nets.robust) == 64
    said = sentences(found)
    assert "supported: log norm (-" in said[0] and "8 schemes, 64 nets, digits, standard, pgd training" in said[0]
    assert any(text.startswith("A standard deviation of log norm goes with \u2212") for text in said)
    header, rows = table(found).columns, table(found).rows
    assert {len(row) for row in rows} == {len(header)}
    for row in rows:
        assert not row[5] or row[3], "no p-value without an effect"


def test_what_clean_accuracy_leaves_of_a_supported_predictor_is_said():
    found, told = study([run_of("standard")]), []
    (own,) = [r for r in found.relations if r.verdict == "supported"][:1]
    for low, high in ((-0.5, 0.4), (-0.9, -0.2)):
        left = replace(own.between, value=(low + high) / 2, low=low, high=high)
        told.append(" ".join(sentences(replace(found, relations=(replace(own, given={"clean accuracy": left}),)))))
    assert "At equal clean accuracy the correlation of log norm is -0.05 [-0.50, +0.40]: that it says more" in told[0]
    assert "At equal clean accuracy the" not in told[1]


def test_what_is_known_for_half_of_the_schemes_is_compared_there():
    made, records = run_of("standard")
    known = [replace(r, stability=(*r.stability, Metric(0, 0, "kreiss", 1.0 + r.seed))) for r in records[16:20]]
    found = study([(made, [*records[:16], *known, *records[20:]])])
    kreiss = next(r for r in found.relations if r.predictor == "kreiss")
    assert (kreiss.schemes, kreiss.total) == (5, 8)
    assert any(
        "Not known for all 8 schemes, and compared where they are known: kreiss on 5" in text for text in sentences(found)
    )


def test_without_statsmodels_the_page_says_so(monkeypatch):
    monkeypatch.setattr("experiments.harness.statistics.mixed.find_spec", lambda name: None)
    found = study([run_of("standard")])
    assert any(text.endswith("statsmodels is not installed (pip install 'odenets[mixed]').") for text in sentences(found))
    assert found.relations[0].verdict == "supported"


def test_a_fit_that_is_singular_is_said():
    """Clean accuracy in the order of the predictor: one cannot be told from the other."""
    made, records = run_of("standard")
    same = [replace(r, stability=(Metric(0, 0, "step_norm", _clean(r)), *r.stability[:1])) for r in records]
    said = sentences(study([(made, same)]))
    assert any(text.startswith("Mixed model of step norm: the fit is singular") for text in said)


def _clean(record):
    return next(m for m in record.measurements if not m.epsilon).accuracy


def test_nets_that_failed_their_audit_are_left_out():
    made, records = run_of("standard")
    found = study([(made, [replace(records[0], audit=verdict(False)), *records[1:-1]])])
    told = sentences(found)
    assert len(found.nets.robust) == 30
    assert "1 net failed the audit and is left out: explicit_euler, seed 0." in told
    assert "1 net has no record, as training failed or has not ended: gauss4, seed 3." in told


def test_schemes_that_are_the_same_count_once():
    made, records = run_of("standard")
    twin = [replace(r, scheme="theta", trained_as=r.trained_as) for r in records if r.scheme == records[0].scheme]
    others = [r for r in records if r.scheme != "theta"]
    found = study([(replace(made, schemes=(*made.schemes, "theta")), [*others, *twin])])
    assert found.alike == {"theta": records[0].scheme} and len(found.nets.robust) == len(others)
    assert any(f"theta those of {records[0].scheme}" in text for text in sentences(found))
    other = replace(twin[0], stability=(replace(twin[0].stability[0], value=0.123), *twin[0].stability[1:]))
    assert not study([(replace(made, schemes=(*made.schemes, "theta")), [*others, other, *twin[1:]])]).alike


@pytest.mark.parametrize(("seeds", "said"), [(1, True), (2, False)])
def test_one_net_a_scheme_is_said_to_be_one(seeds, said):
    found = study([run_of("standard", seeds)])
    assert any(text.startswith("One net for each scheme") for text in sentences(found)) == said
    repeats = reliability(found.nets.robust, found.nets)
    told = f"{100 * repeats.value:.1f} % would come again with other seeds, {100 * repeats.low:.1f} % at least"
    assert (told in " ".join(sentences(found))) != said


def test_a_measure_that_is_infinite_for_some_is_compared_and_drawn_at_the_edge():
    made, records = run_of("standard")
    known = [Metric(0, 0, "largest_stable_h", float("inf") if i >= 20 else 1.0 + i) for i in range(len(records))]
    found = study([(made, [replace(r, stability=(*r.stability, m)) for r, m in zip(records, known)])])
    relation = next(r for r in found.relations if r.predictor == "largest_stable_h")
    assert relation.schemes == 8 and relation.between.value < -0.9 and relation.verdict == "refuted"
    axes = _scatter(found, "largest_stable_h").axes[0]
    assert "\u221e" in {text.get_text() for text in axes.texts} and np.isfinite(axes.lines[0].get_xydata()).all()


def test_the_page_of_finished_runs(tmp_path, capsys):
    folders = [write(tmp_path / training, *run_of(training)) for training in ("standard", "pgd")]
    assert relate.main(["--runs", *folders, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "relation.html").read_text(encoding="utf-8")
    assert "supported: log norm" in page and "log_norm.png" in {p.name for p in (tmp_path / "out" / "figures").iterdir()}
    rows = list(csv.reader((tmp_path / "out" / "relation.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[1][0] == "log norm" and rows[1][1] == "supported"
    assert "relation.html" in capsys.readouterr().out


def test_nets_of_one_training_that_were_trained_otherwise_are_not_pooled():
    """Half of the schemes trained for three epochs, the others for fifteen: epochs would pass for a property of schemes."""
    made, records = run_of("standard")
    short = replace(made, settings=replace(made.settings, epochs=3))
    with pytest.raises(InputError, match="these runs cannot be compared: epochs 15 and 3"):
        study([(made, records[:16]), (short, records[16:])])
    kept = replace(made, settings=replace(made.settings, checkpoint_seconds=9.0))
    assert len(study([(made, records[:16]), (kept, records[16:])]).nets.robust) == 32


def test_a_small_p_value_is_not_zero():
    found = study([run_of("standard")])
    few = replace(found, relations=(replace(found.relations[0], p=0.0002), replace(found.relations[1], p=0.25)))
    assert [row[5] for row in table(few).rows] == ["2e-04", "0.250"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "mnist"}, "these runs cannot be compared: dataset 'digits' and 'mnist'"),
        ({"attacks": ("fgsm",)}, "attacks"),
        ({"splits": "per-seed"}, "splits 'fixed' and 'per-seed'"),
        ({"epsilons": (0.1, 0.2)}, "epsilons (0.1,) and (0.1, 0.2)"),
        ({"split_seed": 3}, "split_seed 20 and 3"),
    ],
)
def test_runs_that_cannot_be_compared_say_why(changes, sentence):
    with pytest.raises(ValueError, match="cannot be compared") as error:
        study([run_of("standard"), run_of("pgd", **changes)])
    assert sentence in str(error.value)


def test_a_net_that_is_given_twice_does_not_count_twice():
    with pytest.raises(ValueError, match=r"the same net twice \(explicit_euler on residual, standard training, seed 0\)"):
        study([run_of("standard"), run_of("standard")])


def test_weights_that_are_run_otherwise_than_trained_are_not_among_the_nets():
    made, records = run_of("standard")
    swapped = replace(records[0], scheme="rk4", trained_as="explicit_euler", swapped=True, stability=())
    finer = replace(records[1], substeps=4, stability=())
    found = study([(made, [*records, swapped, finer])])
    assert len(found.nets.robust) == len(records) == len(study([(made, records)]).nets.robust)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--schemes", "explicit,heun"], "needs 5 of them at least"),
        (["--schemes", "all", "--training", "loud"], "unknown --training 'loud'"),
        (["--schemes", "all", "--training", ","], "--training is empty"),
        (["--runs", "nowhere"], "nowhere"),
    ],
)
def test_bad_command_lines(options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        relate.main([*options, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
