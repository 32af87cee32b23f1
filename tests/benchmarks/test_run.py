"""Every part of the page yields its rows; the figures of so short a run mean nothing."""

import json

import pytest
import torch

from experiments.benchmarks import cost, memory, page, run
from experiments.benchmarks.timing import Row, Times, share

SLOW = {"phases", "schemes", "cluster", *(name for parts in run.LONG.values() for name in parts)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in run.PARTS
        if name not in ("large", "compiled", "dense_4096", "compare")
    ],
)
def test_a_part_yields_rows(name):
    threads = torch.get_num_threads()
    rows = [Row(*row) for row in run.PARTS[name](torch.device("cpu"), True)]
    assert rows and torch.get_num_threads() == threads
    for row in rows:
        assert row.measured is None and "skipped" in row.figure or row.measured >= 0
    assert len({row.figure for row in rows}) == len(rows)  # or two runs could not be compared


@pytest.fixture
def bench(monkeypatch):
    """run.main on made-up parts: a list of the parts that were measured, in the order in which they began."""
    parts = {
        "a": [Row("time / other", 1.2, 1.0, 1.1, 1.3), Row("kernels", 3.0, 5.0)],
        "b": [Row("peer is not installed: skipped", None), Row("near", 0.9, 1.0, 0.8, 1.1, "a note")],
        "c": [Row("share", 0.5, None, 0.4, 0.6)],
    }
    begun = []

    def measured(name, options, smoke):
        begun.append(name)
        return (parts[name], 2.0) if parts[name] else ([Row(f"{name} FAILED: no reason", None)], None)

    monkeypatch.setattr(run, "measured", measured)
    monkeypatch.setattr(run, "GROUPS", {"first": {"a": None, "b": None}, "second": {"c": None}})
    monkeypatch.setattr(run, "LONG", {"whole": {"d": None}})
    monkeypatch.setattr(run, "PARTS", dict.fromkeys("abcd"))
    monkeypatch.setattr(run, "EXPECTED", {"a": 1.0, "b": 3.0, "c": 2.0, "d": 90.0})
    monkeypatch.setattr(run, "ALONE", ("c",))
    return parts, begun


def test_one_part_in_a_process_of_its_own(tmp_path, capsys):
    out = tmp_path / "new" / "figures.json"
    assert run.main(["--smoke", "--device", "cpu", "--only", "backward", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert torch.__version__.startswith(figures["environment"]["torch"]) and figures["seconds"]["backward"] > 0
    printed = capsys.readouterr().out
    for row in figures["figures"]:
        assert row["figure"].split()[0] in printed and row["part"] == "backward"


def test_a_page_forecasts_tells_its_rows_and_ends_in_a_summary(bench, tmp_path, capsys):
    assert run.main(["--device", "cpu", "--workers", "1", "--out", str(tmp_path / "figures.json")]) == 0
    assert bench[1] == ["b", "a", "c"]  # the longest first, what wants the machine for itself last
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("3 parts, 1 at once: about ") and last == f"Written to {tmp_path / 'figures.json'}."


def test_the_summary_is_one_screen(bench, capsys):
    bench[0]["c"] = [
        Row(f"row {number} of many with a name that is rather long and breaks into lines", 2.0, 1.0) for number in range(99)
    ]
    run.main(["--device", "cpu"])
    _, _, told = capsys.readouterr().out.partition("\n\n")
    assert told.startswith("2 of 102 targets met, 100 missed; 3 parts, 6 s of processor time") and "and 88 more" in told
    assert "Not measured: peer is not installed: skipped." in told and "d (about 2 min)" in told
    assert "Met, though the spread reaches beyond the target:" in told and len(told.splitlines()) <= 40


def test_what_was_measured_is_kept_and_resumed(bench, tmp_path, capsys):
    out, (parts, begun) = tmp_path / "figures.json", bench
    parts["a"], line = [], ["--device", "cpu", "--workers", "1", "--out", str(out)]
    assert run.main(line) == 1
    assert "a FAILED: no reason" in capsys.readouterr().out.partition("\n\n")[2]
    assert [row["part"] for row in json.loads(out.read_text())["figures"]] == ["b", "b", "c"]
    parts["a"], begun[:] = [Row("kernels", 3.0, 5.0)], []
    assert run.main([*line, "--resume"]) == 0 and begun == ["a"]
    assert run.main([*line, "--resume"]) == 0 and begun == ["a"]  # printed again, nothing measured
    assert "share" in capsys.readouterr().out and list(page.Bench.read(out).parts) == ["a", "b", "c"]
    with pytest.raises(SystemExit, match="2"):
        run.main([*line, "--resume", "--data-dir", "images"])
    assert "was made with images False" in capsys.readouterr().err


def test_a_kill_loses_no_part_that_has_ended(bench, tmp_path, monkeypatch):
    out = tmp_path / "figures.json"
    whole = run.measured

    def killed(name, options, smoke):
        if name == "a":
            assert list(page.Bench.read(out).parts) == ["b"]
            raise KeyboardInterrupt
        return whole(name, options, smoke)

    monkeypatch.setattr(run, "measured", killed)
    with pytest.raises(SystemExit, match="130"):
        run.main(["--device", "cpu", "--workers", "1", "--out", str(out)])
    assert list(page.Bench.read(out).parts) == ["b"]


def test_two_runs_are_compared_by_name_and_spread(bench, tmp_path, capsys):
    out, parts = tmp_path / "figures.json", bench[0]
    assert run.main(["--device", "cpu", "--out", str(out)]) == 0
    parts["a"] = [Row("time / other", 1.5, 1.0, 1.4, 1.6), Row("kernels", 3.0, 5.0)]
    parts["c"] = [Row("another share", 0.5)]
    capsys.readouterr()
    assert run.main(["--device", "cpu", "--against", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "now / before" in printed and "1.25 *" in printed
    assert "Of 3 figures in both, 1 differ" in printed and "1 of its figures are not among these" in printed


def test_targets_are_met_or_missed():
    rows = [Row("a", 1.0, 2.0), Row("b", 3.0, 2.0), Row("c", 4.0), Row("d", None), Row("e", 1.9, 2.0, 1.8, 2.1)]
    rows += [Row("f", 2.1, 2.0, 2.0, 2.2)]
    assert [page.verdict(row) for row in rows] == ["met", "MISSED", "", "", "met?", "MISSED?"]


def test_figures_differ_beyond_their_spreads_only():
    then = Row("a", 1.0, None, 0.9, 1.1)
    assert page.differs(then._replace(measured=1.3, low=1.2, high=1.4), then)
    assert not page.differs(then._replace(measured=1.15, low=1.05, high=1.2), then)
    assert page.differs(Row("a", 12.0), Row("a", 10.0)) and not page.differs(Row("a", 10.1), Row("a", 10.0))
    assert not page.differs(Row("a", None), Row("a", 10.0))


def test_rows_of_earlier_files_are_read(tmp_path):
    (path := tmp_path / "old.json").write_text('{"figures": [{"figure": "a", "measured": 1.0, "target": null}]}')
    assert page.Bench.read(path).rows == [Row("a", 1.0)]


def test_a_ratio_is_the_median_of_rounds_with_their_middle_half():
    row = Times([[2.0, 1.0], [6.0, 2.0], [4.0, 1.0], [5.0, 1.0], [60.0, 10.0]]).ratio("a", 0, 1, 3.5)
    assert (row.measured, row.low, row.high, row.target) == (4.0, 3.0, 5.0, 3.5)


def test_a_share_has_the_interval_of_clopper_and_pearson():
    row = share("a", 0, 30)
    assert row.low == 0.0 and row.high == pytest.approx(1 - 0.025 ** (1 / 30))


def test_parts_are_chosen_by_name_and_by_group():
    everything, long = run.parse_parts(None), {name for parts in run.LONG.values() for name in parts}
    assert set(run.PARTS) - set(everything) == long and set(run.parse_parts(None, long=True)) == set(run.PARTS)
    assert run.parse_parts("audit,pgd,masks") == ["masks", "schemes", "honest", "pgd"]
    assert set(run.EXPECTED) == set(run.PARTS) and not {*run.GROUPS, *run.LONG} & set(run.PARTS)
    # What the page may take: 16 minutes of processor time, on two cores eight or nine of the clock.
    assert sum(run.EXPECTED[name] for name in everything) < 960


@pytest.mark.parametrize(
    "words",
    [
        ["--only", "speed"],
        ["--against", __file__, "--only", "backward"],
        ["--resume"],
        ["--weights", "w.pt"],
        ["--workers", "0"],
    ],
)
def test_what_is_unknown_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(words)
    assert "choose from spectra" in capsys.readouterr().err or "--only" not in words[:1]


def test_a_part_that_fails_is_told():
    (row,), seconds = run.measured("no such part", [], True)
    assert "FAILED" in row.figure and row.measured is None and seconds is None


def test_trainings_follow_the_gradient_that_their_row_names(monkeypatch):
    followed, train = list[str](), cost.training.train

    def recorded(net, data, settings, *rest, **more):
        followed.append(settings.train_gradient)
        return train(net, data, settings, *rest, **more)

    monkeypatch.setattr(cost.training, "train", recorded)
    rows = list(cost.training_cost(torch.device("cpu"), True))
    assert followed == ["exact", "detached", "exact", "exact"]
    assert "ie_skip, detached" in rows[0].figure


def test_peak_counts_what_is_alive_at_once(device):
    x = torch.ones(1024, device=device)

    def one_at_a_time():
        for _ in range(5):
            y = x + 1
        return y

    def all_together():
        return [x + 1 for _ in range(5)]

    # The name keeps the last one while the next is made.
    assert memory.peak_bytes(one_at_a_time, [x], device) == 2 * x.nbytes
    assert memory.peak_bytes(all_together, [x], device) == 5 * x.nbytes
    y = x.clone().requires_grad_()
    assert memory.peak_bytes(lambda: y.exp().exp().sum().backward(), [y], device) >= 3 * x.nbytes  # two are saved
