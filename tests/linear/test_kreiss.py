"""Kreiss constants: what the theorem says of e^{tA} and A^k, normal matrices, and a construction of their own."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import stability
from stability.linear.levels import crossings as crossings_of
from stability.linear.levels import enclosed


def linear(M):
    return lambda y: y @ torch.as_tensor(M).T.to(y)


def zeros(n, count=1):
    return torch.zeros(count, n, dtype=torch.float64)


def stable(n, seed, shift=-0.05, coupling=1.5):
    """Non-normal, with spectral abscissa `shift`."""
    M = np.random.default_rng(seed).normal(size=(n, n))
    M = np.triu(M) * coupling + np.tril(M, -1) * 0.3
    return M - (np.linalg.eigvals(M).real.max() - shift) * np.eye(n)


def kreiss(M, domain="half-plane", threshold=None, dense_limit=512, dimension=100):
    found = stability.kreiss_constant(linear(M), zeros(len(M)), domain, threshold, dimension, dense_limit)
    return float(found.values[0])


def crossings(A, eps, x):
    """Every y with eps a singular value of (x + iy) I - A: imaginary eigenvalues of a Hamiltonian matrix (Byers 1988)."""
    I = np.eye(len(A))
    found = scipy.linalg.eigvals(np.block([[x * I - A.conj().T, -eps * I], [eps * I, A - x * I]]))
    return np.sort(found[abs(found.real) < 1e-6].imag)


def pseudospectral_abscissa(A, eps):
    """By the criss-cross algorithm of Burke, Lewis, Overton (2003), which cannot stop at a local maximum."""
    heights, x = np.linalg.eigvals(A).imag, -np.inf
    for _ in range(30):
        # Along the horizontal line at height y: the rightmost x is the last crossing of i A, turned by 90 degrees.
        reached = max(max(crossings(1j * A, eps, -y), default=-np.inf) for y in heights)
        if reached <= x + 1e-10:
            return reached
        x = reached
        y = crossings(A, eps, x - 1e-9)
        heights = (y[:-1] + y[1:]) / 2
    return x


@pytest.mark.parametrize("seed", range(4))
def test_half_plane_against_pseudospectral_abscissae(seed):
    # K is also the supremum over eps of the pseudospectral abscissa divided by eps.
    A = stable(6, seed)

    def ratio(log_eps):
        return pseudospectral_abscissa(A, np.exp(log_eps)) / np.exp(log_eps)

    grid = np.linspace(np.log(1e-4), np.log(30), 40)
    best = grid[np.argmax([ratio(e) for e in grid])]
    step = grid[1] - grid[0]
    refined = minimize_scalar(lambda e: -ratio(e), bounds=(best - step, best + step), method="bounded")
    assert kreiss(A) == pytest.approx(max(1, -refined.fun), rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_the_kreiss_matrix_theorem(n, seed):
    A = stable(n, seed)
    K, powers = kreiss(A), [np.eye(n)]
    step = scipy.linalg.expm(0.05 * A)
    for _ in range(800):
        powers.append(powers[-1] @ step)
    highest = max(np.linalg.norm(power, 2) for power in powers)
    assert K <= highest * 1.02 and highest <= np.e * n * K  # 1.02: times in between
    B = stable(n, seed, 0.0) / 5
    B *= 0.97 / max(abs(np.linalg.eigvals(B)))
    K, highest, power = kreiss(B, "disc"), 1.0, np.eye(n)
    for _ in range(400):
        power = power @ B
        highest = max(highest, np.linalg.norm(power, 2))
    assert K <= highest * (1 + 1e-9) and highest <= np.e * n * K


def test_normal_matrices_have_one():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    assert kreiss(Q @ np.diag(-np.linspace(0, 3, 12)) @ Q.T) == pytest.approx(1, abs=1e-7)
    assert kreiss(Q - Q.T) == pytest.approx(1, abs=1e-7)
    assert kreiss(Q, "disc") == pytest.approx(1, abs=1e-7)


def test_in_closed_form():
    # Of (0 a; 0 0) with the threshold w, ||(z I - A)^-1|| is the norm of (1/z, a/z^2; 0, 1/z), largest for real z.
    a, w = 3.0, 0.5
    z = w + np.geomspace(1e-3, 1e3, 200001)
    s = ((a**2 + 4 * z**2) ** 0.5 + a) / (2 * z**2)
    expected = ((z - w) * s).max()
    assert kreiss([[0.0, a], [0, 0]], threshold=w) == pytest.approx(expected, rel=1e-8)
    assert kreiss([[0.0, a], [0, 0]], "disc", w) == pytest.approx(expected, rel=1e-8)


def oscillators(couplings, damping):
    """Pairs of equal oscillators, frequencies 1, 2, ..., the second driving the first: every Re lambda is -damping."""
    parts = []
    for place, coupling in enumerate(couplings):
        turn = np.array([[-damping, 1.0 + place], [-1.0 - place, -damping]])
        parts.append(np.block([[turn, coupling * np.eye(2)], [0 * turn, turn]]))
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(4 * len(parts), 4 * len(parts))))[0]
    return Q @ scipy.linalg.block_diag(*parts) @ Q.T


@pytest.mark.parametrize("highest", [0, 4, 8])
def test_one_peak_among_many_of_equal_damping(highest):
    damping, couplings = 0.01, np.full(9, 0.02)
    couplings[highest] = 0.12
    x = np.geomspace(1e-4, 10, 100001)
    s = x + damping
    expected = (x * ((0.12**2 + 4 * s**2) ** 0.5 + 0.12) / (2 * s**2)).max()  # of a pair alone, in closed form
    A = oscillators(couplings, damping)
    found = stability.kreiss_constant(linear(A), zeros(36))
    assert found.values[0] == pytest.approx(expected, rel=1e-6) and abs(found.points[0].imag - 1 - highest) < 1e-3
    assert found.values[0] <= found.bound[0] <= 1.011 * found.values[0]


@pytest.mark.parametrize("disc", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_enclosure_finds_what_it_is_not_told(seed, disc):
    # From no start but the real axis, without a local search; a fine grid is the oracle.
    A = oscillators((6 if disc else 1) * np.random.default_rng(seed).uniform(0.05, 0.5, 4), 0.1)
    A, w = (A / 5, 0.81) if disc else (A, 0.0)

    def smallest(z):
        return np.linalg.svd(np.asarray(z)[..., None, None] * np.eye(16) - A, compute_uv=False)[..., -1]

    def read(d, t):  # in place of a local search
        return np.log(d / smallest((w + d) * np.exp(1j * t) if disc else d + 1j * t)), t

    (value, _), bound = enclosed(A, smallest, w, disc, (1e-3, 1e3), np.zeros(1), read, (0.0, 0j))
    d, t = np.geomspace(0.01, 10, 60)[:, None], np.linspace(0, np.pi if disc else 6, 500)
    highest = np.log(d / smallest((w + d) * np.exp(1j * t) if disc else d + 1j * t)).max()
    assert highest <= bound and 0.1 < value <= bound <= value + 0.0101


@pytest.mark.parametrize("disc", [False, True])
def test_crossings_are_where_the_grid_changes_sides(disc):
    A = stable(6, 2)
    A, position = (A / 4, 1.1) if disc else (A, 0.1)
    t = np.linspace(0, np.pi if disc else 12, 4001)
    z = position * np.exp(1j * t) if disc else position + 1j * t
    every = np.linalg.svd(z[:, None, None] * np.eye(6) - A, compute_uv=False)
    for s in np.quantile(every[:, -1], [0.1, 0.3, 0.6]):
        steps, change = np.nonzero(np.diff(np.sign(every - s), axis=0)), crossings_of(A, s, position, disc)
        assert len(steps[0]) and all(abs(change - (t[i] + t[i + 1]) / 2).min() < 2 * t[1] for i in steps[0])


@pytest.mark.parametrize("s", [0.1, 0.1 + 1e-9, 0.12, 0.4])
def test_crossings_of_a_normal_matrix_beside_every_centre_of_inversion(s):
    # Eigenvalues .9, -.9, .9i, -.9i: with s = .1 the circle is touched at 1, -1 and i, where nothing may be inverted about.
    A = scipy.linalg.block_diag(0.9, -0.9, [[0, 0.9], [-0.9, 0]])
    half = np.arccos((1 + 0.81 - s**2) / 1.8)  # |e^{it} - .9| = s there
    expected = np.array([half, np.pi / 2 - half, np.pi / 2 + half, np.pi - half])
    found = crossings_of(A, s, 1.0, True)
    assert (abs(expected[:, None] - found).min(1) < 1e-7).all() and (abs(expected[:, None] - found).min(0) < 1e-7).all()


def test_thresholds_shift_and_scale():
    A = stable(7, 1)
    assert kreiss(A + 0.7 * np.eye(7), threshold=0.7) == pytest.approx(kreiss(A), rel=1e-7)
    B = A / 4
    assert kreiss(2 * B, "disc", 2.5) == pytest.approx(kreiss(2 * B / 2.5, "disc"), rel=1e-7)
    found = stability.kreiss_constant(linear(A), zeros(7, 2), threshold=torch.tensor([0.0, 1.0]))
    assert found.values[1] < found.values[0] == pytest.approx(kreiss(A), rel=1e-9)


def test_an_eigenvalue_beyond_the_threshold_is_infinite():
    for limit in (512, 0):
        assert kreiss(stable(30, 0, 0.1), dense_limit=limit) == np.inf
        assert kreiss(np.diag([1.01, *np.linspace(-1, 1, 29)]), "disc", dense_limit=limit) == np.inf
    found = stability.kreiss_constant(linear(np.diag([2.0, -1.0])), zeros(2))
    assert found.points[0] == 2


def test_arnoldi_bounds_from_below():
    A = stable(40, 3)
    exact = kreiss(A)
    bounds = [kreiss(A, dense_limit=0, dimension=m) for m in (10, 25, 40)]
    assert bounds[0] <= bounds[1] * (1 + 1e-6) <= bounds[2] * (1 + 2e-6) and bounds[2] == pytest.approx(exact, rel=1e-6)
    found = stability.kreiss_constant(linear(A), zeros(40), dense_limit=0, dimension=10)
    assert not found.exact and found.kind.startswith("lower bound")
    assert stability.kreiss_constant(linear(A), zeros(40)).exact


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "plane"}, "half-plane"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": [0.0, 1, 2]}, "threshold"),
        ({"domain": "disc", "threshold": 0}, "above 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        stability.kreiss_constant(torch.sin, torch.rand(2, 3), **arguments)
