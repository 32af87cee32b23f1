"""Leading singular values and the bound of the norm: against LAPACK, spread over magnitudes, multiple and vanishing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odenets
import stability


def linear(M):
    return lambda y: y @ M.T.to(y)


def states(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(values, seed=0):
    U, _ = torch.linalg.qr(states(len(values), len(values), seed=seed))
    V, _ = torch.linalg.qr(states(len(values), len(values), seed=seed + 1))
    return U @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ V


@pytest.mark.parametrize("dimension", [None, 24])
def test_conv_block_against_lapack(dimension, device):
    torch.manual_seed(0)
    field, y = odenets.ode_resnet_small(in_channels=1).double().to(device), states(3, 16, 4, 4).to(device)
    block = odenets.stages(field)["blocks.0"].fields[0]
    s = stability.singular_values(lambda y: block(0.0, y), y, k=5, dimension=dimension)
    expected = torch.linalg.svdvals(stability.dense_jacobians(lambda y: block(0.0, y), y).detach()).cpu()
    assert s.converged.all() and s.values.device.type == "cpu"
    np.testing.assert_allclose(s.values, expected[:, :5], rtol=1e-10)
    assert (s.norm_bound >= expected[:, 0]).all()
    np.testing.assert_allclose(stability.spectral_norm(lambda y: block(0.0, y), y), expected[:, 0], rtol=1e-10)


def test_small_values_do_not_suffer_from_the_square():
    values = [1, 1e-2, 1e-4, 1e-6, *[0] * 196]
    s = stability.singular_values(linear(with_singular_values(values)), torch.zeros(1, 200, dtype=torch.float64), k=4)
    np.testing.assert_allclose(s.values[0], values[:4], rtol=1e-8)  # by the square, 1e-6 would be right to four digits
    assert s.residuals.max() < 1e-8


def test_multiple_and_vanishing_values():
    y = torch.zeros(2, 200, dtype=torch.float64)
    s = stability.singular_values(lambda y: -3 * y, y, k=4)
    np.testing.assert_allclose(s.values, np.full((2, 4), 3), rtol=1e-12)
    turned = stability.singular_values(linear(3 * with_singular_values([1.0] * 200)), y, k=4)
    np.testing.assert_allclose(turned.values, np.full((2, 4), 3), rtol=1e-12)
    assert turned.residuals.max() < 1e-12
    zero = stability.singular_values(lambda y: 0 * y, y, k=2)
    assert (zero.values == 0).all() and zero.converged.all() and (zero.norm_bound == 0).all()
    rank_one = stability.singular_values(linear(with_singular_values([2.0] + [0] * 199)), y, k=3)
    np.testing.assert_allclose(rank_one.values, [[2, 0, 0]] * 2, atol=1e-12)
    assert rank_one.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [12, 90, 150, 300])
def test_skew_matrices_have_every_value_twice(n, dtype):
    # The values of a skew matrix are |Im lambda|, in pairs, and a Krylov space holds one of each.
    for seed in range(3):
        A = states(n, n, seed=seed) / n**0.5
        A = A - A.T
        s = stability.singular_values(linear(A), torch.zeros(1, n, dtype=dtype), k=6)
        assert s.converged.all()
        np.testing.assert_allclose(s.values[0], torch.linalg.svdvals(A)[:6], rtol=1e-3 if dtype == torch.float32 else 1e-8)


def test_values_of_any_multiplicity():
    values = [4.0] * 5 + [3.0] * 2 + [2.0] * 3 + np.linspace(1, 0.1, 190).tolist()
    s = stability.singular_values(linear(with_singular_values(values)), torch.zeros(1, 200, dtype=torch.float64), k=9)
    assert s.converged.all()
    np.testing.assert_allclose(s.values[0], values[:9], rtol=1e-10)
    # Too few products to look for copies: the norm stands, the others are not vouched for.
    s = stability.singular_values(
        linear(with_singular_values(values)), torch.zeros(1, 200, dtype=torch.float64), k=3, max_products=25
    )
    np.testing.assert_allclose(s.values[0, 0], 4)
    assert s.converged[0].tolist() == [True, False, False]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), decay=st.floats(0.0, 3.0))
def test_values_and_bound_enclose_the_norm(seed, decay):
    M = with_singular_values((1 + np.arange(180.0)) ** -decay, seed)
    s = stability.singular_values(linear(M), torch.zeros(1, 180, dtype=torch.float64), k=1, tol=1e-2, dimension=20)
    assert s.values[0, 0] <= 1 + 1e-12 <= s.norm_bound[0] < 1.5
    assert s.residuals[0, 0] >= abs(s.values[0, :1] - torch.linalg.svdvals(M)).min() - 1e-12


def test_the_bound_is_that_of_the_theorem():
    # Of n = 180 after 20 steps, but for a probability of 1e-9: (ln(1.648 * 180^0.5 * 1e9) / 39)^2 = 0.37294 of the square.
    s = stability.singular_values(linear(torch.diag(torch.tensor([2.0, *[1e-3] * 179]))), torch.zeros(1, 180).double(), k=1)
    assert s.norm_bound[0] == pytest.approx(2 / (1 - 0.37294) ** 0.5, rel=1e-4)


def test_the_bound_is_certain_where_the_space_is_full():
    M = with_singular_values([5.0, 4, 3, 2])
    s = stability.singular_values(linear(M), torch.zeros(1, 4, dtype=torch.float64), k=4)
    np.testing.assert_allclose(s.values, [[5, 4, 3, 2]], rtol=1e-12)
    assert s.norm_bound[0] == pytest.approx(5, rel=1e-12)


def test_failure_is_reported():
    M = with_singular_values(np.linspace(1, 0.99, 300))
    s = stability.singular_values(linear(M), torch.zeros(1, 300, dtype=torch.float64), k=3, dimension=10, max_products=20)
    assert not s.converged.all() and s.norm_bound[0] >= 1


@pytest.mark.parametrize("k", [0, 4, True, 2.0])
def test_bad_input(k):
    with pytest.raises(ValueError, match="from 1 to the 3"):
        stability.singular_values(torch.sin, torch.rand(1, 3), k=k)
