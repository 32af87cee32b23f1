"""An accelerator is looked at every few iterations only; what comes out must not depend on that."""

import pytest
import torch

from odenets.solve.krylov import gmres
from odenets.solve.nonlinear import SOLVERS, Broyden

EVERY = [1, 2, 3, 7, 100]


def _problem(generator, rows=12, size=6):
    M = 0.6 * torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    # Of very different difficulty, so that samples converge one after the other.
    x = torch.logspace(-3, 1, rows, dtype=torch.float64)[:, None] * torch.randn(rows, size, generator=generator).double()
    return (lambda z, x: z - torch.tanh(z) @ M.mT - x), x


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("every", EVERY[1:])
def test_a_frozen_sample_is_the_same_however_seldom_one_looks(name, every, generator):
    residual, x = _problem(generator)
    found = [SOLVERS[name](1e-8, 60, every=k)(residual, torch.zeros_like(x), (x,)) for k in (1, every)]
    assert found[0].converged.all() and len(found[0].iterations.unique()) > 1
    assert torch.equal(*(solution.iterations for solution in found))
    assert torch.equal(*(solution.converged for solution in found))
    assert torch.allclose(*(solution.value for solution in found), rtol=1e-12, atol=1e-14)
    assert torch.allclose(*(solution.residual for solution in found), rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize("every", EVERY)
def test_permuted_and_padded_batches(every, generator):
    residual, x = _problem(generator)
    order = torch.randperm(len(x), generator=generator)
    solver = Broyden(1e-8, 60, every=every)
    whole, permuted = (solver(residual, torch.zeros_like(part), (part,)) for part in (x, x[order]))
    padded = solver(residual, torch.zeros(15, 6).double(), (torch.cat([x, 100 * torch.ones(3, 6).double()]),))
    for other, mine in ((permuted, order), (padded, slice(None))):
        assert torch.equal(other.iterations[: len(x)], whole.iterations[mine])
        assert torch.allclose(other.value[: len(x)], whole.value[mine], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("every", EVERY)
def test_the_best_iterate_comes_back_where_none_converges(every):
    # z = 1 + z^2 has no root: the residual is closest to zero, 3/4, at z = 1/2.
    solution = Broyden(1e-3, 30, every=every)(lambda z: z - 1 - z**2, torch.zeros(4, 1).double())
    assert not solution.converged.any() and (solution.iterations == 30).all()
    r = (solution.value - 1 - solution.value**2).abs()[:, 0]  # relative to 1, the residual at 0
    assert torch.allclose(solution.residual, r) and (r < 0.8).all()


@pytest.mark.parametrize("every", EVERY)
def test_a_sample_at_its_root_does_not_move(every, generator):
    residual, x = _problem(generator)
    roots = Broyden(1e-13, 60)(residual, torch.zeros_like(x), (x,)).value
    guess = torch.cat([roots[:5], torch.zeros_like(x[5:])])
    solution = Broyden(1e-6, 60, every=every)(residual, guess, (x,), scale=torch.ones(len(x)).double())
    assert torch.equal(solution.value[:5], guess[:5]) and not solution.iterations[:5].any() and solution.converged.all()


@pytest.mark.parametrize("every", EVERY)
def test_values_beyond_the_range_of_squares_and_nan(every, generator):
    residual, x = _problem(generator)
    x = x.float() * 1e-25
    solution = Broyden(1e-4, 60, every=every)(lambda z, x: z - 0.3 * z.flip(1) - x, torch.zeros_like(x), (x,))
    assert solution.converged.all()
    with pytest.raises(ValueError, match="NaN or Inf"):
        Broyden(every=every)(lambda z: z * float("nan"), torch.ones(2, 3))


def test_both_forms_of_the_rank_updates_go_the_same_way_beyond_a_restart(generator):
    residual, x = _problem(generator)
    found = [Broyden(1e-10, 60, every=k, memory=5)(residual, torch.zeros_like(x), (x,)) for k in (1, 4)]
    assert torch.equal(*(solution.iterations for solution in found)) and int(found[0].iterations.max()) > 5
    assert torch.allclose(*(solution.value for solution in found), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("memory", [30, 5])
@pytest.mark.parametrize("every", EVERY)
def test_gmres_stops_each_row_where_it_would_have_stopped(every, memory, dtype, generator):
    M = torch.eye(12, dtype=dtype) + 0.2 * torch.randn(12, 12, generator=generator, dtype=dtype)
    b = torch.logspace(-5, 3, 6, dtype=torch.float64)[:, None] * torch.randn(6, 12, generator=generator, dtype=dtype)
    b[0] = torch.linalg.eig(M)[1][:, 0].to(dtype) if dtype.is_complex else 0  # done at once, or nothing to do
    found = [gmres(lambda v: v @ M.mT, b, 1e-6, 40, memory, every=k) for k in (1, every)]
    assert found[0].converged.all() and torch.equal(*(solution.iterations for solution in found))
    assert torch.allclose(*(solution.value for solution in found), rtol=1e-9, atol=1e-12)
    r = (found[1].value @ M.mT - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-300)
    assert torch.allclose(r, found[1].residual, rtol=1e-3, atol=1e-12) and (r <= 1e-6).all()
