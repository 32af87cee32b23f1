"""Linear solves that start from a guess, and that go on with the rows unsolved alone."""

import pytest
import torch

import odenets
from odenets.solve import krylov
from odenets.solve.krylov import gmres

SIX = torch.arange(6)


@pytest.fixture
def system():
    """Matrices I - A of several sizes of A, so that rows take 2 to 15 products, and right-hand sides."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(12, 40, 40, generator=generator, dtype=torch.float64) / 40**0.5
    matrices = torch.eye(40, dtype=torch.float64) - torch.logspace(-4, -0.3, 12, dtype=torch.float64)[:, None, None] * A
    return matrices, torch.randn(12, 40, generator=generator, dtype=torch.float64)


def _product(matrices):
    return lambda v: (matrices @ v[:, :, None])[:, :, 0]


def _left(matrices, x, b):
    return (_product(matrices)(x) - b).norm(dim=1) / b.norm(dim=1)


@torch.no_grad()
def test_a_guess_counts_up_to_a_factor_and_the_tolerance_stays_that_of_b(system):
    matrices, b = system
    exact = torch.linalg.solve(matrices, b)
    found = gmres(_product(matrices), b, 1e-8, 40, start=torch.linspace(-3, 3e5, 12)[:, None] * exact)
    assert found.evaluations == 1 and (found.iterations == 0).all() and found.converged.all()
    torch.testing.assert_close(found.value, exact, rtol=1e-8, atol=0)
    near = exact * (1 + 1e-3 * torch.randn_like(exact))
    cold, warm = (gmres(_product(matrices), b, 1e-6, 40, start=start) for start in (None, near))
    assert warm.iterations.sum() < 0.7 * cold.iterations.sum() and warm.converged.all()
    assert (_left(matrices, warm.value, b) <= 1.01e-6).all()
    torch.testing.assert_close(_left(matrices, warm.value, b), warm.residual, rtol=1e-3, atol=1e-12)


@torch.no_grad()
def test_a_guess_that_says_nothing_does_no_harm(system):
    matrices, b = system
    for start in (torch.zeros_like(b), 1e-200 * torch.randn_like(b), torch.randn_like(b)):
        found = gmres(_product(matrices), b, 1e-6, 40, start=start)
        assert found.converged.all() and (_left(matrices, found.value, b) <= 1.01e-6).all()
    one = gmres(_product(matrices), b, 1e-6, 1, start=torch.randn_like(b))
    torch.testing.assert_close(one.value, gmres(_product(matrices), b, 1e-6, 1).value, msg="one product buys no guess")
    b[3] = 0
    found = gmres(_product(matrices), b, 1e-6, 40, start=torch.randn_like(b))
    assert (found.value[3] == 0).all() and found.converged.all()


@pytest.mark.parametrize("memory", [30, 3])
@pytest.mark.parametrize("guess", [False, True])
@torch.no_grad()
def test_rows_that_are_solved_leave(system, memory, guess, monkeypatch):
    matrices, b = system
    start, sizes = torch.ones_like(b) if guess else None, []

    def narrowed(rows):
        sizes.append(len(rows))
        return _product(matrices[rows])

    monkeypatch.setattr(krylov, "MANY", 1)
    together = gmres(_product(matrices), b, 1e-6, 60, memory, start=start)
    leaving = gmres(_product(matrices), b, 1e-6, 60, memory, start=start, narrowed=narrowed)
    assert sizes == sorted(sizes, reverse=True) and 1 < len(sizes) and sizes[0] <= 6
    torch.testing.assert_close(leaving.value, together.value, rtol=0, atol=1e-12)
    assert torch.equal(leaving.iterations, together.iterations) and torch.equal(leaving.converged, together.converged)
    torch.testing.assert_close(leaving.residual, together.residual, rtol=1e-6, atol=1e-14)
    assert together.iterations.double().mean() <= leaving.evaluations < 0.9 * together.evaluations


def test_a_gradient_is_the_same_when_samples_leave_its_solve(monkeypatch):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="implicit(tol=1e-8,max_iterations=100)").double()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64) * torch.logspace(-3, 0, 6)[:, None, None, None]
    found, spent = [], []
    for many in (10**9, 1):
        monkeypatch.setattr(krylov, "MANY", many)
        found.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
        passes = [solution for stage in odenets.stages(net).values() for solution in stage.stats.solutions]
        spent.append(sum(solution.evaluations for solution in passes if solution.backward))
    assert spent[1] < spent[0]
    for whole, leaving in zip(*found):
        torch.testing.assert_close(leaving, whole, rtol=1e-6, atol=1e-9)


def _gradient(net, x, *indices):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x, *indices)[:, 0].sum(), x)[0]


def test_the_gradient_of_a_warm_pass_starts_where_the_last_one_ended():
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="implicit(tol=1e-6,max_iterations=100)").double().eval()
    warm, x = odenets.WarmStart(net), torch.rand(6, 1, 8, 8, dtype=torch.float64)

    def spent():
        return sum(stage.stats.backward_iterations for stage in odenets.stages(net).values())

    cold = _gradient(warm, x, SIX)
    first = spent()
    again = _gradient(warm, x, SIX)
    assert spent().sum() < 0.2 * first.sum()
    torch.testing.assert_close(again, cold, rtol=0, atol=1e-5)
    kept = torch.tensor([4, 0, 3])  # the others have fallen, and these stand in another order
    moved = x[kept] + 1e-3
    near = _gradient(warm, moved, kept)
    assert (spent() < first[kept]).all()
    with odenets.tightened(net, 1e-10):
        torch.testing.assert_close(near, _gradient(net, moved), rtol=0, atol=1e-5)
    assert odenets.converged(net, backward=True).all()
