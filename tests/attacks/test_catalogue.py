"""Names of attacks on a command line: each form runs, does what its name says, and what is no name is refused."""

from dataclasses import dataclass

import pytest
import torch
from attack_problems import conv_net, images

import odenets
import stability
from experiments.harness.command import parse_attacks
from experiments.harness.words import radius
from stability import L2, Linf
from stability.attacks import catalogue

NAMES = [form.replace("N", "5") for form in stability.attack_shorthands() if form != "autoattack"]


def problem():
    net, x = conv_net(classes=10), images(4, dtype=torch.float32)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.05)])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_runs_with_the_noise_of_the_index(name, threat):
    net, x, y = problem()
    attack, rows = stability.get_attack(name), torch.tensor([2, 0])

    def attacked(rows):
        return attack(net, x[rows], y[rows], threat, torch.Generator().manual_seed(3), rows)

    moved = attacked(torch.arange(4))
    torch.testing.assert_close(attacked(rows), moved[rows], rtol=0, atol=1e-5)
    assert (threat.size(moved - x) <= threat.epsilon * (1 + 1e-5)).all() and not torch.equal(moved, x)


@pytest.mark.parametrize(
    ("name", "attack", "settings"),
    [
        ("pgd7", stability.pgd, {"steps": 7}),
        ("pgd7-margin", stability.pgd, {"steps": 7, "loss": "margin"}),
        ("pgd20-dlr", stability.pgd, {"steps": 20, "loss": "dlr"}),
        ("pgd7-momentum", stability.pgd, {"steps": 7, "momentum": 1.0}),
        ("apgd9-ce", stability.apgd, {"steps": 9}),
        ("apgd9-dlr", stability.apgd, {"steps": 9, "loss": "dlr"}),
        ("apgd9-t", stability.apgd, {"steps": 9, "loss": "dlr", "targets": 9}),
        ("square30", stability.square, {"queries": 30}),
        ("noise30", stability.noise, {"draws": 30}),
    ],
)
def test_a_name_is_the_attack_it_says(name, attack, settings):
    net, x, y = problem()
    named = stability.get_attack(name)(net, x, y, Linf(0.02), torch.Generator().manual_seed(3), torch.arange(4))
    assert torch.equal(named, attack(net, x, y, Linf(0.02), generator=torch.Generator().manual_seed(3), **settings))


def test_an_attack_is_one_entry(monkeypatch):
    """Its fields are the settings of its function; a 0 that stands for "none" is left to the function."""

    def brighter(net, x, y, threat, *, generator, indices, share, rounds=None):
        seen.append((generator.initial_seed(), indices.tolist(), share, rounds))
        return x + share * threat.epsilon

    @dataclass(frozen=True)
    class Brighter(catalogue.Attack):
        share: float = 0.5
        rounds: int = 0
        name = "brighter"
        __call__ = catalogue.by(brighter)

    monkeypatch.setitem(catalogue.ATTACKS, "brighter", Brighter)
    seen, (net, x, y) = [], problem()
    moved = stability.get_attack("brighter(share=0.25)").bound(Linf(0.1), 3)(net, x, y, torch.arange(4))
    stability.get_attack("brighter(rounds=2)").bound(Linf(0.1), 4)(net, x, y, torch.arange(4))
    assert seen == [(3, [0, 1, 2, 3], 0.25, None), (4, [0, 1, 2, 3], 0.5, 2)] and torch.equal(moved, x + 0.025)


def test_autoattack_gets_the_seed(monkeypatch):
    pytest.importorskip("pyautoattack", reason='pyautoattack is not installed: pip install -e ".[autoattack]"')
    seen = []

    def instead(net, x, y, threat, version, generator, indices):
        seen.append((threat, version, generator.initial_seed()))
        return x

    monkeypatch.setattr(catalogue.AutoAttack, "__call__", catalogue.by(instead))
    stability.get_attack("autoattack").bound(Linf(0.1), 3)(*problem(), torch.arange(4))
    assert seen == [(Linf(0.1), "standard", 3)]


@pytest.mark.parametrize(
    "name",
    [
        "pgd0",
        "pgd-20",
        "PGD20",
        "pgd20-hinge",
        "pgd020",
        "noise0",
        "fgsm3",
        "autoattack5",
        "20",
        "",
        "pgdN",
        "noiseN",
        "worst",
        20,
        None,
    ],
)
def test_no_name(name):
    with pytest.raises(ValueError, match="choose from fgsm, pgdN.*autoattack"):
        stability.get_attack(name)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("pgd", "pgd20"),
        ("pgd(steps=7)", "pgd7"),
        ("pgd(steps=7,loss=margin)", "pgd7-margin"),
        ("apgd(loss=dlr,targets=9)", "apgd100-t"),
        ("apgd50", "apgd50-ce"),
        ("pgd( restarts=3 , steps=5)", "pgd(steps=5,restarts=3)"),
        ("square", "square1000"),
        ("fgsm", "fgsm"),
        ("fgsm(loss=margin)", "fgsm(loss=margin)"),
        ("noise(draws=3)", "noise3"),
    ],
)
def test_a_spec_and_its_shorthand_are_one(spec, canonical):
    attack = stability.get_attack(spec)
    assert str(attack) == canonical and stability.get_attack(canonical) == attack and stability.get_attack(attack) is attack


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("pgd(steps=0)", "steps.*at least 1, got 0"),
        ("pgd(loss=hinge)", "hinge.*cross_entropy"),
        ("pgd(step=3)", "unknown parameter"),
        ("pgd(steps=3,steps=4)", "twice"),
        ("hopskip(steps=3)", "unknown attack"),
        ("pgd(steps=1.5)", "whole number"),
        ("pgd(targets=-1)", "targets.*at least 1"),
        ("pgd(restarts=0)", "restarts"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(spec, says):
    with pytest.raises(odenets.InputError, match=says):
        stability.get_attack(spec)


def test_which_attacks_follow_a_gradient():
    assert {name for name in stability.list_attacks() if not stability.get_attack(name).follows_gradient} == {"square", "noise"}


def test_lists_of_names():
    assert parse_attacks("pgd20,fgsm,pgd(steps=20),apgd,square") == ["pgd20", "fgsm", "apgd100-ce", "square1000"]
    with pytest.raises(ValueError, match="empty"):
        parse_attacks(" ,")


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package pyautoattack"):
        stability.get_attack("autoattack")


@pytest.mark.parametrize(
    ("epsilon", "name"),
    [
        (8 / 255, "8/255"),
        (0.1, "0.1"),
        (0.2, "0.2"),
        (1 / 255, "1/255"),
        (0.031, "0.031"),
        (1 / 3, "85/255"),
        (0.12345, "0.123"),
        (0.0, "0"),
        (1.0, "1"),
    ],
)
def test_radii_are_named_as_the_field_names_them(epsilon, name):
    assert radius(epsilon) == name
