"""The authors' way of reading two nets beside the honest one: figures, verdicts, and every deviation from the paper."""

from dataclasses import replace

import numpy as np
from records import config, measurement, record

from experiments.harness.report import reproduction
from experiments.harness.report.arms import comparison

IE = "ie_skip"
N = 400


def run(seeds=6, masked=0.3, **changes):
    """ie_skip seems better by `masked` along the detached gradient, and is as ResNet is along the exact one."""
    random, records = np.random.default_rng(0), []
    for seed in range(seeds):
        for scheme in ("explicit_euler", IE):
            own = [measurement("clean", 0.0, random.random(N) < 0.95)]
            for name, rate in zip(reproduction.NAMES.values(), (0.6, 0.5, 0.45)):
                own.append(measurement(name, 0.1, random.random(N) < rate))
                if scheme == IE:
                    own.append(measurement(name, 0.1, random.random(N) < rate + masked, "detached"))
            records.append(record(scheme, seed, training="summed", measurements=tuple(own)))
    made = config(("explicit_euler", IE), tuple(range(seeds)), epsilons=(0.1,), **changes)
    return comparison(replace(made, settings=replace(made.settings, training="summed")), records)


def test_a_gain_that_the_detached_gradient_made_up_is_told_apart_from_a_real_one():
    found = run()
    told = reproduction.differences(found)
    assert told[IE, "detached", 0.1].verdict == "more robust" and abs(told[IE, "detached", 0.1].estimate.value - 0.3) < 0.05
    assert told[IE, "exact", 0.1].verdict != "more robust" and abs(told[IE, "exact", 0.1].estimate.value) < 0.05
    (sentence,) = reproduction.sentences([found])
    assert "in the authors' way" in sentence and "more robust; honestly" in sentence


def test_where_resnet_has_no_net_the_others_are_not_compared_with_it():
    found, names = run(), (IE, f"{IE}(gamma=0.1)")
    records = [replace(r, scheme=name, trained_as=name) for r in found.records if r.scheme == IE for name in names]
    (told,) = reproduction.sentences([comparison(replace(found.config, schemes=("explicit_euler", *names)), records)])
    assert f"IE-ResNet, {names[1]} against IE-ResNet, {IE} in the authors' way" in told


def test_the_table_has_a_row_for_each_net_and_what_resnet_has_one_gradient_of_stands_in_both_ways():
    table = reproduction.table([run()])
    header, rows = table.columns, table.rows
    assert {len(row) for row in rows} == {len(header)} and len(rows) == 2
    resnet = dict(zip(header, rows[0]))
    assert resnet["net"] == "ResNet" and resnet["PGD-20, detached"] == resnet["PGD-20, exact"] != ""
    skip = dict(zip(header, rows[1]))
    assert float(skip["PGD-20, detached"]) > float(skip["PGD-20, exact"]) + 20
    assert float(skip["worst of all, exact"]) <= min(float(skip[f"{title}, exact"]) for title in reproduction.SPECS)


def test_whatever_differs_from_the_paper_is_named():
    found = run(model="small", train_limit=500)
    told = " ".join(reproduction.deviations(found.config))
    for word in (
        "Epochs",
        "Images a batch: 64",
        "Network: small",
        "training and",
        "Gradient in training: exact",
        "sign",
        "0.003",
    ):
        assert word in told, word
    assert "Settings beside CIFAR" not in " ".join(reproduction.deviations(replace(found.config, dataset="cifar10")))


def test_the_page_says_that_no_figure_is_the_papers(tmp_path):
    reproduction.write_reproduction([run()], tmp_path)
    page = (tmp_path / "reproduction.html").read_text(encoding="utf-8")
    assert "No figure on this page is the paper&#39;s" in page or "No figure on this page is the paper's" in page
    assert "digits-adversarial/report.html" in page
