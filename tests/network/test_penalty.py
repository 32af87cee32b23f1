"""The log-norm penalty: against LAPACK, its gradient against finite differences, and a field trained with it."""

import pytest
import torch
from torch import nn

import odenets
import stability
from stability.network.penalty import log_norm_estimate


class Linear(nn.Module):
    def __init__(self, M):
        super().__init__()
        self.M = nn.Parameter(M)

    def forward(self, t, y):
        return y @ self.M.T


def matrix(n=12, seed=0):
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_complete_krylov_space_gives_mu_and_its_gradient():
    field, y = Linear(matrix()), torch.zeros(1, 12, dtype=torch.float64)
    mu = torch.linalg.eigvalsh((field.M + field.M.T) / 2)[-1]
    estimate = log_norm_estimate(lambda y: field(0.0, y), y, iterations=12)
    torch.testing.assert_close(estimate[0], mu)
    expected, found = (torch.autograd.grad(value.sum(), field.M)[0] for value in (mu, estimate))
    torch.testing.assert_close(found, expected)


def test_few_iterations_give_a_lower_bound_that_grows():
    field, y = Linear(matrix(40)), torch.zeros(2, 40, dtype=torch.float64)
    values = [log_norm_estimate(lambda y: field(0.0, y), y, m)[0].item() for m in (1, 3, 6, 12, 40)]
    assert values == sorted(values) and values[-1] == pytest.approx(stability.log_norm(lambda y: field(0.0, y), y)[0].item())
    assert values[2] > 0.6 * values[-1]


@pytest.mark.parametrize(
    ("M", "mu"), [(torch.zeros(5, 5), 0.0), (-2 * torch.eye(5), -2.0), (torch.diag(torch.ones(4), 1), 0.8660254)]
)
def test_invariant_subspaces(M, mu):
    f = Linear(M.double())
    assert log_norm_estimate(lambda y: f(0.0, y), torch.ones(1, 5).double(), 5).item() == pytest.approx(mu)


@pytest.mark.no_pretend
def test_on_a_network_it_is_the_mean_of_the_hinges_and_reaches_every_block(device):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small().double().to(device)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    found = stability.places(net, x)
    penalty = stability.log_norm_penalty(net, x, target=0.2, iterations=200)
    exact = torch.stack([stability.log_norm(place.slope, place.state) for place in found])
    assert penalty.item() == pytest.approx((exact - 0.2).clamp_min(0).mean().item(), rel=1e-6)
    penalty.backward()
    kernels = [p for stage in odenets.stages(net).values() for p in stage.fields.parameters() if p.dim() > 1]
    assert len(kernels) == 8 and all(p.grad.abs().max() > 0 for p in kernels)
    assert stability.log_norm_penalty(net, x, target=1e3).item() == 0


def test_its_gradient_is_that_of_the_converged_value():
    torch.manual_seed(0)
    stage = odenets.ODEStage(odenets.get_field("residual").build(odenets.fields.basic_layers, 2)).double()
    y = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = stage.fields[0].layers[5].weight
    (gradient,) = torch.autograd.grad(stability.log_norm_penalty(stage, y, -1.0, 18), weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-6 * direction)
            values.append(stability.log_norm_penalty(stage, y, -1.0, 18).item())
            weight.sub_(sign * 1e-6 * direction)
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_training_with_it_makes_a_field_contract():
    field = Linear(matrix(8))
    stage, y = odenets.ODEStage(field), torch.zeros(1, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(stage.parameters(), 0.2)
    for _ in range(300):
        optimizer.zero_grad()
        stability.log_norm_penalty(stage, y, target=-0.1, iterations=8).backward()
        optimizer.step()
    assert stability.log_norm(lambda y: field(0.0, y), y).item() < 0.05


def test_directions_of_one_batch_serve_the_next():
    torch.manual_seed(0)
    net, directions = odenets.ode_resnet_small().double(), {}
    first, second = torch.rand(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stability.log_norm_penalty(net, first, directions=directions)
    assert directions.keys() == {(place.stage, place.block) for place in stability.places(net, first)}
    before = {key: value.clone() for key, value in directions.items()}
    warm = stability.log_norm_penalty(net, second, -10.0, 3, directions=directions)
    cold = stability.log_norm_penalty(net, second, -10.0, 3)
    exact = torch.stack([stability.log_norm(place.slope, place.state) for place in stability.places(net, second)]).mean() + 10
    assert cold + 0.1 < warm < exact < warm + 0.25
    assert all(not torch.equal(before[key], value) and not value.requires_grad for key, value in directions.items())


def test_samples_are_the_first_ones():
    torch.manual_seed(0)
    net = odenets.ode_resnet_small().double()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(stability.log_norm_penalty(net, x, samples=2), stability.log_norm_penalty(net, x[:2]))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_search_that_rounding_spoils_still_gives_a_lower_bound(offset):
    """In float32 the differences of a field with a large constant part have few digits, or none."""
    field, y = Linear(matrix(30).float()), torch.ones(1, 30)
    mu = torch.linalg.eigvalsh((field.M + field.M.T) / 2)[-1].item()
    found = log_norm_estimate(lambda y: field(0.0, y) + offset, y, 12).item()
    assert found <= mu * (1 + 1e-5) and (offset == 1e6 or found > 0.95 * mu)


def test_a_sample_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    field = odenets.get_field("residual").build(odenets.fields.basic_layers, 4).double()
    y = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    together, alone = (log_norm_estimate(lambda s: field(0.0, s), part) for part in (y, y[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_norm_estimate(torch.sin, torch.zeros(1, 3), 0), "iterations must be at least 1, got 0"),
        (lambda: stability.log_norm_penalty(odenets.ode_resnet_small(), torch.zeros(1, 1, 8, 8), samples=0), "samples must be"),
        (lambda: stability.log_norm_penalty(nn.Linear(2, 2), torch.zeros(1, 2)), "Linear has no ODEStage"),
        (lambda: stability.log_norm_penalty(odenets.ode_resnet_small(), torch.full((1, 1, 8, 8), float("nan"))), "NaN or Inf"),
        (lambda: stability.log_norm_penalty(odenets.ode_resnet_small(), torch.zeros(0, 1, 8, 8)), "no entries"),
        (
            lambda: stability.places(odenets.ODEStage(nn.BatchNorm2d(2)), torch.zeros(1, 2, 3, 3)),
            "BatchNorm2d in training mode",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
