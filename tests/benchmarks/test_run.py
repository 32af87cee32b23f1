"""Every part of the page yields its rows; the figures of so short a run mean nothing."""

import json

import pytest
import torch

from experiments.benchmarks import memory, run
from experiments.benchmarks.timing import Row


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("phases", "schemes", "masks_all", "honest_all", "cluster")
        else name
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


def test_one_page_and_its_file(tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "figures.json"
    assert run.main(["--smoke", "--device", "cpu", "--only", "backward", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert torch.__version__.startswith(figures["environment"]["torch"]) and figures["seconds"]["backward"] > 0
    printed = capsys.readouterr().out
    for row in figures["figures"]:
        assert row["figure"].split()[0] in printed
    monkeypatch.setattr(run, "measured", lambda *_: [Row(figures["figures"][0]["figure"], 2.0, 1.0)])
    assert run.main(["--only", "backward,training", "--against", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "now / before" in printed and "2 of 2 targets missed" in printed


def test_targets_are_met_or_missed_and_runs_are_compared_row_by_row():
    rows = [Row("a", 1.0, 2.0), Row("b", 3.0, 2.0), Row("c", 4.0, None), Row("nobody is installed: skipped", None, None)]
    header, *body = run.page(rows, {"a": 2.0, "c": None, "gone": 1.0})
    assert [cells[3] for cells in body] == ["met", "MISSED", "", ""]
    assert [cells[4:] for cells in body] == [["2", "0.5"], ["", ""], ["", ""], ["", ""]]
    assert len(header) == len(body[0])


def test_parts_are_chosen_by_name_and_by_group():
    everything = run.parse_parts(None)
    assert set(run.PARTS) - set(everything) == {"masks_all", "honest_all", "compare"}
    assert run.parse_parts("audit,pgd,masks") == ["masks", "schemes", "honest", "pgd"]


@pytest.mark.parametrize("words", [["--only", "speed"], ["--against", __file__, "--only", "backward"]])
def test_what_is_unknown_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(words)
    assert "choose from spectra" in capsys.readouterr().err or "--against" in words


def test_a_part_that_fails_is_told():
    (row,) = run.measured("no such part", torch.device("cpu"), True)
    assert "FAILED" in row.figure and row.measured is None


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
