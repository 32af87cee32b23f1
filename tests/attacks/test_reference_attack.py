"""The reference AutoAttack: under the judge it counts what it counts alone, and leaves the process as it was."""

import logging
import sys
from functools import partial

import pytest
import torch
from attack_problems import conv_net, images, robust

import odenets
import stability
from stability import L2, Linf

autoattack = stability.autoattack
package = pytest.importorskip("pyautoattack", reason='pyautoattack is not installed: pip install -e ".[autoattack]"')
ATTACKS = ("apgd-ce", "square")


def quick(reference):
    reference.apgd.n_restarts, reference.square.n_queries = 1, 30


def problem(classes=5, count=48):
    net, x = conv_net(classes=classes), images(count, dtype=torch.float32)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[:6] = (y[:6] + 1) % classes
    return net, x, y


@pytest.mark.parametrize(("threat", "attacks"), [(Linf(0.03), ATTACKS), (L2(0.08), ("apgd-ce", "apgd-t"))])
def test_worst_case_counts_what_calling_it_counts(threat, attacks):
    net, x, y = problem()
    net.train()
    attack = partial(autoattack, threat=threat, version="custom", attacks=attacks, configure=quick)
    result = stability.worst_case(net, x, y, threat, [attack])
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)))
    alone = package.AutoAttack(
        net.eval(), norm=type(threat).__name__, eps=threat.epsilon, version="custom", attacks=list(attacks), seed=seed
    )
    quick(alone)
    alone.apgd_targeted.n_target_classes = 4
    x_adv, _ = alone.run_standard_evaluation(x, y, batch_size=250)
    assert int(result.robust.sum()) == robust(net, x_adv, y)
    assert torch.equal(result.robust, net(x_adv).argmax(1) == y)
    assert 0 < result.robust.sum() < (result.broken_by != -2).sum() and result.names == ("autoattack",)


def test_standard_version_with_fewer_classes_than_its_targets():
    net, x, y = problem(classes=4, count=12)

    def fewer(reference):
        assert reference.apgd_targeted.n_target_classes == reference.fab.n_target_classes == 3
        reference.attacks_to_run = ["apgd-t", "fab-t"]
        for attack in (reference.apgd_targeted, reference.fab):
            attack.n_iter = 5

    moved = autoattack(net, x, y, Linf(0.03), configure=fewer)
    assert 0 < robust(net, moved, y) < robust(net, x, y)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_process_stays_as_it_was(mode, caplog):
    net = odenets.ode_resnet_small(scheme="ie_skip").train()  # differentiates within its forward pass
    x, y = images(4, (1, 8, 8), dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    before, trace, seen = torch.random.get_rng_state(), sys.gettrace(), []
    tracer = lambda *event: seen.append(event)  # noqa: E731
    sys.settrace(tracer)
    try:
        with mode(), caplog.at_level(logging.WARNING):
            moved = autoattack(net, x, y, Linf(0.05), version="custom", attacks=("square",), configure=quick)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(trace)
    assert torch.equal(torch.random.get_rng_state(), before) and net.training and not moved.is_inference()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert "dynamic" not in caplog.text and not logging.getLogger("auto-attack").filters
    again = autoattack(net, x, y, Linf(0.05), version="custom", attacks=("square",), configure=quick)
    assert torch.equal(again, moved)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"version": "best"}, "standard, plus, rand, custom"),
        ({"attacks": ("square",)}, "custom goes with attacks"),
        ({"version": "custom"}, "custom goes with attacks"),
        ({"batch_size": 0}, "batch_size"),
        ({"threat": 0.1}, "Linf or L2"),
        ({"x": images(2)}, "float32"),
        ({"x": images(2, dtype=torch.float32).flatten(1)}, "height, width"),
        ({"x": 2 + images(2, dtype=torch.float32)}, "lie in"),
        ({}, "4 classes, the logits have 3"),
    ],
)
def test_bad_input(settings, message):
    arguments = {"x": images(2, dtype=torch.float32), "y": torch.tensor([0, 1]), "threat": Linf(0.1), **settings}
    with pytest.raises(ValueError, match=message):
        autoattack(conv_net(classes=3), **arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ValueError, match="needs the package pyautoattack"):
        autoattack(conv_net(), images(2, dtype=torch.float32), torch.tensor([0, 1]), Linf(0.1))
