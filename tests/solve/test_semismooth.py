"""Semismooth Newton: on monotone fields it converges wherever it starts and however stiff they are."""

import math
from types import SimpleNamespace

import pytest
import torch
from certified import SHAPE, field

from odenets.solve import semismooth
from odenets.solve.nonlinear import SOLVERS
from odenets.solve.semismooth import ConvexNewton, Semismooth, conjugate_gradients


def equation(f, h):
    return lambda z, y: z - y - h * f(0.0, z)


def solved(solver, f, h, y, tau):
    """Solution to an absolute tolerance, and the residual computed apart."""
    solution = solver(equation(f, h), y, (y,), floor=tau)
    return solution, equation(f, h)(solution.value, y).flatten(1).norm(dim=1)


@pytest.mark.parametrize("stiffness", [1.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize(
    ("spec", "solver", "p"),
    [
        ("gradient_flow", ConvexNewton(1e-300, 300), 2),
        ("monotone", Semismooth(1e-300, 300), 2),
        ("skew", Semismooth(1e-300, 300), 2),
        ("inf_monotone", Semismooth(1e-300, 300, p=math.inf), math.inf),
    ],
)
def test_every_sample_is_solved_to_an_absolute_tolerance(spec, solver, p, stiffness):
    if spec == "inf_monotone" and stiffness > 100:
        stiffness = 200.0  # beyond, the factor that is proven is too near to 1 for a test
    f = field(spec, gain=2.0)
    h = stiffness / f.constants(p, SHAPE).lipschitz
    y = 3 * torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution, residual = solved(solver, f, h, y, 1e-9)
    assert solution.converged.all() and (residual <= 1e-9 * (1 + 1e-6)).all()
    assert solution.iterations.max() < 250


def test_where_other_solvers_do_not_arrive():
    f = field("gradient_flow", gain=2.0)
    h = 1e3 / f.constants(2, SHAPE).lipschitz
    y = 3 * torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("broyden", "fixed_point", "anderson"):
        solution, _ = solved(SOLVERS[name](1e-300, 60), f, h, y, 1e-9)
        assert not solution.converged.all(), name
    assert solved(ConvexNewton(1e-300, 60), f, h, y, 1e-9)[0].converged.all()


def test_the_safeguard_alone_converges(monkeypatch):
    """With Newton directions that are useless, -r still brings every sample home: its factor is the one that is proven."""
    monkeypatch.setattr(semismooth, "gmres", lambda product, b, tol, cap: SimpleNamespace(value=torch.zeros_like(b)))
    for spec, p in (("gradient_flow", 2), ("monotone", 2), ("inf_monotone", math.inf)):
        f = field(spec)
        h = 2.0 / f.constants(p, SHAPE).lipschitz
        y = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        solution, _ = solved(Semismooth(1e-300, 3000, p=p), f, h, y, 1e-6)
        assert solution.converged.all(), spec


def test_a_sample_is_solved_alike_in_every_batch():
    f = field("monotone", gain=2.0)
    y = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[3] *= 1e3
    solver, h = Semismooth(1e-300, 500), 30 / f.constants(2, SHAPE).lipschitz
    whole = solved(solver, f, h, y, 1e-9)[0].value
    alone = torch.cat([solved(solver, f, h, sample, 1e-9)[0].value for sample in y.split(1)])
    assert (whole - alone).flatten(1).norm(dim=1).max() <= 2e-9  # the map z -> y of the equation expands


def test_conjugate_gradients_against_a_dense_solve():
    generator = torch.Generator().manual_seed(0)
    K = torch.randn(3, 8, 12, generator=generator, dtype=torch.float64)
    A = torch.eye(12, dtype=torch.float64) + K.mT @ K
    b = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    b[1] = 0
    x = conjugate_gradients(lambda v: (A @ v[:, :, None])[:, :, 0], b, 1e-12, 100)
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-12)
