"""Arnoldi with restarts: LAPACK, SciPy's ARPACK, samples that finish at different times, failure that is reported."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigs

import odenets
import stability
from experiments.benchmarks.memory import peak_bytes
from stability.linear.arnoldi import basis_size, grow, hessenberg, kept_size, krylov_process
from stability.linear.eigenpairs import _wanted


def linear(M):
    return lambda y: y @ M.T.to(y)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leading(M, k, which):
    values = np.linalg.eigvals(M)
    return values[np.argsort(-(abs(values) if which == "LM" else values.real), kind="stable")[:k]]


def key(values, which):
    return abs(values) if which == "LM" else np.real(values)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(20, 60),
    k=st.integers(1, 6),
    which=st.sampled_from(["LM", "LR"]),
    dimension=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    outlier=st.floats(-3, 3),
)
def test_any_basis_size_finds_what_lapack_finds(n, k, which, dimension, seed, outlier):
    M = random(n, n, seed=seed) / n**0.5 + outlier * torch.eye(n, dtype=torch.float64)[:, :1]
    e = stability.spectrum(linear(M), torch.zeros(1, n, dtype=torch.float64), k, which, dimension=max(dimension, k + 14))
    assert e.converged.all()
    np.testing.assert_allclose(key(e.values[0].numpy(), which), key(leading(M, k, which), which), atol=1e-6)
    distance = abs(e.values[0].numpy()[:, None] - np.linalg.eigvals(M))
    assert distance.min(1).max() < 1e-6


@pytest.mark.parametrize("which", ["LM", "LR"])
def test_against_arpack_on_a_block(which, device):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(in_channels=1).double().to(device)
    y = random(2, 16, 6, 6).to(device)

    def f(y):
        return odenets.stages(net)["blocks.0"].fields[0](0.0, y)

    e = stability.spectrum(f, y, k=6, which=which)
    assert e.converged.all() and (e.steps == 48).all() and e.products > 60  # restarts were needed
    for i in range(2):
        J = stability.jacobian(f, y[i : i + 1])
        for operator in (J, J.T)[i > 0 :]:  # forward products take long
            theirs = eigs(operator, k=6, which=which, v0=random(576).numpy(), ncv=40, return_eigenvectors=False)
            found = e.values[i].numpy()
            np.testing.assert_allclose(np.sort(key(found, which)), np.sort(key(theirs, which)), atol=1e-8)


@pytest.mark.parametrize("which", ["LM", "LR"])
@pytest.mark.parametrize(("n", "copies"), [(60, 2), (300, 2), (300, 3), (240, 4)])
def test_multiple_eigenvalues_come_in_full_number(which, n, copies):
    M = torch.kron(torch.eye(copies, dtype=torch.float64), random(n // copies, n // copies, seed=copies))
    Q = torch.linalg.qr(random(n, n, seed=5))[0]
    for k in (4, 5, 7):  # some of them cut a pair
        e = stability.spectrum(linear(Q @ M @ Q.T), torch.zeros(2, n, dtype=torch.float64), k, which)
        assert e.converged.all()
        np.testing.assert_allclose(key(e.values[1].numpy(), which), key(leading(M, k, which), which), rtol=1e-6)


def field_of_many_difficulties(y):
    """Rows 300 entries long; the last entry of a state sets how far the largest eigenvalue stands out."""
    gap = y[:, -1:].detach()
    rates = torch.linspace(0, 1, 300, dtype=y.dtype, device=y.device)
    return y * rates + 10 * gap * y * (rates == 1)


def test_samples_that_finish_at_different_times_are_those_of_samples_alone():
    y = torch.zeros(5, 300, dtype=torch.float64)
    y[:, -1] = torch.tensor([1.0, 1e-4, 0.1, 1e-3, 3.0])
    together = stability.spectrum(field_of_many_difficulties, y, k=1, which="LR", dimension=30)
    assert together.converged.all()
    products = []
    for i in range(5):
        alone = stability.spectrum(field_of_many_difficulties, y[i : i + 1], k=1, which="LR", dimension=30)
        np.testing.assert_allclose(together.values[i], alone.values[0], rtol=1e-9)
        products.append(alone.products)
    assert len({*products}) > 2 and max(products) == together.products
    expected = 1 + 10 * y[:, -1].numpy()
    np.testing.assert_allclose(together.values[:, 0].real, expected, rtol=1e-9)


def test_a_large_defective_matrix_is_reported_not_returned_as_good():
    # A Jordan block of 400: its eigenvalue moves by 1e-16^(1/400), nine tenths, under rounding, and Krylov spaces see a disc.
    J = torch.diag(torch.ones(399), 1).double()
    for which in ("LM", "LR"):
        e = stability.spectrum(linear(J), torch.zeros(1, 400, dtype=torch.float64), k=3, which=which, max_products=400)
        assert not e.converged.any() and (e.residuals > 1e-8).all()
        # The residual is a true one: each value is an eigenvalue of a matrix that near.
        distance = np.linalg.svd(J.numpy() - complex(e.values[0, 0]) * np.eye(400), compute_uv=False)[-1]
        assert distance <= e.residuals[0, 0] * e.scale[0, 0] * (1 + 1e-9)


def test_restarts_keep_the_arnoldi_relation():
    M, n = random(40, 40), 40
    krylov = krylov_process(lambda v: v @ M.T, M, 2, n, 12)
    grow(krylov, 12)
    for _ in range(3):
        _, _, Z, T, b = (np.stack(part) for part in zip(*[_wanted(h, 2, "LR", 6) for h in hessenberg(krylov)]))
        krylov.restart(*(torch.from_numpy(part) for part in (Z, T, b)))
        grow(krylov, 12)
        V, H = krylov.V, krylov.hessenberg()
        assert (V[:, :12] @ M.T / krylov.unit[:, :, None] - H.mT @ V).abs().max() < 1e-12
        assert (V @ V.mT - torch.eye(13, dtype=torch.float64)).abs().max() < 1e-13


def test_memory_is_told_beforehand_and_kept():
    M, y = random(2000, 2000) / 60, torch.zeros(7, 2000, dtype=torch.float64)
    told = stability.krylov_memory(y, k=2, dimension=20, memory=2_000_000)
    assert told.chunk == 2_000_000 // told.bytes_per_sample < 7 and told.bytes <= 2_000_000
    assert stability.krylov_memory(y, k=2, dimension=20, memory=1).chunk == 1  # one sample at least
    assert stability.krylov_memory(y, k=2, dimension=40).bytes_per_sample > told.bytes_per_sample

    def run():
        stability.spectrum(linear(M), y, k=2, dimension=20, max_products=60, memory=2_000_000)

    used = peak_bytes(run, [M, y], torch.device("cpu"))
    assert used <= told.bytes + 20 * y.nbytes  # and a few states for f itself
    assert used < M.nbytes / 5


@pytest.mark.parametrize("n", [1, 2, 5, 47, 160, 161, 5000])
@pytest.mark.parametrize("k", [1, 6, 30])
def test_sizes_of_bases(n, k):
    k = min(k, n)
    for dimension in (None, 1, 33, 10**6):
        m = basis_size(n, k, dimension)
        assert min(n, k + 4) <= m <= n
        if m < n:  # even sizes, room for what is wanted and for growth
            assert m % 2 == 0 and kept_size(m, k) % 2 == 0 and k <= kept_size(m, k) <= m - 2
