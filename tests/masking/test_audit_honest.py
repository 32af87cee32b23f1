"""The audit stays quiet on honest networks that know their digits."""
from functools import partial

import pytest
import torch
from audited import Wrapped, accuracy, fit, sample, trained, verdicts
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import odenets


def plain():
    torch.manual_seed(0)
    return fit(nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                             nn.Flatten(), nn.Linear(512, 10)))


def pooled():
    """Digits have black corners: a max-pool there chooses among equals."""
    torch.manual_seed(0)
    return fit(nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(),
                             nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)), 5)


def converted():
    """A user's torchvision ResNet for small grey images, read as an ODE."""
    torch.manual_seed(0)
    net = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.Identity()
    return odenets.convert(fit(net, epochs=2))


HONEST = {  # how it comes about, the least robust accuracy for the audit to doubt, the checks that do not apply
    "plain": (plain, 0.2, {"exact_gradient", "solver", "tolerance", "transfer"}),
    "pooled": (pooled, 0.05, {"exact_gradient", "solver", "tolerance", "transfer"}),
    "converted": (converted, 0.2, {"exact_gradient", "solver", "tolerance"}),
    "explicit": (trained, 0.1, {"exact_gradient", "solver", "tolerance"}),
    "adversarially trained": (partial(trained, attacked=True), 0.6, {"exact_gradient", "solver", "tolerance"}),
    "ie_skip": (partial(trained, "ie_skip(gamma=0.05)", "ie_skip(gamma=0.05)"), 0.05, {"solver", "tolerance"}),
    "implicit": (partial(trained, "implicit", "implicit(tol=1e-2)"), 0.05, set())}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_passes(name):
    make, robust, inapplicable = HONEST[name]
    net = make()
    assert accuracy(net) > 0.85
    result, found = verdicts(net, sample(24), many_steps=40, queries=100)
    assert result.passed, str(result)
    figures = dict(zip(found, (check.figures for check in result.checks)))
    assert figures["more_steps"]["robust_40"] > robust, "where an attack breaks everything, nothing could hide"
    assert {name for name, passed in found.items() if passed is None} == inapplicable


@pytest.mark.parametrize("scheme", ["ie_skip(gamma=0.1)", "implicit_euler(tol=1e-2)", "rk4"])
def test_exact_gradients_pass(scheme):
    result, found = verdicts(trained(scheme), sample(20), checks=["finite_differences", "exact_gradient"])
    assert result.passed and found["finite_differences"] is True, str(result)


def test_a_network_that_clamps_its_images_is_honest():
    # Many pixels are exactly 0: half of a central difference there would fall on the flat side of the clamp.
    net = Wrapped(trained(), lambda x: x.clamp(0, 1))
    assert verdicts(net, checks=["finite_differences"])[0].passed


@pytest.mark.parametrize("factor", [1e-4, 10.0])
def test_a_moderate_temperature_is_honest(factor):
    assert verdicts(Wrapped(trained(), after=lambda logits: factor * logits), many_steps=30)[0].passed


def test_tolerances_that_suffice_pass():
    net = trained("implicit(tol=1e-3)", "implicit(tol=1e-2)")
    (check,) = verdicts(net, sample(16), steps=5, many_steps=6, checks=["tolerance"])[0].checks
    assert check.passed and 0 < check.figures["adversarial_logits_moved"] < 0.005
    net = trained("adaptive(rtol=1e-3,atol=1e-3)", "rk4")
    (check,) = verdicts(net, sample(6), steps=2, many_steps=3, checks=["tolerance"])[0].checks
    assert check.passed and "robust_own" not in check.figures
