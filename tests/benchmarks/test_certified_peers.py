"""certified_peers.py: bounds of other libraries' layers are norms, a run is balanced and goes on, each case once."""

import json
import math

import pytest
import torch
from torch import nn

import odenets
from experiments.benchmarks import certified_peers as bench
from experiments.harness.run.certified import Line, by_pair
from experiments.harness.training import data


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    pictures = 0.2 * torch.rand(count, 1, 28, 28, generator=generator)
    pictures[torch.arange(count), 0, 2 * labels] = 1.0  # a bright row for each class
    return data.Split(pictures, labels)


def peer(padding_mode="zeros"):
    """A net of plain layers in the places of a peer's."""
    torch.manual_seed(0)
    conv = lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode=padding_mode)  # noqa: E731
    return bench._peer(conv, bench.MaxMin, nn.Linear)(4).eval()


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_bound_of_a_convolution_is_its_norm(mode):
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode, bias=False).double()
    matrix = torch.func.jacrev(conv)(torch.zeros(1, 3, 6, 6, dtype=torch.float64)).reshape(4 * 36, 3 * 36)
    norm = torch.linalg.matrix_norm(matrix, 2).item()
    found = bench._circular(conv, 6) if mode == "circular" else bench._padded(conv, (6, 6))
    assert norm <= found <= 1.02 * norm


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_radii_of_plain_layers_hold_under_an_ascent(mode):
    plain, test = bench.exported(peer(mode)), images(6)
    lipschitz = bench.bound(plain)
    with torch.no_grad():
        test = data.Split(test.images, plain(test.images.double()).argmax(1))
    found = bench.certified(plain, test, lipschitz)
    radius = torch.tensor(found.radii).double().view(-1, 1, 1, 1)
    assert (radius > 0).all() and found.kept <= lipschitz * (1 + 1e-9)
    x, d = test.images.double(), torch.zeros_like(test.images).double()
    for _ in range(20):
        d = d.detach().requires_grad_()
        logits = plain(x + d)
        lead = logits.gather(1, test.labels[:, None])[:, 0] - logits.scatter(1, test.labels[:, None], -math.inf).amax(1)
        (g,) = torch.autograd.grad(lead.sum(), d)
        d = radius * -g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.equal(plain(x + d).argmax(1), test.labels)


def test_a_layer_that_nobody_knows_has_no_bound():
    plain = bench.exported(peer())
    plain[3] = nn.GELU()
    with pytest.raises(odenets.InputError, match="nothing is known of a GELU"):
        bench.bound(plain)


def test_a_run_goes_seed_by_seed_and_does_no_case_twice(tmp_path, monkeypatch, capsys):
    loaded = data.Data("mnist", 10, images(256), images(16, 1), images(24, 2))
    monkeypatch.setattr(bench.data, "load", lambda *args: loaded)
    monkeypatch.setattr(bench, "RADII", (0.1, 0.3))
    monkeypatch.setattr(bench, "ATTACK", "pgd2")
    command = ["--datasets", "mnist", "--methods", "CPL,Cayley", "--seconds", "0.2", "--parameters", "5000"]
    command += ["--out", str(tmp_path / "run")]
    assert bench.main([*command, "--seeds", "0"]) == 0
    first = (tmp_path / "run" / "records.jsonl").read_text()
    assert bench.main([*command, "--seeds", "0,1", "--resume"]) == 0
    text = (tmp_path / "run" / "records.jsonl").read_text()
    lines = [Line.from_json(json.loads(line)) for line in text.splitlines()]
    assert text.startswith(first) and [line.pair for line in lines if line.certified] == ["CPL", "Cayley"] * 2
    for seeds in by_pair(lines).values():
        assert list(seeds) == [0, 1]
        for net in seeds.values():
            assert net.training.seconds >= 0.2 and not (net.certified_at(0.1, 24) & ~net.attacked_at(0.1)).any()
    assert "CPL" in (tmp_path / "run" / "mnist.csv").read_text() and "Records: " in capsys.readouterr().out
