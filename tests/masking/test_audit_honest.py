"""The audit stays quiet on honest networks that know their digits."""

from functools import partial

import pytest
from audited import Wrapped, accuracy, sample, shipped, trained, verdicts

import odenets

SOLVING = ("solver", "connected_root", "tolerance")  # checks of nets that solve equations


def converted():
    """A user's torchvision ResNet, read as an ODE."""
    return odenets.convert(shipped("torchvision"))


HONEST = {  # how it comes about, the least robust accuracy for the audit to doubt, the checks that do not apply
    "plain": (partial(shipped, "plain"), 0.1, {"exact_gradient", *SOLVING, "transfer"}),
    "pooled": (partial(shipped, "pooled"), 0.1, {"exact_gradient", *SOLVING, "transfer"}),
    "converted": (converted, 0.1, {"exact_gradient", *SOLVING}),
    "explicit": (trained, 0.1, {"exact_gradient", *SOLVING}),
    "adversarially trained": (partial(trained, weights="attacked"), 0.6, {"exact_gradient", *SOLVING}),
    "ie_skip": (partial(trained, "ie_skip(gamma=0.05)", "ie_skip"), 0.1, {*SOLVING}),
    "implicit": (partial(trained, "implicit", "implicit"), 0.1, set()),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_passes(name):
    make, robust, inapplicable = HONEST[name]
    net = make()
    assert accuracy(net) > 0.85
    result, found = verdicts(net, sample(20), steps=12, many_steps=24, queries=50)
    assert result.passed, str(result)
    figures = dict(zip(found, (check.figures for check in result.checks)))
    assert figures["more_steps"]["robust_24"] > robust, "where an attack breaks everything, nothing could hide"
    assert {name for name, passed in found.items() if passed is None} == inapplicable


@pytest.mark.parametrize(
    ("scheme", "weights"), [("ie_skip(gamma=0.1)", "explicit"), ("implicit_euler(tol=1e-2)", "implicit"), ("rk4", "explicit")]
)
def test_exact_gradients_pass(scheme, weights):
    result, found = verdicts(trained(scheme, weights), sample(12), checks=["finite_differences", "exact_gradient"])
    assert result.passed and found["finite_differences"] is True, str(result)


def test_a_network_that_clamps_its_images_is_honest():
    # Many pixels are exactly 0: half of a central difference there would fall on the flat side of the clamp.
    net = Wrapped(trained(), lambda x: x.clamp(0, 1))
    assert verdicts(net, checks=["finite_differences"])[0].passed


@pytest.mark.parametrize("factor", [1e-4, 4.0])  # logits lie about 4 apart: at ten times that their softmax is saturated
def test_a_moderate_temperature_is_honest(factor):
    net = trained(weights="attacked")  # few images lie at the edge of the ball, where attacks as good as each other differ
    result = verdicts(Wrapped(net, after=lambda logits: factor * logits), sample(24), many_steps=30, queries=50)[0]
    assert result.passed, str(result)


def test_tolerances_that_suffice_pass():
    net = trained("implicit(tol=1e-3)", "implicit")
    (check,) = verdicts(net, sample(12), steps=4, many_steps=5, checks=["tolerance"])[0].checks
    assert check.passed and 0 < check.figures["adversarial_logits_moved"] < 0.005
    net = trained("adaptive(rtol=1e-3,atol=1e-3)")
    (check,) = verdicts(net, sample(6), steps=2, many_steps=3, checks=["tolerance"])[0].checks
    assert check.passed and "robust_own" not in check.figures
