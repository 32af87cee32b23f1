"""Names of attacks on a command line: each form runs, does what its name says, and what is no name is refused."""
import pytest
import torch
from attack_problems import conv_net, images

import stability
from experiments.harness.run import attack_names
from stability import L2, Linf

NAMES = [form.replace("N", "5") for form in attack_names.FORMS if form != "autoattack"]


def problem():
    net, x = conv_net(classes=10), images(4, dtype=torch.float32)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.05)])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_runs_with_the_noise_of_the_index(name, threat):
    net, x, y = problem()
    attack, rows = attack_names.parse_attack(name), torch.tensor([2, 0])

    def attacked(rows):
        return attack(net, x[rows], y[rows], threat, torch.Generator().manual_seed(3), rows)

    moved = attacked(torch.arange(4))
    torch.testing.assert_close(attacked(rows), moved[rows], rtol=0, atol=1e-5)
    assert (threat.size(moved - x) <= threat.epsilon * (1 + 1e-5)).all() and not torch.equal(moved, x)


@pytest.mark.parametrize(("name", "attack", "settings"), [
    ("pgd7", stability.pgd, {"steps": 7}), ("pgd7-margin", stability.pgd, {"steps": 7, "loss": "margin"}),
    ("pgd20-dlr", stability.pgd, {"steps": 20, "loss": "dlr"}), ("pgd7-momentum", stability.pgd, {"steps": 7, "momentum": 1.0}),
    ("apgd9-ce", stability.apgd, {"steps": 9}), ("apgd9-dlr", stability.apgd, {"steps": 9, "loss": "dlr"}),
    ("apgd9-t", stability.apgd, {"steps": 9, "loss": "dlr", "targets": 9}), ("square30", stability.square, {"queries": 30}),
    ("noise30", stability.noise, {"draws": 30})])
def test_a_name_is_the_attack_it_says(name, attack, settings):
    net, x, y = problem()
    named = attack_names.parse_attack(name)(net, x, y, Linf(0.02), torch.Generator().manual_seed(3), torch.arange(4))
    assert torch.equal(named, attack(net, x, y, Linf(0.02), generator=torch.Generator().manual_seed(3), **settings))


def test_autoattack_gets_the_seed(monkeypatch):
    pytest.importorskip("pyautoattack", reason="pyautoattack is not installed: pip install -e \".[autoattack]\"")
    seen = []

    def instead(net, x, y, threat, generator):
        seen.append((threat, generator.initial_seed()))
        return x

    assert attack_names.FORMS["autoattack"][0] is stability.autoattack
    monkeypatch.setattr(stability, "autoattack", instead)
    monkeypatch.setitem(attack_names.FORMS, "autoattack", (instead, None, {}))
    attack_names.parse_attack("autoattack")(*problem(), Linf(0.1), torch.Generator().manual_seed(3), torch.arange(4))
    assert seen == [(Linf(0.1), 3)]


@pytest.mark.parametrize("name", ["pgd", "pgd0", "pgd20 ", "pgd-20", "PGD20", "pgd20-hinge", "apgd20", "square", "noise0",
                                  "fgsm3", "autoattack5", "20", "", "pgdN", "noiseN"])
def test_no_name(name):
    with pytest.raises(ValueError, match="choose from fgsm, pgdN.*autoattack"):
        attack_names.parse_attack(name)


def test_lists_of_names():
    assert attack_names.parse_attacks(["pgd20", "fgsm", "pgd20"]) == ["pgd20", "fgsm"]
    with pytest.raises(ValueError, match="empty"):
        attack_names.parse_attacks([])


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(attack_names, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package pyautoattack"):
        attack_names.parse_attack("autoattack")


@pytest.mark.parametrize(("epsilon", "name"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.2, "0.2"), (1 / 255, "1/255"), (0.031, "0.031"),
                                               (1 / 3, "85/255"), (0.12345, "0.123"), (0.0, "0"), (1.0, "1")])
def test_radii_are_named_as_the_field_names_them(epsilon, name):
    assert attack_names.radius(epsilon) == name
