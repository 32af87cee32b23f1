import pytest
import torch

import odenets
from odenets.errors import InputError
from odenets.schemes.solving import METHODS
from odenets.solve.krylov import gmres
from odenets.solve.nonlinear import SOLVERS, Broyden, FixedPoint
from odenets.solve.products import jacobian_products

CONTRACTIVE = ["broyden", "anderson", "newton"]


def _problem(generator, device, rows=12, size=6):
    """z = M tanh(z) + x, one strongly expanding field among mild ones; unique roots by contraction of M tanh."""
    M = 0.5 * torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    M, x = M.to(device), x.to(device)
    return (lambda z, x: z - torch.tanh(z) @ M.mT - x), x, M


@pytest.mark.parametrize("name", SOLVERS)
def test_reaches_its_tolerance_and_reports_it(name, device, generator):
    residual, x, _ = _problem(generator, device)
    solution = SOLVERS[name](tol=1e-10, max_iterations=100)(residual, torch.zeros_like(x), (x,)).on(device)
    r0, r = residual(torch.zeros_like(x), x).norm(dim=1), residual(solution.value, x).norm(dim=1)
    assert solution.converged.all() and (r <= 1e-10 * r0).all()
    assert torch.allclose(solution.residual, r / r0, rtol=1e-6, atol=1e-16) and (solution.iterations > 0).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_converged_samples_are_left_alone(name, device, generator):
    """A sample that starts at its root costs nothing and does not move, whatever its neighbours do."""
    residual, x, _ = _problem(generator, device)
    roots = SOLVERS["newton"](tol=1e-14, max_iterations=50)(residual, torch.zeros_like(x), (x,)).value
    guess = torch.cat([roots[:5], torch.zeros_like(x[5:])])
    solution = SOLVERS[name](tol=1e-6, max_iterations=100)(
        residual, guess, (x,), scale=torch.ones(len(x), device=device).double()
    )
    assert (solution.iterations[:5] == 0).all() and torch.equal(solution.value[:5], guess[:5])
    assert solution.evaluations < 1 + solution.iterations.max()


@pytest.mark.parametrize("name", SOLVERS)
def test_the_batch_does_not_matter(name, device, generator):
    residual, x, _ = _problem(generator, device)
    solver = SOLVERS[name](tol=1e-8, max_iterations=100)
    whole = solver(residual, torch.zeros_like(x), (x,))
    for index in range(len(x)):
        alone = solver(residual, torch.zeros_like(x[:1]), (x[index : index + 1],))
        assert torch.allclose(alone.value[0], whole.value[index], atol=1e-10)
        assert alone.iterations[0] == whole.iterations[index]


def test_failure_is_counted_and_the_best_iterate_returned(device):
    # z = 1 + z^2 has no real root: the residual z - 1 - z^2 is closest to zero, 3/4, at z = 1/2.
    solution = Broyden(tol=1e-3, max_iterations=30)(
        lambda z: z - 1 - z**2, torch.zeros(4, 1, dtype=torch.float64, device=device)
    )
    assert not solution.converged.any() and (solution.residual > 0.7).all() and (solution.iterations == 30).all()
    assert (solution.residual <= 1).all(), "never worse than the guess"


def test_one_failing_sample_does_not_spoil_the_others(device):
    shift = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64, device=device)
    solution = Broyden(tol=1e-8)(lambda z, c: z - c - z**2, torch.zeros_like(shift), (shift,))
    assert solution.converged.tolist() == [False, True, False]
    assert abs(solution.value[1].item() - (1 - 5**0.5) / 2) < 1e-7


def test_on_failure_raise_names_samples_and_remedies(device):
    with pytest.raises(RuntimeError, match="2 of 2 samples.*tol=0.001 in 5 iterations.*substeps"):
        Broyden(max_iterations=5, on_failure="raise")(lambda z: z - 1 - z**2, torch.zeros(2, 1, device=device))


def test_nan_at_the_start_is_refused(device):
    with pytest.raises(ValueError, match="NaN or Inf"):
        Broyden()(lambda z: z * float("nan"), torch.ones(2, 3, device=device))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tol": 0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"on_failure": "ignore"}, "on_failure"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FixedPoint(**settings)


def test_fixed_point_diverges_where_theory_says_and_broyden_does_not(device):
    steep = lambda z: z + 3 * z - 1  # noqa: E731  g(z) = 1 - 3z: |g'| = 3
    zeros = torch.zeros(2, 1, dtype=torch.float64, device=device)
    assert not FixedPoint()(steep, zeros).converged.any() and Broyden()(steep, zeros).converged.all()


def test_broyden_solves_linear_systems_in_twice_their_size(device, generator):
    # Gay (1979): Broyden's method ends within 2n steps on an n-dimensional linear system.
    M = torch.eye(4, dtype=torch.float64) + 0.4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(device)
    solution = Broyden(tol=1e-9, max_iterations=9)(lambda z, b: z @ M.to(device).mT - b, torch.zeros_like(b), (b,))
    assert solution.converged.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gmres_against_a_dense_solve(dtype, device, generator):
    M = torch.eye(8, dtype=dtype) + 0.5 * torch.randn(8, 8, generator=generator, dtype=dtype)
    b = torch.randn(5, 8, generator=generator, dtype=dtype)
    solution = gmres(lambda v: v @ M.to(device).mT, b.to(device), 1e-12, 20)
    assert solution.converged.all() and (solution.iterations <= 8).all()
    assert torch.allclose(solution.value.cpu(), torch.linalg.solve(M, b[:, :, None])[:, :, 0], atol=1e-10)


def test_gmres_minimises_the_residual_over_the_krylov_space(device, generator):
    M = torch.randn(7, 7, generator=generator, dtype=torch.float64) + 2 * torch.eye(7)
    b = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    for steps in (1, 2, 4):
        krylov = torch.stack([torch.linalg.matrix_power(M, k) @ b[0] for k in range(steps)], 1)
        best = (b[0] - M @ krylov @ torch.linalg.lstsq(M @ krylov, b[0][:, None])[0][:, 0]).norm()
        solution = gmres(lambda v: v @ M.to(device).mT, b.to(device), 1e-14, steps)
        assert abs(solution.residual.item() * b.norm() - best) < 1e-10


def test_gmres_gets_past_a_step_without_progress(device):
    """On a cyclic shift GMRES stagnates until the last step, and minimal-residual recurrences on residuals break down."""
    shift = torch.roll(torch.eye(5, dtype=torch.float64), 1, 0).to(device)
    b = torch.eye(5, dtype=torch.float64, device=device)[:1]
    solution = gmres(lambda v: v @ shift.mT, b, 1e-12, 10)
    assert solution.converged.all() and solution.iterations.item() == 5


def test_gmres_of_a_zero_right_hand_side_is_zero(device):
    solution = gmres(lambda v: 2 * v, torch.zeros(2, 3, device=device), 1e-6, 5)
    assert not solution.value.any() and solution.converged.all() and (solution.iterations == 0).all()


def test_jacobian_products_against_jacrev(device, generator):
    W = torch.randn(4, 4, generator=generator, dtype=torch.float64).to(device)
    z, v = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64).to(device)
    dense = torch.func.jacrev(lambda z: torch.tanh(z @ W))(z)[0, :, 0, :]
    product, transposed = jacobian_products(lambda z: torch.tanh(z @ W), z)
    assert torch.allclose(product(v)[0], dense @ v[0]) and torch.allclose(transposed(v)[0], dense.mT @ v[0])


def test_a_field_of_zero_is_solved_at_once(device):
    solution = Broyden()(lambda z: z, torch.zeros(2, 3, device=device))
    assert solution.converged.all() and not solution.residual.any() and not solution.iterations.any()


@pytest.mark.parametrize("name", METHODS)
def test_an_absolute_tolerance_stands_beside_the_relative_one(name, device, generator):
    residual, x, _ = _problem(generator, device)
    x = x * torch.logspace(-6, 2, len(x), dtype=torch.float64, device=device)[:, None]
    solver = METHODS[name](tol=1e-300, max_iterations=100, atol=1e-8)
    solution = solver(residual, torch.zeros_like(x), (x,)).on(device)
    norm = residual(solution.value, x).norm(dim=1)
    assert solution.converged.all() and (norm <= 1e-8).all()
    assert torch.allclose(solution.norm, norm, rtol=1e-6, atol=1e-15)
    # Relative to samples that begin a hundred million times apart it is another demand for each.
    assert solution.residual.max() > 1e4 * solution.residual[solution.residual > 0].min()
    with pytest.raises(InputError, match="atol must be finite and at least 0, got -1"):
        METHODS[name](atol=-1)


def test_a_stage_tells_the_residual_itself(generator):
    y = torch.randn(5, 3, generator=generator, dtype=torch.float64) * torch.logspace(-4, 3, 5, dtype=torch.float64)[:, None]
    stage = odenets.ODEStage(lambda t, y: -2 * torch.tanh(y) - y, "implicit(tol=1e-12,atol=1e-3,solver=semismooth)")
    z = stage(y)
    norm = (z - y + 2 * torch.tanh(z) + z).norm(dim=1)
    torch.testing.assert_close(stage.stats.absolute_residual, norm.float(), rtol=1e-5, atol=1e-9)
    assert stage.stats.converged.all() and (norm <= 1e-3 * (1 + 1e-6)).all() and norm.max() > 1e-9
    # What judges is held to its relative tolerance: a loose absolute one would let everything pass.
    loose = odenets.ODEStage(lambda t, y: -y, "implicit(atol=1e3)")
    loose(y)
    assert loose.stats.converged.all() and loose.stats.absolute_residual.max() > 1
    with odenets.tightened(loose, 1e-6):
        assert "atol" not in str(loose.scheme)
        loose(y)
        assert (loose.stats.residual <= 1e-6).all()
    linear = odenets.ODEStage(lambda t, y: -y, "rosenbrock_euler")
    linear(y)
    assert linear.stats.absolute_residual.isnan().all()  # a linear system tells what is left of it relatively
