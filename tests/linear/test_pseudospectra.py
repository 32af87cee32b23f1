"""Pseudospectra: LAPACK on the whole grid, closed forms, published figures of the Grcar matrix, Arnoldi's bound."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import odenets
import stability


def linear(M):
    return lambda y: y @ M.T.to(y)


def zeros(n, count=1):
    return torch.zeros(count, n, dtype=torch.float64)


def grcar(n):
    ones = [torch.diag(torch.ones(n - d), d) for d in range(4)]
    return (sum(ones) - torch.diag(torch.ones(n - 1), -1)).double()


def smallest(M, points):
    shifted = np.asarray(points)[..., None, None] * np.eye(len(M)) - np.asarray(M)
    return np.linalg.svd(shifted, compute_uv=False)[..., -1]


def test_conv_block_against_lapack(device):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(in_channels=1).double().to(device)
    y = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)

    def f(y):
        return odenets.stages(net)["blocks.0"].fields[0](0.0, y)

    p = stability.pseudospectrum(f, y, resolution=9)
    J = stability.dense_jacobians(f, y).detach().cpu()
    assert p.points.shape == p.smallest.shape == (2, 9, 9) and p.exact and "dense" in p.kind
    for i in range(2):
        np.testing.assert_allclose(p.smallest[i], smallest(J[i], p.points[i].numpy()), rtol=1e-9, atol=1e-14)
        eigenvalues = np.linalg.eigvals(J[i].numpy())
        assert abs(p.eigenvalues[i].numpy()[:, None] - eigenvalues).min(1).max() < 1e-10
        assert p.points[i].real.min() < eigenvalues.real.min() and p.points[i].imag.max() > eigenvalues.imag.max()
    assert not torch.equal(p.points[0], p.points[1])  # each sample has a grid of its own
    bound = stability.pseudospectrum(f, y, points=p.points[0], dimension=50, dense_limit=100)
    assert not bound.exact and "upper bound" in bound.kind
    assert (bound.smallest[0] >= p.smallest[0] - 1e-12).all()
    assert (bound.smallest[0, [0, -1]] < 1.5 * p.smallest[0, [0, -1]]).all()  # and sharp outside of the spectrum


def test_a_normal_matrix_keeps_its_distance(generator):
    M = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    M = M - M.T
    z = np.array([0.3 + 1j, -2.0, 5j])
    p = stability.pseudospectrum(linear(M), zeros(30, 2), points=z)
    distance = abs(z[:, None] - np.linalg.eigvals(M.numpy())).min(1)
    np.testing.assert_allclose(p.smallest, [distance] * 2, rtol=1e-9)


def test_grcar_as_the_theory_of_toeplitz_matrices_has_it():
    # Where the symbol winds round z, the resolvent grows exponentially with the order; elsewhere it stays. Reichel &
    # Trefethen (1992), Linear Algebra Appl. 162-164. The symbol is -t + 1 + 1/t + 1/t^2 + 1/t^3 on the unit circle.
    t = np.exp(2j * np.pi * np.arange(4000) / 4000)
    symbol, z = -t + 1 + 1 / t + 1 / t**2 + 1 / t**3, np.array([2.5, 2.0 + 0.5j, 0.5 + 2.5j, 4.0, -2.0, 3.5j])
    windings = np.rint(np.diff(np.unwrap(np.angle(symbol[:, None] - z), axis=0), axis=0).sum(0) / (2 * np.pi))
    assert (windings[:3] != 0).all() and (windings[3:] == 0).all()
    half, whole = (stability.pseudospectrum(linear(grcar(n)), zeros(n), points=z).smallest[0] for n in (30, 60))
    np.testing.assert_allclose(half, smallest(grcar(30), z), rtol=1e-9)
    decay = whole / half
    assert (decay[:3] < 0.1).all() and (decay[3:] > 0.8).all()


def test_eigenvalues_and_defective_matrices_have_no_distance():
    M = torch.diag(torch.ones(29), 1).double() + 0.5 * torch.eye(30)
    p = stability.pseudospectrum(linear(M), zeros(30), points=np.array([0.5, 0.5 + 1e-3j, 1.0, 2.0]))
    assert p.smallest[0, 0] < 1e-15 and p.smallest[0, 1] < 1e-15
    # Of z I minus a Jordan block, r = |z| < 1, the smallest singular value is about r^n (1 - r^2).
    assert p.smallest[0, 2] == pytest.approx(0.5**30 * 0.75, rel=1e-6)
    zero = stability.pseudospectrum(lambda y: 0 * y, zeros(5), resolution=3)
    np.testing.assert_allclose(zero.smallest, abs(zero.points), atol=1e-15)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), dimension=st.integers(2, 25))
@example(seed=0, dimension=25)
def test_arnoldi_bounds_from_above_and_more_steps_sharpen(seed, dimension):
    generator = torch.Generator().manual_seed(seed)
    M = torch.triu(torch.randn(25, 25, generator=generator, dtype=torch.float64))
    z = torch.complex(*torch.randn(2, 20, generator=generator, dtype=torch.float64)) * 3
    exact = stability.pseudospectrum(linear(M), zeros(25), points=z).smallest
    bound = stability.pseudospectrum(linear(M), zeros(25), points=z, dimension=dimension, dense_limit=0)
    sharper = stability.pseudospectrum(linear(M), zeros(25), points=z, dimension=dimension + 1, dense_limit=0)
    assert (bound.smallest >= sharper.smallest - 1e-9).all() and (sharper.smallest >= exact - 1e-9).all()
    if dimension == 25:
        np.testing.assert_allclose(bound.smallest, exact, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [np.nan]}, "points must be finite"),
        ({"points": []}, "points must be finite"),
        ({"resolution": 1}, "resolution must be"),
        ({"dimension": 0, "dense_limit": 0}, "dimension must be"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        stability.pseudospectrum(torch.sin, torch.rand(1, 3), **arguments)
