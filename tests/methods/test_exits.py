"""Exits from stability regions against closed forms, and against R written anew and sampled as finely as a bound demands."""

import numpy as np
import pytest
from numpy.polynomial import Chebyshev, Polynomial

import odenets
import stability
from odenets import Scheme


def ray(slope):
    """The direction of -1 + i slope."""
    return (-1 + 1j * slope) / abs(-1 + 1j * slope)


def chebyshev(name, stages, damping):
    """R of rkc1 or rkc2 from T_s(x) = cos(s arccos x), and the end of its real interval or somewhat more."""
    T, w0 = Chebyshev.basis(stages), 1 + damping / stages**2
    value, first, second = T(w0), T.deriv()(w0), T.deriv(2)(w0)
    w1, a, b = (
        (value / first, 0, 1 / value) if name == "rkc1" else (first / second, 1 - second / first**2 * value, second / first**2)
    )
    return lambda z: a + b * np.cos(stages * np.arccos(w0 + w1 * z)), 2.1 * w0 / w1


def reference_exit(R, direction, end, degree):
    """Where |R|^2 leaves 1 on [0, end], from samples.

    In the angle phi, r = end sin^2(phi/2), |R|^2 is an even trigonometric polynomial of degree 2 * degree, and by Bernstein's
    inequality exceeds what two neighbouring samples show by degree^2 spacing^2 max|R|^2 / 4 at most.
    """
    phi = np.linspace(0, np.pi, 1_000_001)
    radii = end * np.sin(phi / 2) ** 2
    out = abs(R(radii * direction)) > 1 + 1e-10
    k = out.argmax()
    assert out[k] and (degree * np.pi * 1e-6) ** 2 / 4 < 1e-8
    low, high = radii[k - 1], radii[k]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if abs(R(middle * direction)) <= 1 else (low, middle)
    return low


@pytest.mark.parametrize(
    ("name", "stages", "damping"),
    [("rkc1", 10, 0.05), ("rkc1", 30, 0.05), ("rkc1", 50, 0.01), ("rkc1", 30, 0.0), ("rkc2", 30, 2 / 13), ("rkc2", 50, 2 / 13)],
)
def test_windows_of_chebyshev_methods_narrower_than_a_sampling(name, stages, damping):
    R, end = chebyshev(name, stages, damping)
    spec = f"{name}(stages={stages},damping={damping})"
    for slope in (1.3e-3, 3e-3, 6.812920690579613e-3, 3e-2, 0.2):
        found = stability.largest_stable_step(spec, [ray(slope)]).step
        assert found == pytest.approx(reference_exit(R, ray(slope), end, stages), rel=1e-8), slope


def test_the_window_of_the_issue():
    # |R| exceeds 1 from 1380.05 on, and is below 1 again until 1511.95.
    slope = np.geomspace(1e-3, 0.2, 25)[8]
    assert stability.largest_stable_step("rkc1(stages=30)", [-1 + 1j * slope]).step == pytest.approx(1380.0485, abs=1e-3)


@pytest.mark.parametrize("stages", [20, 21, 50])
def test_a_polynomial_that_touches_one_again_and_again_ends_where_it_passes(stages):
    r = stability.region(f"rkc1(stages={stages},damping=0.0)")
    assert r.real_interval == pytest.approx(2 * stages**2, rel=1e-10) and r.imaginary_interval == 0


def polynomial_exits(numerator, denominator=1):
    """The radii where |P| = |Q|, of polynomials P and Q in the radius: roots of a companion matrix."""

    def square(p):
        p = Polynomial(p) if not isinstance(p, Polynomial) else p
        return Polynomial((p * Polynomial(np.conj(p.coef))).coef.real)

    roots = (square(numerator) - square(denominator)).roots()
    return np.sort(roots.real[(abs(roots.imag) < 1e-9 * abs(roots)) & (roots.real > 1e-4)])


DIRECTIONS = [ray(slope) for slope in (0, 0.02, 0.3, 1, 3, 20)]


@pytest.mark.parametrize("name", ["rk4", "ssprk104", "dopri5", "ssprk33"])
def test_explicit_methods_end_at_a_root_of_a_polynomial(name):
    P, _ = odenets.get_scheme(name).tableau.stability_polynomials
    for direction in DIRECTIONS:
        expected = polynomial_exits(Polynomial(P * direction ** np.arange(len(P))))[0]
        assert stability.largest_stable_step(name, [direction]).step == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("gamma", "iterations"), [(0.1, 1), (0.02, 3), (0.05, 5)])
def test_ie_skip_ends_at_a_root_of_a_polynomial_in_the_radius(gamma, iterations):
    for direction in DIRECTIONS:
        z, conjugate = Polynomial([0, direction]), Polynomial([0, np.conj(direction)])
        state = 1 + z
        for _ in range(iterations):
            state = state - 2 * gamma * (1 - conjugate) * (state * (1 - z) - 1)
        found = stability.largest_stable_step(f"ie_skip(gamma={gamma},iterations={iterations})", [direction]).step
        assert found == pytest.approx(polynomial_exits(state)[0], rel=1e-7)


def test_implicit_methods_that_are_not_a_stable_end_at_a_root_or_never():
    for direction in DIRECTIONS:
        z = Polynomial([0, direction])
        expected = polynomial_exits(1 + 0.7 * z, 1 - 0.3 * z)
        found = stability.largest_stable_step("theta(theta=0.3)", [direction]).step
        assert found == pytest.approx(expected[0], rel=1e-9)
        assert stability.largest_stable_step("theta(theta=0.7)", [direction]).step == np.inf


def test_adams_bashforth_ends_on_its_root_locus():
    x = np.exp(1j * np.linspace(1e-3, np.pi, 2_000_001))
    locus = (x**2 - x) / (1.5 * x - 0.5)
    for direction in DIRECTIONS[1:]:
        across = (locus * np.conj(direction)).imag
        crossings = np.flatnonzero(across[1:] * across[:-1] < 0)
        radii = (locus[crossings] * np.conj(direction)).real
        assert stability.largest_stable_step("ab2", [direction]).step == pytest.approx(radii[radii > 0].min(), rel=1e-5)


class Formula(Scheme):
    """A scheme that is nothing but its R."""

    name, order, implicit, parameters = "formula", 1, False, {}

    def __init__(self, R):
        self.R = R

    def step(self, f, t, y, h, gradient="exact", record=None):
        raise NotImplementedError

    def amplification(self, z):
        return self.R(np.asarray(z, dtype=complex))


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6])
def test_a_pole_beside_the_ray_is_found_however_narrow_its_peak(width):
    # |R|^2 = 1/4 (1 + 15 w^2 / ((x + 3)^2 + w^2)) on the negative axis: 1 where x + 3 = +-2 w.
    def R(z):
        return np.sqrt(0.25 + 3.75 * width**2 / ((z + 3 - 1j * width) * (z + 3 + 1j * width)))

    assert stability.largest_stable_step(Formula(R), [-1]).step == pytest.approx(3 - 2 * width, rel=1e-9)


def test_an_r_too_noisy_to_tell_is_refused():
    noise = np.random.default_rng(0)
    with pytest.raises(ValueError, match="too noisy"):
        stability.largest_stable_step(Formula(lambda z: 1 + 5e-11 * noise.uniform(-1, 1, z.shape)), [-1])


def test_beside_the_axis_growth_begins_where_r_passes_one_not_where_it_shows():
    for angle in (1e-3, 1e-5, 3e-6):
        direction = -np.sin(angle) + 1j * np.cos(angle)
        step = stability.largest_stable_step("explicit", [direction]).step
        assert step == pytest.approx(2 * np.sin(angle), rel=1e-3)  # |1 + r d|^2 = 1 - 2 r sin + r^2
    # The leapfrog: both roots have modulus 1 up to 2i.
    assert stability.largest_stable_step("lm_resnet(k=1.0)", [3j]).step == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("spec", "interval"),
    [
        ("rk4", 8**0.5),
        ("explicit", 0),
        ("heun", 0),
        ("kutta3", 3**0.5),
        ("implicit", np.inf),
        ("trapezoid", np.inf),
        ("gauss4", np.inf),
        ("ab2", 0),
    ],
)
def test_eigenvalues_on_the_imaginary_axis_up_to_rounding_bound_the_step(spec, interval):
    found = stability.largest_stable_step(spec, [2j, -2j])
    assert found.step == pytest.approx(interval / 2, rel=1e-9) and found.expanding_share == 0
    assert found.limiting in ((None,) if interval == np.inf else (2j, -2j))
    # The dimension is odd: one eigenvalue is 0 up to rounding, and bounds nothing.
    M = np.random.default_rng(0).normal(size=(61, 61))
    values = np.linalg.eigvals(M - M.T)
    assert abs(values.real).max() > 0
    for shift in (0, 1e-10, -1e-10):
        found = stability.largest_stable_step(spec, values + shift)
        assert found.step == pytest.approx(interval / abs(values).max(), rel=1e-6) and found.expanding_share == 0


def test_the_band_ends_where_a_real_part_is_known():
    size = stability.largest_stable_step("explicit", [-1e-3 + 1j, 1e-3 + 0.5j])
    assert size.expanding_share == 0.5 and size.step == pytest.approx(2e-3 / (1 + 1e-6))
    assert stability.largest_stable_step("rk4", [100, -1e-9]).step == np.inf
    assert stability.largest_stable_step("rk4", [100, -1e-9], rounding=0).step == pytest.approx(2.785293563e9)
    assert stability.largest_stable_step("rk4", [0, 0]).step == np.inf
    np.testing.assert_array_equal(
        stability.snapped([[1e-9 - 2j, 1e-9, -1 + 1e-9j], [1e-9, 0, 0]]), [[-2j, 0, -1 + 1e-9j], [1e-9, 0, 0]]
    )
    with pytest.raises(ValueError, match="rounding must lie"):
        stability.largest_stable_step("rk4", [1j], rounding=1)
