"""The numerical range: the disc of a Jordan block, the hull of a normal matrix, dense against Lanczos."""

import math

import numpy as np
import pytest
import torch

import odenets
import stability


def linear(M):
    return lambda y: y @ M.T.to(y)


def zeros(n, count=1):
    return torch.zeros(count, n, dtype=torch.float64)


DENSE = pytest.mark.parametrize("dense_limit", [512, 0])


@DENSE
def test_a_jordan_block_has_a_disc(dense_limit):
    J = torch.diag(torch.ones(39), 1).double()  # of radius cos(pi / (n + 1)): Haagerup & de la Harpe (1992)
    r = stability.numerical_range(linear(J + 0.3 * torch.eye(40)), zeros(40), angles=7, dense_limit=dense_limit)
    radius = math.cos(math.pi / 41)
    np.testing.assert_allclose(r.support[0], 0.3 * np.cos(r.angles.numpy()) + radius, atol=1e-9)
    np.testing.assert_allclose(abs(r.points[0] - 0.3).numpy(), np.full(7, radius), atol=1e-9)
    assert r.converged.all() and r.exact == (dense_limit > 0) and ("dense" in r.kind) == r.exact


@DENSE
def test_a_normal_matrix_has_the_hull_of_its_spectrum(dense_limit, generator):
    Q, _ = torch.linalg.qr(torch.randn(50, 50, generator=generator, dtype=torch.float64))
    pairs = [torch.tensor([[a, b], [-b, a]]) for a, b in torch.randn(25, 2, generator=generator).double()]
    M = Q @ torch.block_diag(*pairs) @ Q.T
    r = stability.numerical_range(linear(M), zeros(50, 2), angles=[0.0, 1.0, -2.0, 5.0], dense_limit=dense_limit)
    np.testing.assert_allclose((torch.exp(-1j * r.angles) * r.points).real, r.support, atol=1e-9)
    eigenvalues = np.linalg.eigvals(M.numpy())
    expected = (np.exp(-1j * r.angles.numpy())[:, None] * eigenvalues).real.max(1)
    np.testing.assert_allclose(r.support, [expected] * 2, atol=1e-9)
    # Boundary points are corners, but for angle 0, whose edge lies between two conjugate ones.
    assert abs(r.points[0, 1:].numpy()[:, None] - eigenvalues).min(1).max() < 1e-5


def test_lanczos_beyond_one_space_agrees_with_the_dense_block(device):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(in_channels=1).double().to(device)
    y = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)

    def f(y):
        return odenets.stages(net)["blocks.0"].fields[0](0.0, y)

    dense = stability.numerical_range(f, y, angles=8)
    found = stability.numerical_range(f, y, angles=8, dense_limit=100, dimension=30)
    assert found.converged.all() and not found.exact
    np.testing.assert_allclose(found.support, dense.support, atol=1e-9)
    np.testing.assert_allclose(found.points, dense.points, atol=1e-4)  # a point is known to the first order only
    assert (found.outer >= dense.support - 1e-12).all()
    np.testing.assert_allclose(dense.support[:, 0], stability.log_norm(f, y), atol=1e-9)
    # Inner points lie within every outer half-plane.
    inside = (torch.exp(-1j * found.angles)[:, None] * found.points[:, None]).real - dense.support[:, :, None]
    assert inside.max() < 1e-9


def test_points_of_an_unfinished_search_lie_inside_and_are_marked():
    M = torch.randn(200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = stability.numerical_range(linear(M), zeros(200), angles=4)
    found = stability.numerical_range(linear(M), zeros(200), angles=4, dense_limit=0, dimension=8, max_products=16)
    assert not found.converged.any() and (found.support < dense.support).all()
    assert (found.outer > found.support + 0.1).all()  # by residuals of the size of the matrix
    inside = (torch.exp(-1j * dense.angles)[:, None] * found.points[:, None]).real - dense.support[:, :, None]
    assert inside.max() < 0


@pytest.mark.parametrize("angles", [0, -1, [], [float("nan")], [[0.0]], "many", 1j])
def test_bad_angles(angles):
    with pytest.raises(ValueError, match="angles must be"):
        stability.numerical_range(torch.sin, torch.rand(1, 3), angles=angles)
