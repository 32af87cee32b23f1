"""States and images in any memory layout give the numbers of contiguous ones."""

from functools import partial

import pytest
import torch
from torch import nn

import odenets
import stability
from stability.network.penalty import log_norm_estimate

NAMES = odenets.list_schemes()
LAYOUTS = {
    "channels_last": lambda y: y.to(memory_format=torch.channels_last),
    "expanded": lambda y: y[:1].expand(3, -1, -1, -1),
    "sliced": lambda y: y.permute(3, 2, 1, 0).repeat_interleave(2, 0).permute(3, 2, 1, 0)[:, :, :, ::2],
}


@pytest.fixture(params=LAYOUTS)
def pair(request):
    """(states in an unusual layout, the same ones contiguous)."""
    y = LAYOUTS[request.param](torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert not y.is_contiguous()
    return y, y.contiguous()


def _field():
    torch.manual_seed(0)
    return nn.Sequential(nn.GroupNorm(1, 2), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)).double()


def _same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def _dense_and_krylov(figure, name, **settings):
    return lambda f, y: torch.stack([getattr(figure(f, y, dense_limit=limit, **settings), name) for limit in (8, 64)])


MAPS = {
    "spectrum": lambda f, y: stability.spectrum(f, y, k=3).values,
    "ritz_values": lambda f, y: stability.ritz_values(f, y, 8),
    "log_norm": stability.log_norm,
    "spectral_norm": stability.spectral_norm,
    "singular_values": lambda f, y: stability.singular_values(f, y, k=2).values,
    "numerical_range": _dense_and_krylov(stability.numerical_range, "support", angles=4),
    "pseudospectrum": _dense_and_krylov(stability.pseudospectrum, "smallest", points=[0.5, 1j], dimension=20),
    "kreiss_constant": lambda f, y: stability.kreiss_constant(f, y[:1], threshold=2.0).values,
    "departure_from_normality": _dense_and_krylov(stability.departure_from_normality, "commutator"),
    "lyapunov_exponents": lambda f, y: stability.lyapunov_exponents(f, y, 2).values,
    "jacobian": lambda f, y: torch.from_numpy(stability.jacobian(f, y[1:2]) @ torch.eye(32, dtype=y.dtype).numpy()),
    "transposed": lambda f, y: torch.from_numpy(stability.jacobian(f, y[1:2]).T @ torch.eye(32, dtype=y.dtype).numpy()),
    "dense_jacobians": stability.dense_jacobians,
    "log_norm_estimate": lambda f, y: log_norm_estimate(f, y).detach(),
}


@pytest.mark.parametrize("name", MAPS)
def test_figures_of_a_map(name, pair):
    _same(*(MAPS[name](_field(), y) for y in pair))


def test_the_jacobian_is_in_the_order_of_the_logical_entries(pair):
    f, y = _field(), pair[0][1:2]
    expected = torch.func.jacrev(f)(y).reshape(32, 32).detach()
    _same(torch.from_numpy(stability.jacobian(f, y) @ torch.eye(32, dtype=y.dtype).numpy()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme(name, pair):
    found = []
    stage = odenets.ODEStage([_field(), _field()], f"{name}(tol=1e-11)" if odenets.get_scheme(name).implicit else name)
    stage.fields = nn.ModuleList(_Autonomous(f) for f in stage.fields)
    for y in pair:
        leaf = y.detach().requires_grad_()
        value = stage(leaf)
        warm, indices = odenets.WarmStart(stage), torch.arange(len(y))
        warm(y, indices)
        found.append((value, *torch.autograd.grad(value.square().sum(), leaf), warm(1.01 * y, indices)))
    for one, other in zip(*found):
        _same(one, other)


class _Autonomous(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, t, y):
        return 0.3 * self.f(y)


class _Net(nn.Module):
    def __init__(self, scheme):
        super().__init__()
        self.stage = odenets.ODEStage([_Autonomous(_field())] * 2, scheme)
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()

    def forward(self, x):
        return self.head(self.stage(x))


NETWORK = {
    "growth": lambda net, x: stability.growth(net, x, 1e-3 * (1 + x)).measured,
    "linear": lambda net, x: stability.growth(net, x, 1e-3 * (1 + x)).linear,
    "dynamics": lambda net, x: torch.stack([block.log_norm for block in stability.dynamics(net, x[:1], 8)]),
    "explain": lambda net, x: torch.tensor(stability.explain(net, x, dimension=8).lipschitz),
    "stage_exponents": lambda net, x: stability.stage_exponents(net, x)[1].values,
    "log_norm_penalty": lambda net, x: stability.log_norm_penalty(net, x, target=-10.0).detach(),
}


@pytest.mark.parametrize("name", NETWORK)
def test_figures_along_a_network(name, pair):
    _same(*(NETWORK[name](_Net("implicit(tol=1e-10)" if name == "linear" else "explicit").eval(), x) for x in pair))


@pytest.mark.parametrize("threat", [stability.Linf(0.1), stability.L2(0.5)])
@pytest.mark.parametrize(
    "attack",
    [
        stability.fgsm,
        partial(stability.pgd, steps=5),
        partial(stability.apgd, steps=5),
        partial(stability.square, queries=20),
        partial(stability.noise, draws=5),
    ],
)
def test_attacks_and_judge(attack, threat, pair):
    net, y = _Net("explicit").eval(), torch.tensor([0, 1, 2])
    _same(*(attack(net, x, y, threat) for x in pair))
    found = [stability.worst_case(net, x, y, threat, [lambda net, x, y: attack(net, x, y, threat)]) for x in pair]
    assert torch.equal(found[0].robust, found[1].robust) and found[0].question == found[1].question
