import pytest
import torch
from torch import nn

import odenets

SOLVING = [name for name in odenets.list_schemes() if "backward_tol" in odenets.get_scheme(name).parameters]


def _field(n=12):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n)).double()
    return lambda t, y: layers(y)


def _gradient(spec, y, weights, field=None):
    """The gradient in y of a sum over samples with these weights, and the `StageStats`."""
    stage = odenets.ODEStage([field or _field()], spec)
    y = y.clone().requires_grad_()
    ((stage(y).square().sum(1)) * weights).sum().backward()
    return y.grad, stage.stats


@pytest.fixture
def y(generator):
    return torch.randn(6, 12, generator=generator, dtype=torch.float64)


def test_every_scheme_that_solves_equations_has_them():
    assert {"implicit_euler", "gauss4", "bdf2", "theta", "rosenbrock_euler", "ros2"} <= set(SOLVING)
    assert "exponential_euler" not in SOLVING and "explicit_euler" not in SOLVING


@pytest.mark.parametrize("name", SOLVING)
def test_specs_and_what_tightened_makes_of_them(name):
    scheme = odenets.get_scheme(f"{name}(backward_stop=batch,backward_tol=0.03)")
    assert str(scheme) == f"{name}(backward_tol=0.03,backward_stop=batch)" and scheme.approximate_gradient
    assert scheme.tightened(1e-6, 200) == odenets.get_scheme(f"{name}(tol=1e-6,max_iterations=200)")
    assert not odenets.get_scheme(name).approximate_gradient
    assert not odenets.get_scheme(f"{name}(backward_tol=1e-5)").approximate_gradient
    for wrong in ("backward_tol=-1", "backward_tol=inf", "backward_stop=never"):
        with pytest.raises(odenets.InputError, match="backward"):
            odenets.get_scheme(f"{name}({wrong})")


@pytest.mark.parametrize("name", SOLVING)
def test_a_looser_backward_solve_is_cheaper_and_the_value_the_same(name, y):
    ones = torch.ones(len(y), dtype=y.dtype)
    exact, tight = _gradient(f"{name}(tol=1e-8,max_iterations=100)", y, ones)
    loose, cheap = _gradient(f"{name}(tol=1e-8,max_iterations=100,backward_tol=0.1)", y, ones)
    assert cheap.backward_iterations.sum() < tight.backward_iterations.sum() and cheap.backward_converged.all()
    assert torch.equal(cheap.iterations, tight.iterations)
    error = (loose - exact).norm() / exact.norm()
    assert 1e-7 < error < 0.3


def test_a_batch_stops_together(y):
    """Large gradients decide: the small ones are left where they are then, and say so by their residuals."""
    weights = torch.tensor([1.0, 1.0, 1.0, 1e-6, 1e-6, 0.0], dtype=y.dtype)
    each, alone = _gradient("implicit(tol=1e-8,backward_tol=1e-3)", y, weights)
    joint, together = _gradient("implicit(tol=1e-8,backward_tol=1e-3,backward_stop=batch)", y, weights)
    assert together.backward_converged.all() and alone.backward_converged.all()
    exact, _ = _gradient("implicit(tol=1e-10)", y, weights)
    assert (joint - exact).norm() < 0.01 * exact.norm() and joint[5].abs().max() == 0
    products = [max(int(s.iterations.max()) for s in stats.solutions if s.backward) for stats in (alone, together)]
    assert products[1] <= products[0]
    # Whatever the unit: what decides is the share of the whole.
    tiny, _ = _gradient("implicit(tol=1e-8,backward_tol=1e-3,backward_stop=batch)", y, 1e-200 * weights)
    torch.testing.assert_close(tiny * 1e200, joint)


def test_the_default_keeps_samples_apart(y):
    ones = torch.ones(len(y), dtype=y.dtype)
    whole, _ = _gradient("implicit(tol=1e-3)", y, ones)
    part, _ = _gradient("implicit(tol=1e-3)", y[:2], ones[:2])
    torch.testing.assert_close(part, whole[:2])
