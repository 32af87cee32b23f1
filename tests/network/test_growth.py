"""Growth and Lyapunov exponents against dense matrices: powers of R(hM), singular values of products."""

import numpy as np
import pytest
import torch
from torch import nn

import odenets
import stability

ONE_STEP = [
    "explicit",
    "heun",
    "rk4",
    "implicit(tol=1e-12)",
    "trapezoid(tol=1e-12)",
    "sdirk2(tol=1e-12)",
    "gauss4(tol=1e-12)",
    "rosenbrock_euler(tol=1e-12)",
    "ie_skip(gamma=0.05,iterations=2)",
    "exponential_euler(tol=1e-12)",
]


def matrix(n=6, seed=0, scale=0.4):
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_matrix(scheme, M, h):
    """R(hM), of M's eigenvectors; ie_skip's formula holds for normal M alone, so there the step itself is asked."""
    if scheme.startswith("ie_skip"):
        I = torch.eye(len(M), dtype=M.dtype)
        return torch.autograd.functional.jacobian(
            lambda y: odenets.get_scheme(scheme).step(lambda t, y: y @ M.T, 0.0, y[None], h)[0], I[0]
        ).numpy()
    values, W = np.linalg.eig(M.numpy())
    return (W @ np.diag(odenets.get_scheme(scheme).amplification(h * values)) @ np.linalg.inv(W)).real


@pytest.mark.parametrize("scheme", ONE_STEP)
def test_growth_under_a_linear_field_is_that_of_powers_of_R(scheme):
    matrices = [matrix(seed=seed) for seed in (0, 1)]
    stage = odenets.ODEStage([lambda t, y, M=M: y @ M.T for M in matrices], scheme, interval=0.8, substeps=2)
    x, d = vectors(3, 6), vectors(3, 6, seed=2)
    found = stability.growth(stage, x, d)
    assert found.places == ((-1, -1), (0, -1), (0, 0), (0, 1), (1, -1))
    expected, v = [np.ones(3)] * 2, d.numpy()
    for M in matrices:
        v = v @ np.linalg.matrix_power(step_matrix(scheme, M, 0.4), 2).T
        expected.append(np.linalg.norm(v, axis=1) / np.linalg.norm(d, axis=1))
    expected.append(expected[-1])
    for curve in (found.measured, found.linear):
        np.testing.assert_allclose(curve, expected, rtol=1e-8)
    np.testing.assert_allclose(found.predicted[1:-1], expected[1:-1], rtol=1e-8)
    assert found.predicted[[0, -1]].isnan().all()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return odenets.ode_resnet_small(scheme="implicit(tol=1e-8,max_iterations=200)").double().eval()


def test_growth_along_a_network(net):
    x, d = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), vectors(3, 1, 8, 8)
    small = stability.growth(net, x, 1e-6 * d)
    assert small.places == ((-1, -1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (2, -1))
    torch.testing.assert_close(small.measured, small.linear, rtol=1e-4, atol=0)
    with torch.no_grad():
        ends = (net(x + 1e-6 * d) - net(x)).norm(dim=1) / (1e-6 * d).flatten(1).norm(dim=1)
    torch.testing.assert_close(small.measured[-1], ends)
    assert (small.measured[0] == 1).all() and (small.predicted[1] == small.measured[1]).all()
    # One block from the same start: R(hJ) with J at the start of the step is near the step's own Jacobian, not equal to it.
    ratio = small.predicted[2] / small.linear[2]
    assert (abs(ratio - 1) < 0.2).all() and (abs(ratio - 1) > 1e-6).all()
    large = stability.growth(net, x, d)
    assert (abs(large.measured / large.linear - 1)[2:] > 0.01).any(), "a large perturbation leaves the linear regime"
    alone = stability.growth(net, x[1:2], d[1:2])
    for name in ("measured", "linear", "predicted"):
        torch.testing.assert_close(getattr(alone, name), getattr(large, name)[:, 1:2], rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("scheme", ["ie_skip", "rosenbrock_euler(tol=1e-10)"])
def test_schemes_that_differentiate_inside_a_step(scheme):
    # The backward pass of GroupNorm, which ie_skip takes inside its step, has no forward mode.
    torch.manual_seed(0)
    stage = odenets.ODEStage(odenets.get_field("residual").build(odenets.fields.basic_layers, 4).double(), scheme)
    y, d = vectors(2, 4, 2, 2), vectors(2, 4, 2, 2, seed=2)
    found = stability.growth(stage, y, 1e-6 * d)
    torch.testing.assert_close(found.measured, found.linear, rtol=1e-3, atol=0)
    assert (abs(found.predicted[2] / found.linear[2] - 1) < 0.5).all()
    exponents = stability.lyapunov_exponents(stage, y, k=1, tol=1e-4)
    np.testing.assert_allclose(exponents.values[:, 0], stability.spectral_norm(stage, y).log(), atol=1e-3)


def test_an_adaptive_scheme_has_no_R():
    M = matrix()
    found = stability.growth(odenets.ODEStage(lambda t, y: y @ M.T, "adaptive"), vectors(2, 6), vectors(2, 6, seed=2))
    assert found.predicted.isnan().all() and torch.allclose(found.measured, found.linear, rtol=0.05)


@pytest.mark.parametrize("scheme", ["ab2", "lm_resnet"])
def test_multistep_schemes_have_no_R_of_one_step(scheme):
    M = matrix()
    found = stability.growth(odenets.ODEStage([lambda t, y: y @ M.T] * 3, scheme), vectors(2, 6), vectors(2, 6, seed=2))
    assert found.predicted.isnan().all() and torch.allclose(found.measured, found.linear)


def test_exponents_of_a_linear_map_are_exact():
    Q = torch.linalg.qr(matrix(8, scale=1.0))[0]
    M = Q @ torch.diag(torch.tensor([2.0, -1.5, 1.2, 1, -0.5, 0.3, 0.2, 0.1], dtype=torch.float64)) @ Q.T
    found = stability.lyapunov_exponents([lambda y: y @ M.T] * 7, vectors(2, 8), k=3, time=7.0)
    np.testing.assert_allclose(found.values, np.log([[2, 1.5, 1.2]] * 2), atol=1e-9)
    assert found.converged.all()


@pytest.mark.parametrize(("n", "k", "count"), [(12, 3, 1), (12, 12, 2), (40, 4, 5)])
def test_exponents_of_different_maps_are_singular_values_of_their_product(n, k, count):
    matrices = [matrix(n, seed, 1.0) for seed in range(count)]
    found = stability.lyapunov_exponents([lambda y, M=M: y @ M.T for M in matrices], vectors(1, n), k=k, time=2.0)
    product = np.linalg.multi_dot([M.numpy() for M in matrices[::-1]]) if count > 1 else matrices[0].numpy()
    np.testing.assert_allclose(found.values[0], np.log(np.linalg.svd(product, compute_uv=False)[:k]) / 2, atol=1e-5)
    assert found.converged.all()


def test_many_strong_steps_neither_overflow_nor_hide_a_direction():
    M = torch.diag(torch.tensor([1e3, 10.0, 1e-3]).double())
    found = stability.lyapunov_exponents([lambda y: y @ M] * 4, torch.zeros(1, 3).double(), k=2, time=4.0)
    np.testing.assert_allclose(found.values[0], np.log([1e3, 10]), rtol=1e-9)
    M = M.float()
    found = stability.lyapunov_exponents([lambda y: y @ M] * 30, torch.zeros(1, 3), k=1, time=30.0)
    np.testing.assert_allclose(found.values[0], [np.log(1e3)], rtol=1e-5)


def test_exponents_through_implicit_steps_and_end_to_end(net):
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = stability.lyapunov_exponents(net, x, k=1, tol=1e-4)
    J = torch.autograd.functional.jacobian(net, x).reshape(10, 64)
    np.testing.assert_allclose(found.values[0], torch.linalg.svdvals(J)[:1].log(), atol=1e-3)
    assert found.converged.all()
    first = stability.places(net, x)[0]
    found = stability.lyapunov_exponents(first.step, first.state, k=1, tol=1e-3)
    np.testing.assert_allclose(found.values[:, 0], stability.spectral_norm(first.step, first.state).log(), atol=1e-3)


def test_what_has_not_converged_says_so():
    Q = torch.linalg.qr(matrix(200, scale=1.0))[0]
    M = Q @ torch.diag(torch.linspace(1, 0.99, 200).double()) @ Q.T
    found = stability.lyapunov_exponents(lambda y: y @ M, vectors(1, 200), k=2, max_rounds=2)
    assert not found.converged.any() and found.rounds == 2


X = torch.zeros(1, 4, dtype=torch.float64)
STAGE = odenets.ODEStage(nn.Identity())
MIXING = [lambda t, y: y + y.mean(0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability.growth(STAGE, X, X), "not zero"),
        (lambda: stability.growth(STAGE, X, X[:, :2]), r"\(1, 4\), got \(1, 2\)"),
        (lambda: stability.growth(nn.Identity(), X, X + 1), "no ODEStage"),
        (lambda: stability.growth(STAGE, X / 0, X + 1), "NaN"),
        (lambda: stability.growth(STAGE, X, X / 0), "finite"),
        (lambda: stability.growth(odenets.ODEStage(MIXING), torch.cat([X, X]), vectors(2, 4)), "mixes the samples"),
        (lambda: stability.lyapunov_exponents(torch.sin, X, k=5), "from 1 to 4"),
        (lambda: stability.lyapunov_exponents(lambda y: y[:, :2], X, k=3), "from 1 to 2"),
        (lambda: stability.lyapunov_exponents(torch.sin, X, k=1, time=0), "time"),
        (lambda: stability.lyapunov_exponents(torch.log, X, k=1), "NaN or Inf"),
        (lambda: stability.lyapunov_exponents(lambda y: y + y.mean(0), torch.cat([X, X]), k=1), "mixes the samples"),
        (lambda: stability.lyapunov_exponents(nn.BatchNorm1d(4).double(), torch.rand(3, 4).double(), k=1), "training mode"),
        (lambda: stability.lyapunov_exponents(lambda y: y.float(), X, k=1), "float64 to torch.float32"),
        (lambda: stability.lyapunov_exponents(lambda y: y.detach(), X, k=1), "as far as autograd can see"),
        (lambda: stability.lyapunov_exponents(torch.sin, X[:0], k=1), "no entries"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
