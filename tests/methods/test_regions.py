"""Stability regions against the literature, and against what the table in the paper's analysis says of ie_skip."""

import numpy as np
import pytest

import odenets
import stability
from odenets import Scheme
from stability.methods.contractivity import is_algebraically_stable, ssp_coefficient

INF = float("inf")
# real and imaginary interval, A-stable, L-stable, SSP coefficient, algebraically stable (nodepy; Hairer & Wanner II,
# table IV.12.1)
KNOWN = {
    "explicit_euler": (2, 0, False, False, 1, False),
    "midpoint": (2, 0, False, False, 0, False),
    "heun": (2, 0, False, False, 1, False),
    "rk4": (2.785293563, 2 * 2**0.5, False, False, 0, False),
    "implicit_euler": (INF, INF, True, True, INF, True),
    "trapezoid": (INF, INF, True, False, 2, False),
    "implicit_midpoint": (INF, INF, True, False, 2, True),
    "sdirk2": (INF, INF, True, True, 1 + 2**0.5, False),
    "gauss4": (INF, INF, True, False, 0, True),
    "radau3": (INF, INF, True, True, 0, True),
}


@pytest.mark.parametrize("name", KNOWN)
def test_region_agrees_with_the_literature(name):
    r = stability.region(name)
    real, imaginary, a_stable, l_stable, ssp, algebraically_stable = KNOWN[name]
    assert r.real_interval == pytest.approx(real, rel=1e-6)
    assert r.imaginary_interval == pytest.approx(imaginary, rel=1e-6) and (imaginary or r.imaginary_interval == 0)
    assert (r.a_stable, r.l_stable, r.algebraically_stable) == (a_stable, l_stable, algebraically_stable)
    assert r.ssp == pytest.approx(ssp, rel=1e-6)


# Truncated to three digits in the source, hence the tolerance; rows are iterations 1, 2, 5, 10.
GAMMAS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.25, 0.5)
TABLE = {
    1: (2.385, 4.525, 3.613, 2.702, 1.791, 1.158, 1.000, 0.618),
    2: (7.408, 5.161, 4.159, 3.148, 2.127, 1.405, 1.222, 0.775),
    5: (8.105, 5.539, 4.391, 3.232, 2.054, 1.215, 1.000, 0.471),
    10: (8.550, 5.826, 4.612, 3.390, 2.154, 1.276, 1.053, 0.503),
}


@pytest.mark.parametrize("iterations", TABLE)
def test_ie_skip_real_intervals(iterations):
    found = [stability.region(f"ie_skip(gamma={gamma},iterations={iterations})").real_interval for gamma in GAMMAS]
    np.testing.assert_allclose(found, TABLE[iterations], atol=6e-4)


def test_ie_skip_real_interval_in_closed_form():
    end = ((1 + 2 / 0.05) ** 0.5 - 1) / 2
    assert stability.region("ie_skip(gamma=0.05)").real_interval == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("gamma, iterations", [(0.01, 1), (0.1, 1), (0.1, 5), (0.02, 20)])
def test_a_truncated_iteration_is_never_a_stable(gamma, iterations):
    r = stability.region(f"ie_skip(gamma={gamma},iterations={iterations})")
    assert not r.a_stable and not r.l_stable and r.ssp is None and r.algebraically_stable is None


@pytest.mark.parametrize("gamma, area", [(0.1, 12.56), (0.05, 21.45), (0.02, 40.0)])
def test_the_default_window_holds_the_whole_region(gamma, area):
    x, y, modulus = stability.region(f"ie_skip(gamma={gamma})", resolution=801).grid
    assert modulus.shape == (len(y), len(x))
    cell = (x[1] - x[0]) * (y[1] - y[0])
    assert (modulus <= 1).sum() * cell == pytest.approx(area, rel=5e-3)
    edge = np.concatenate([modulus[0], modulus[-1], modulus[:, 0], modulus[:, -1]])
    assert edge.min() > 1


def test_grid_follows_window_and_resolution():
    x, y, modulus = stability.region("rk4", window=(-2, 0, -1, 1), resolution=21).grid
    np.testing.assert_allclose((x[0], x[-1], y[0], y[-1]), (-2, 0, -1, 1))
    np.testing.assert_allclose(modulus, abs(odenets.get_scheme("rk4").amplification(x + 1j * y[:, None])))


class Formula(Scheme):
    """A scheme that is nothing but its R."""

    name, order, implicit, parameters = "formula", 1, False, {}

    def __init__(self, R):
        self.R = R

    def step(self, f, t, y, h, gradient="exact", record=None):
        raise NotImplementedError

    def amplification(self, z):
        return self.R(np.asarray(z, dtype=complex))


def test_instability_inside_the_half_plane_is_found_though_the_axis_is_stable():
    # With a conjugate, |R| may be largest away from the edge: here on the ray at 135 degrees only.
    r = stability.region(Formula(lambda z: 1.5 * np.exp(-abs(np.angle(z) - 0.75 * np.pi) * 8) * (abs(z) > 1)))
    assert np.isinf(r.imaginary_interval) and not r.a_stable


@pytest.mark.parametrize("end", [3, 3.0005, 3.001, 3.0015])
def test_a_narrow_gap_of_stability_ends_the_interval(end):
    # |R| exceeds 1 on an interval of 4e-4 only, less than the distance of two samples.
    r = stability.region(Formula(lambda z: np.maximum(0, 1 + 1e-4 - 2500 * (abs(z) - end - 2e-4) ** 2)))
    assert r.real_interval == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("power", [2, 4, 6, 8])
def test_growth_from_the_origin_leaves_no_imaginary_interval(power):
    assert stability.region(Formula(lambda z: 1 + 0.3 * abs(z) ** power)).imaginary_interval == 0
    assert stability.region(Formula(lambda z: 1 - 0.3 * abs(z) ** power)).imaginary_interval > 0.9


def _bdf3(z):
    """Largest root of the three-step BDF, sum_j (1 - 1/x)^j / j = z."""
    companion = np.zeros((*z.shape, 3, 3), dtype=complex)
    companion[..., 0, :] = np.array([18, -9, 2]) / (11 - 6 * z[..., None])
    companion[..., 1, 0] = companion[..., 2, 1] = 1
    return abs(np.linalg.eigvals(companion)).max(-1)


def test_angle_of_the_stable_sector():
    specs = ("rk4", "ie_skip", "ab2", "theta(theta=0.49)", "bdf2", "gauss6")
    angles = {spec: stability.region(spec).a_alpha for spec in specs}
    assert angles == {"rk4": 0, "ie_skip": 0, "ab2": 0, "theta(theta=0.49)": 0, "bdf2": 90, "gauss6": 90}
    r = stability.region(Formula(_bdf3))  # closed form: BIT 60 (2020), doi 10.1007/s10543-019-00796-x
    assert not r.a_stable and r.a_alpha == pytest.approx(np.degrees(np.arctan(329 / 135 * 35**0.5)), abs=1e-4)
    for edge in (0.3, 17.2, 89.6):
        wedge = Formula(lambda z, edge=edge: np.where(abs(np.angle(-z)) <= np.deg2rad(edge), 0.9, 1.1))
        assert stability.region(wedge).a_alpha == pytest.approx(edge, abs=1e-4)


def test_l_stability_tells_a_slow_decay_from_a_small_limit():
    specs = ("bdf2", "sdirk2", "theta(theta=0.9999)", "theta(theta=0.999999)")
    verdicts = {spec: stability.region(spec).l_stable for spec in specs}
    assert verdicts == {"bdf2": True, "sdirk2": True, "theta(theta=0.9999)": False, "theta(theta=0.999999)": False}


def test_algebraic_criteria_beyond_the_catalogue():
    ssprk33 = np.array([[0, 0, 0], [1, 0, 0], [0.25, 0.25, 0]]), np.array([1, 1, 4]) / 6
    assert ssp_coefficient(*ssprk33) == pytest.approx(1, rel=1e-6)
    A, b = np.zeros((10, 10)), np.full(10, 0.1)  # SSPRK104 (Ketcheson 2008)
    A[:5, :5] = np.tril(np.full((5, 5), 1 / 6), -1)
    A[5:, :5] = 1 / 15
    A[5:, 5:] = np.tril(np.full((5, 5), 1 / 6), -1)
    assert ssp_coefficient(A, b) == pytest.approx(6, rel=1e-6)
    assert not is_algebraically_stable(np.array([[0, 0], [0.5, 0.5]]), np.array([0.5, 0.5]))
    lobatto3c = np.array([[1 / 6, -1 / 3, 1 / 6], [1 / 6, 5 / 12, -1 / 12], [1 / 6, 2 / 3, 1 / 6]])
    assert is_algebraically_stable(lobatto3c, np.array([1, 4, 1]) / 6)


def test_largest_stable_step():
    s = stability.largest_stable_step("explicit", [-2, -4 + 1j, 0.5])
    assert s.step == pytest.approx(8 / 17, rel=1e-6) and s.limiting == -4 + 1j
    assert s.expanding_share == pytest.approx(1 / 3) and s.max_real == 0.5
    assert s.growth_ratio == pytest.approx([1.5 / np.exp(0.5)]) and s.amplification == pytest.approx(abs(-3 + 1j))
    assert stability.largest_stable_step("implicit", [-1e6, -1 + 300j]).step == INF
    assert stability.largest_stable_step("rk4", [0.1]).limiting is None


def test_largest_stable_step_is_where_growth_begins():
    eigenvalues = np.random.default_rng(0).normal(size=(300, 2)) @ [1, 2j] - 1
    s = stability.largest_stable_step("ie_skip(gamma=0.05)", eigenvalues)
    R, left = odenets.get_scheme("ie_skip(gamma=0.05)").amplification, eigenvalues[eigenvalues.real < 0]
    assert (abs(R(np.linspace(0, s.step, 200)[:, None] * left)) <= 1 + 1e-9).all()
    assert (abs(R(1.0001 * s.step * left)) > 1).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: stability.region("adaptive"),
        lambda: stability.region("rk5"),
        lambda: stability.region("rk4", resolution=1),
        lambda: stability.region("rk4", window=(1, 0, 0, 1)),
        lambda: stability.largest_stable_step("rk4", []),
        lambda: stability.largest_stable_step("rk4", [np.nan]),
        lambda: stability.largest_stable_step("rk4", [-1], step_size=0),
    ],
)
def test_bad_input(call):
    with pytest.raises(ValueError, match="."):
        call()
