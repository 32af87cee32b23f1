import torch
from torch.nn import functional as F

import odenets
from experiments.benchmarks.counts import count


def test_what_computes_launches_and_what_describes_does_not():
    x = torch.ones(4, 6)
    counts = count(lambda: (x.t().reshape(12, 2)[:, 1] + 1).exp_().view(3, 4).detach())
    assert counts.kernels == 3 and counts.synchronisations == 0  # the copy of reshape, the sum, exp_
    assert counts.operations == {"clone": 1, "add": 1, "exp_": 1}


def test_the_host_waits_for_values_and_for_shapes_that_depend_on_them():
    x, rows = torch.arange(6.0), torch.tensor([1, 3])
    for waiting in (
        lambda: x[0].item(),
        lambda: bool(x.sum() > 3),
        lambda: x.tolist() and float(x[1]),
        lambda: x.nonzero(),
        lambda: x[x > 2],
        lambda: torch.equal(x, x),
        lambda: x.unique(),
        lambda: x.clone().index_put_((x > 2,), x[:3]),
    ):
        assert count(waiting).synchronisations == 1, waiting
    for free in (
        lambda: x[rows],
        lambda: x.clone().index_put_((x > 2,), torch.tensor(1.0)),
        lambda: torch.where(x > 2, x, 0),
        lambda: x.index_select(0, rows),
    ):
        assert count(free).synchronisations == 0, free


def test_gradients_and_transforms_are_counted():
    x = torch.ones(3, requires_grad=True)
    assert count(lambda: x.exp().sum().backward()).kernels >= 4  # exp, sum, the ones, the product
    assert count(lambda: torch.func.jvp(torch.sin, (x.detach(),), (x.detach(),))).operations.keys() >= {"sin", "cos", "mul"}
    assert count(lambda: torch.func.vmap(torch.exp)(x.detach()[:, None])).kernels == 1


def test_a_step_of_the_small_net():
    torch.manual_seed(0)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)

    def step(scheme):
        net = odenets.ode_resnet_small(scheme=scheme)
        return count(lambda: F.cross_entropy(net(x), y).backward())

    explicit, implicit = step("explicit"), step("implicit(tol=1e-2)")
    assert explicit.kernels < 120 and explicit.synchronisations == 0
    assert implicit.kernels > 5 * explicit.kernels and implicit.synchronisations > 0
