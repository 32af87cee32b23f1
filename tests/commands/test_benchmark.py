"""The benchmark scripts run and print their rows; the figures of so short a run mean nothing."""

import json

import pytest
import torch

from experiments.benchmarks import attacks as benchmark_attacks
from experiments.benchmarks import audit as benchmark_audit
from experiments.benchmarks import cost as benchmark
from experiments.benchmarks import memory
from experiments.benchmarks import peers as benchmark_peers
from experiments.benchmarks import spectra as benchmark_spectra
from experiments.harness.run.runner import WORKER_ENVIRONMENT


@pytest.mark.parametrize(
    ("script", "only"),
    [
        (benchmark, "explicit,training,memory"),
        (benchmark_peers, "fixed_grid,torchdeq,memory,step"),
        (benchmark_spectra, "dense_1024,images,batches"),
        (benchmark_attacks, "pgd,reference"),
        (benchmark_audit, "masks,schemes,honest"),
    ],
)
def test_a_benchmark_prints_a_row_for_each_figure(script, only, tmp_path, monkeypatch, capsys):
    for key, value in WORKER_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)  # as is: it would start itself once more in a process with this environment
    assert script.main(["--smoke", "--device", "cpu", "--only", only, "--out", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert len(figures) >= 8
    printed = capsys.readouterr().out
    for row in figures:
        assert row["figure"].split()[0] in printed
        assert row["measured"] is None and "skipped" in row["figure"] or row["measured"] >= 0


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark_peers.main(["--only", "speed"])
    assert "choose from fixed_grid" in capsys.readouterr().err


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
