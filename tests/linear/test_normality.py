"""Departure from normality: closed forms, inequalities of the literature, and the stochastic estimate against them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stability


def linear(M):
    return lambda y: y @ M.T.to(y)


def zeros(n, count=1):
    return torch.zeros(count, n, dtype=torch.float64)


def random(n, seed=0):
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_triangular_matrix_departs_by_its_strict_triangle():
    M = torch.triu(random(12))
    d = stability.departure_from_normality(linear(M), zeros(12, 2))
    np.testing.assert_allclose(d.henrici, [torch.triu(M, 1).norm()] * 2, rtol=1e-12)
    np.testing.assert_allclose(d.commutator, [(M @ M.T - M.T @ M).norm()] * 2, rtol=1e-12)
    np.testing.assert_allclose(d.frobenius, [M.norm()] * 2, rtol=1e-12)
    assert d.exact and "dense" in d.kind and (d.commutator_error == 0).all() and (d.frobenius_error == 0).all()


def test_a_jordan_block_in_closed_form():
    # J J^T - J^T J has the entries 1 and -1 at its two corners.
    d = stability.departure_from_normality(linear(torch.diag(torch.ones(9), 1)), zeros(10))
    assert (d.henrici[0], d.commutator[0], d.frobenius[0]) == pytest.approx((3, 2**0.5, 3))


@pytest.mark.parametrize("M", [random(20) - random(20).T, random(20) + random(20).T, torch.linalg.qr(random(20))[0]])
def test_normal_matrices_do_not_depart(M):
    d = stability.departure_from_normality(linear(M), zeros(20))
    assert d.henrici[0] < 1e-13 * d.frobenius[0] * 20 and d.commutator[0] < 1e-13 * d.frobenius[0] ** 2
    estimate = stability.departure_from_normality(linear(M), zeros(20), dense_limit=0)
    assert estimate.commutator[0] < 1e-12


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 15), seed=st.integers(0, 10**6), mix=st.floats(0, 1))
def test_inequalities_between_the_measures(n, seed, mix):
    M = torch.triu(random(n, seed)) * mix + random(n, seed + 1) * (1 - mix)
    d = stability.departure_from_normality(linear(M), zeros(n))
    squared, size = d.henrici[0] ** 2, d.frobenius[0]
    assert squared <= ((n**3 - n) / 12) ** 0.5 * d.commutator[0] * (1 + 1e-9) + 1e-12  # Henrici (1962)
    assert squared >= size**2 - (size**4 - d.commutator[0] ** 2 / 2).clamp_min(0).sqrt() - 1e-9  # Kress et al. (1974)
    eigenvalues = np.linalg.eigvals(M.numpy())
    assert squared == pytest.approx(float(size) ** 2 - (abs(eigenvalues) ** 2).sum(), abs=1e-9)


def test_the_estimate_has_the_error_it_states():
    M, y = random(40), zeros(40)
    exact = stability.departure_from_normality(linear(M), y)
    generator, misses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        d = stability.departure_from_normality(linear(M), y, probes=50, generator=generator, dense_limit=0)
        assert d.henrici is None and not d.exact and "estimate" in d.kind
        misses.append(
            [(d.commutator - exact.commutator) / d.commutator_error, (d.frobenius - exact.frobenius) / d.frobenius_error]
        )
    misses = torch.tensor(misses)
    assert misses.mean(0).abs().max() < 0.5 and 0.7 < misses.std(0).min() and misses.std(0).max() < 1.4


def test_a_sample_does_not_depend_on_its_batch_and_probes_come_of_the_generator(generator):
    def f(y):
        return torch.tanh(y @ random(40).T.to(y))

    y = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    together = stability.departure_from_normality(f, y, dense_limit=0)
    alone = stability.departure_from_normality(f, y[1:2], dense_limit=0)
    np.testing.assert_allclose(together.commutator[1], alone.commutator[0], rtol=1e-12)
    other = stability.departure_from_normality(f, y[1:2], dense_limit=0, generator=torch.Generator().manual_seed(5))
    assert other.commutator[0] != alone.commutator[0]


@pytest.mark.parametrize("probes", [1, 0, True, 2.5])
def test_bad_probes(probes):
    with pytest.raises(ValueError, match="probes must be"):
        stability.departure_from_normality(torch.sin, torch.rand(1, 3), probes=probes)
