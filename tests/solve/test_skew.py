"""Equations of linear skew fields: solved to their tolerance, and differentiated exactly, as often as wanted."""

import copy

import pytest
import torch
from torch.nn import functional as F

import odenets
from odenets.solve.log import Record
from odenets.solve.skew import SkewOperator, skew_root, solve_skew


def problem(gain=1.0, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    field = odenets.get_field("skew").build(odenets.fields.basic_layers, 4).to(dtype)
    with torch.no_grad():
        field.conv.weight.mul_(gain)
    return field, torch.randn(5, 4, 3, 3, dtype=dtype)


def dense(field, y):
    return torch.func.jacrev(lambda v: field(0.0, v))(torch.zeros_like(y[:1])).reshape(36, 36)


@pytest.mark.parametrize("gain", [0.1, 1.0, 30.0])
def test_a_solve_meets_its_tolerance_in_every_row_and_says_so(gain):
    field, y = problem(gain)
    y[0] *= 1e-9
    y[1] = 0
    found = solve_skew(lambda v: 0.5 * field(0.0, v), y, None, 1e-8, 200, None, 0.0)
    left = (0.5 * field(0.0, y + found.value) - found.value).flatten(1).norm(dim=1)
    start = (0.5 * field(0.0, y)).flatten(1).norm(dim=1)
    assert found.converged.all() and (left <= 1e-8 * start * (1 + 1e-6)).all()
    torch.testing.assert_close(found.norm, left, rtol=1e-3, atol=1e-14)
    exact = torch.linalg.solve(torch.eye(36, dtype=y.dtype) - 0.5 * dense(field, y), y.flatten(1).mT).mT
    torch.testing.assert_close((y + found.value).flatten(1), exact, rtol=1e-6, atol=1e-6 * float(y.abs().max()))
    cut = solve_skew(lambda v: 0.5 * field(0.0, v), y, None, 1e-8, 1, None, 0.0)
    assert not cut.converged.all() and (cut.iterations <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gain", [1.0, 30.0])
def test_a_tight_tolerance_is_met_by_the_true_residual(dtype, gain):
    field, y = problem(gain, dtype)
    stage = odenets.ODEStage([field], "implicit_midpoint(tol=1e-6,max_iterations=300)")
    with torch.no_grad():
        value = stage(y)
    assert stage.stats.converged.all()
    turned = torch.linalg.solve(torch.eye(36).double() - 0.5 * dense(field, y).double(), y.flatten(1).mT.double()).mT
    torch.testing.assert_close(value.flatten(1).double(), 2 * turned - y.flatten(1).double(), rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(value.flatten(1).norm(dim=1), y.flatten(1).norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scheme", ["implicit_midpoint", "implicit_euler", "norsett3", "splitting(composition=strang)"])
def test_gradients_are_those_of_the_generic_path(scheme):
    name, _, rest = scheme.partition("(")
    found = []
    for solver in ("broyden", "newton"):  # another solver than the default takes the way of all fields
        field, y = problem(2.0)
        field = field if name != "splitting" else odenets.get_field("monotone").build(odenets.fields.basic_layers, 4).double()
        stage = odenets.ODEStage(
            [field], f"{name}(tol=1e-12,max_iterations=200,solver={solver}{',' + rest[:-1] if rest else ''})"
        )
        if found:
            stage.load_state_dict(found[0][0])
        y.requires_grad_()
        out = stage(y)
        weights = [*stage.parameters()]
        first = torch.autograd.grad(out.sin().sum(), [y, *weights], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [y, *weights])
        assert stage.stats.converged.all() and stage.stats.backward_converged.all()
        found.append((copy.deepcopy(stage.state_dict()), [out, *first, *second]))
    for ours, generic in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(ours, generic, rtol=1e-7, atol=1e-8)


def test_derivatives_of_first_and_second_order_by_differences():
    torch.manual_seed(0)
    y, K = (
        torch.randn(2, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 4, dtype=torch.float64, requires_grad=True),
    )
    settings = odenets.get_scheme("implicit_midpoint(tol=1e-13,max_iterations=50)")

    def turned(y, K):
        operator = SkewOperator(K - K.mT, lambda S, v: v @ S.mT)
        return skew_root(operator, y, 0.7, settings, torch.zeros(2, dtype=y.dtype), Record())

    assert torch.autograd.gradcheck(turned, (y, K)) and torch.autograd.gradgradcheck(turned, (y, K))


def test_what_is_not_solved_is_recorded_or_raised():
    field, y = problem(30.0)
    stage = odenets.ODEStage([field], "implicit_midpoint(tol=1e-10,max_iterations=2)")
    stage(y)
    assert not stage.stats.converged.any() and (stage.stats.iterations == 2).all()
    odenets.set_scheme(stage, "implicit_midpoint(tol=1e-10,max_iterations=2,on_failure=raise)")
    with pytest.raises(RuntimeError, match="did not reach tol=1e-10 in 2 iterations"):
        stage(y)
    with pytest.raises(odenets.InputError, match="not finite at the start of an implicit step"):
        stage(y / 0)


def test_warm_starts_begin_where_they_ended():
    field, y = problem(2.0)
    stage = odenets.ODEStage([field], "implicit_midpoint(tol=1e-6)")
    warm = odenets.WarmStart(stage)
    with torch.no_grad():
        cold, again = (warm(y, torch.arange(5)) if k == 0 else warm(y, torch.arange(5)) for k in range(2))
    torch.testing.assert_close(cold, again, rtol=1e-5, atol=1e-5)
    assert (stage.stats.iterations == 0).all()


def test_a_kernel_costs_two_convolutions_an_iteration(monkeypatch):
    field, y = problem()
    calls = []
    monkeypatch.setattr(F, "conv2d", lambda *args, real=F.conv2d, **kw: calls.append(1) or real(*args, **kw))
    stage = odenets.ODEStage([field], "implicit_midpoint(tol=0.01)")
    with torch.no_grad():
        stage(y)
    assert len(calls) <= 1 + 2 * int(stage.stats.iterations.max())
