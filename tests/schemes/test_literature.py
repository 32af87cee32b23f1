"""The catalogue against the literature and against other people's code: verdicts, intervals, coefficients, solutions."""

import warnings

import numpy as np
import pytest
import scipy.integrate
import torch
from numpy.polynomial import Chebyshev
from torchdiffeq import odeint

import odenets
import stability

with warnings.catch_warnings():  # its docstrings and its use of numpy are older than today's warnings
    warnings.simplefilter("ignore")
    from nodepy import linear_multistep_method as multistep_methods
    from nodepy import runge_kutta_method as runge_kutta_methods

NAMES = odenets.list_schemes()
TABLEAUX = [name for name in NAMES if odenets.get_scheme(name).tableau is not None]

# A-stable, L-stable, algebraically stable (None: no tableau), source.
# HW: Hairer & Wanner II (1996). An explicit R is a polynomial, unbounded in the left half-plane (HW IV.2); an explicit tableau
# has -b_i^2 on the diagonal of the matrix of HW definition IV.12.5. Verdicts of explicit tableaux rest on these two.
POLYNOMIAL = "HW IV.2 (R is a polynomial) and definition IV.12.5"
LITERATURE = {
    "explicit_euler": (False, False, False, POLYNOMIAL),
    "midpoint": (False, False, False, POLYNOMIAL),
    "heun": (False, False, False, POLYNOMIAL),
    "ralston2": (False, False, False, POLYNOMIAL),
    "kutta3": (False, False, False, POLYNOMIAL),
    "ssprk33": (False, False, False, POLYNOMIAL),
    "rk4": (False, False, False, POLYNOMIAL),
    "rk38": (False, False, False, POLYNOMIAL),
    "ssprk104": (False, False, False, POLYNOMIAL),
    "dopri5": (False, False, False, POLYNOMIAL),
    "rkc1": (False, False, False, POLYNOMIAL),
    "rkc2": (False, False, False, POLYNOMIAL),
    "implicit_euler": (True, True, True, "HW IV.3; Radau IIA with one stage, HW theorem IV.12.9"),
    "trapezoid": (True, False, False, "HW IV.3; Lobatto IIIA, whose matrix of definition IV.12.5 has -b_1^2 on its diagonal"),
    "implicit_midpoint": (True, False, True, "HW IV.3; Gauss with one stage, HW theorem IV.12.9"),
    "theta": (True, False, False, "HW IV.3: its default is the trapezoid"),
    "sdirk2": (True, True, False, "Alexander (1977); (1 - gamma)(3 gamma - 1) < 0 on the diagonal of HW definition IV.12.5"),
    "sdirk3": (True, True, False, "Alexander (1977), theorem 5; its b_2 = -0.644 < 0 against HW definition IV.12.5"),
    "norsett3": (True, False, True, "HW table IV.6.3 (s = 2, gamma = (3 + sqrt 3)/6); Burrage & Butcher (1979)"),
    "tr_bdf2": (True, True, False, "Hosea & Shampine (1996); nodepy's is_algebraically_stable"),
    "gauss4": (True, False, True, "diagonal Pade (2, 2), HW theorem IV.4.12; HW theorem IV.12.9"),
    "gauss6": (True, False, True, "diagonal Pade (3, 3), HW theorem IV.4.12; HW theorem IV.12.9"),
    "radau3": (True, True, True, "first subdiagonal Pade (1, 2), HW theorem IV.4.12; HW theorem IV.12.9"),
    "radau5": (True, True, True, "first subdiagonal Pade (2, 3), HW theorem IV.4.12; HW theorem IV.12.9"),
    "lobatto_iiic4": (True, True, True, "second subdiagonal Pade (2, 4), HW theorem IV.4.12; HW theorem IV.12.9"),
    "rosenbrock_euler": (True, True, None, "HW IV.7: R of implicit Euler"),
    "ros2": (True, True, None, "Verwer, Spee, Blom, Hundsdorfer (1999): L-stable for gamma = 1 - 1/sqrt 2"),
    # |exp(iy)| = 1, and so no limit at infinity as HW definition IV.3.7 wants it, though exp -> 0 along every ray inside.
    "exponential_euler": (True, False, None, "Hochbruck & Ostermann (2010): R = exp"),
    "ab2": (False, False, None, "Dahlquist (1963), HW V.1: no explicit multistep method is A-stable"),
    "bdf2": (True, True, None, "Dahlquist (1963), HW V.1; both roots vanish at infinity, sigma(x) = x^2"),
    "lm_resnet": (False, False, None, "Dahlquist (1963), HW V.1: no explicit multistep method is A-stable"),
    "splitting": (True, False, None, "HW IV.3: of a field without parts, implicit midpoint's R"),
    "ie_skip": (False, False, None, "R is a polynomial in z and its conjugate: odenets/schemes/ie_skip.py"),
    "adaptive": (None, None, None, "steps depend on the data: no R"),
}


def test_every_scheme_has_a_line_in_the_literature():
    assert list(LITERATURE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_agree_with_the_literature(name):
    a_stable, l_stable, algebraically_stable, source = LITERATURE[name]
    if a_stable is None:
        with pytest.raises(ValueError, match=r"no stability function R\(z\)"):
            stability.region(name)
        return
    r = stability.region(name)
    assert (r.a_stable, r.l_stable, r.algebraically_stable) == (a_stable, l_stable, algebraically_stable), source
    # Nothing in the catalogue lies between: A(alpha)-stable with 0 < alpha < 90.
    assert r.a_alpha == (90 if a_stable else 0) and (r.real_interval == np.inf) == a_stable


# Real interval, imaginary interval, SSP coefficient: nodepy 1.1.1, run; roots in closed form where there is one.
PUBLISHED = {
    "explicit_euler": (2, 0, 1),
    "midpoint": (2, 0, 0),
    "heun": (2, 0, 1),
    "ssprk33": (2.51274533, 3**0.5, 1),
    "kutta3": (2.51274533, 3**0.5, 0),
    "ssprk104": (13.91704746, 4.92145307, 6),
    "rk4": (2.78529356, 8**0.5, 0),
    "rk38": (2.78529356, 8**0.5, 0),
    "dopri5": (3.30656789, 0.997189, 0),
    "rkc1(stages=6,damping=0)": (72, 0, None),
    "rkc2(stages=6,damping=0)": (70 / 3, 0, None),
    "implicit_euler": (np.inf, np.inf, np.inf),
    "trapezoid": (np.inf, np.inf, 2),
    "implicit_midpoint": (np.inf, np.inf, 2),
    "tr_bdf2": (np.inf, np.inf, 1 + 2**0.5),
    "ab2": (1, 0, None),
    "lm_resnet(k=0.5)": (1, 0, None),
}


@pytest.mark.parametrize("spec", PUBLISHED)
def test_intervals_and_ssp_coefficients_are_the_published_ones(spec):
    r, (real, imaginary, ssp) = stability.region(spec), PUBLISHED[spec]
    assert r.real_interval == pytest.approx(real, rel=1e-6) and r.imaginary_interval == pytest.approx(imaginary, rel=1e-6)
    assert ssp is None or r.ssp == pytest.approx(ssp, rel=1e-6)


# Our name -> nodepy's method. Its DP5 stores the seventh stage of the error estimate, which ours leaves out.
NODEPY = {
    "explicit_euler": "FE",
    "midpoint": "Mid22",
    "heun": "SSP22",
    "ralston2": "MTE22",
    "ssprk33": "SSP33",
    "rk4": "RK44",
    "ssprk104": "SSP104",
    "dopri5": "DP5",
    "implicit_euler": "BE",
    "trapezoid": "LobattoIIIA2",
    "theta": "LobattoIIIA2",
    "gauss4": "GL2",
    "gauss6": "GL3",
    "radau3": "RadauIIA2",
    "radau5": "RadauIIA3",
    "lobatto_iiic4": "LobattoIIIC3",
}


@pytest.fixture(scope="module")
def nodepy_methods():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        families = {"rkc1(damping=0)": runge_kutta_methods.RKC1(5), "implicit_midpoint": runge_kutta_methods.SSPIRK2(1)}
        return {name: runge_kutta_methods.loadRKM(theirs) for name, theirs in NODEPY.items()} | families


@pytest.mark.parametrize("spec", [*NODEPY, "rkc1(damping=0)", "implicit_midpoint"])
def test_coefficients_are_those_of_nodepy(spec, nodepy_methods):
    tableau, theirs = odenets.get_scheme(spec).tableau, nodepy_methods[spec]
    s = tableau.stages
    np.testing.assert_allclose(np.array(theirs.A, dtype=float)[:s, :s], tableau.A, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.array(theirs.b, dtype=float)[:s], tableau.b, rtol=1e-12, atol=1e-14)
    assert len(theirs) - s == (spec == "dopri5") and not np.any(theirs.b[s:])
    assert theirs.order() == tableau.order


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spec", [*TABLEAUX, "rkc1(stages=3,damping=0.5)", "rkc2(stages=7)"])
def test_intervals_ssp_and_algebraic_stability_are_those_that_nodepy_computes(spec):
    """From our A and b, also where nodepy's own list lacks the method; `test_coefficients...` compares those it has."""
    r = stability.region(spec)
    A, b, implicit = r.scheme.tableau.A.copy(), r.scheme.tableau.b.copy(), r.scheme.implicit
    theirs = (runge_kutta_methods.RungeKuttaMethod if implicit else runge_kutta_methods.ExplicitRungeKuttaMethod)(A, b)
    assert theirs.absolute_monotonicity_radius() == pytest.approx(r.ssp, rel=1e-6)
    assert bool(theirs.is_algebraically_stable()) == r.algebraically_stable
    if not implicit:
        assert theirs.real_stability_interval(mode="float") == pytest.approx(r.real_interval, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NODEPY if not odenets.get_scheme(name).implicit])
def test_imaginary_intervals_are_those_of_nodepy(name, nodepy_methods):
    # In exact arithmetic: in floating point nodepy loses rk4's interval to the rounding of its polynomial.
    ours = stability.region(name).imaginary_interval
    assert nodepy_methods[name].imaginary_stability_interval() == pytest.approx(ours, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_multistep_coefficients_are_those_of_nodepy():
    z = np.array([-0.7 + 0.4j])
    bdf2 = multistep_methods.backward_difference_formula(2)
    for name, theirs in (("ab2", multistep_methods.Adams_Bashforth(2)), ("bdf2", bdf2)):
        scheme = odenets.get_scheme(name)
        wanted = np.array(theirs.alpha, dtype=float) - z * np.array(theirs.beta, dtype=float)
        np.testing.assert_allclose(np.array(scheme.characteristic(z[0])), wanted[::-1], rtol=1e-13)
        assert theirs.order() == scheme.order
    assert bdf2.A_alpha_stability() == stability.region("bdf2").a_alpha == 90


def _chebyshev_ends(stages, damping):
    """Where R leaves [-1, 1] on the negative axis, from R = T_s(w0 + w1 z)/T_s(w0) and R = a_s + b_s T_s(w0 + w1 z)."""
    T, w0 = Chebyshev.basis(stages), 1 + damping / stages**2
    value, first, second = T(w0), T.deriv()(w0), T.deriv(2)(w0)
    b = second / first**2
    # An even R leaves through 1 at -w0; an odd one through -1, farther out.
    left = w0 if stages % 2 == 0 else np.cosh(np.arccosh(2 / b - value) / stages)
    return 2 * w0 * first / value, (w0 + left) * second / first


@pytest.mark.parametrize("stages", range(2, 21))
def test_chebyshev_intervals_grow_with_the_square_of_the_stages(stages):
    def end(spec):
        return stability.largest_stable_step(spec, [-1.0]).step

    ends = {
        damping: [end(f"{name}(stages={stages},damping={damping})") for name in ("rkc1", "rkc2")]
        for damping in (0.0, 0.05, 2 / 13)
    }
    assert ends[0.0][0] == pytest.approx(2 * stages**2, rel=1e-9)
    assert ends[0.05][0] / stages**2 == pytest.approx(1.935, abs=0.02)  # 2 - 4/3 * 0.05, and less than a percent for few stages
    assert ends[0.0][1] >= 2 / 3 * (stages**2 - 1) * (1 - 1e-9)  # equal for even numbers of stages
    assert 0.65 < ends[2 / 13][1] / (stages**2 - 1) < 0.78
    for damping, found in ends.items():
        np.testing.assert_allclose(found, _chebyshev_ends(stages, damping), rtol=1e-9)
    if stages in (2, 7, 20):
        assert stability.region(f"rkc1(stages={stages})").real_interval == pytest.approx(ends[0.05][0], rel=1e-9)
        assert stability.region(f"rkc2(stages={stages})").real_interval == pytest.approx(ends[2 / 13][1], rel=1e-9)


def van_der_pol(t, y, stack=np.stack):
    """Van der Pol's oscillator with epsilon = 1e-3: eigenvalues near -3000 where it starts."""
    return stack([y[..., 1], 1e3 * ((1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0])], -1)


def robertson(t, y, stack=np.stack):
    """Robertson's kinetics: rate constants from 0.04 to 3e7."""
    slow, back, fast = 0.04 * y[..., 0], 1e4 * y[..., 1] * y[..., 2], 3e7 * y[..., 1] ** 2
    return stack([back - slow, slow - back - fast, fast], -1)


# Robertson starts behind its initial layer, which equal steps would have to resolve. Van der Pol takes Broyden 277 iterations
# in 25 steps and Newton 148, each with its own products; on Robertson Broyden does not converge within 100 a step, and says so.
@pytest.mark.no_pretend
@pytest.mark.parametrize(
    ("field", "start", "time", "steps", "solver"),
    [
        (van_der_pol, [2.0, -0.66], 0.5, 25, "broyden"),
        (van_der_pol, [2.0, -0.66], 0.5, 25, "newton"),
        (robertson, [0.9664597, 3.0746e-5, 0.0335095], 40.0, 25, "newton"),
    ],
)
def test_radau5_solves_stiff_problems_as_scipy_does(field, start, time, steps, solver, device):
    reference = scipy.integrate.solve_ivp(field, (0, time), start, method="Radau", rtol=1e-10, atol=1e-14).y[:, -1]
    scheme = f"radau5(tol=1e-10,max_iterations=100,solver={solver})"
    stage = odenets.ODEStage([lambda t, y: field(t, y, torch.stack)], scheme, time, steps)
    initial = torch.tensor([start], dtype=torch.float64, device=device)
    np.testing.assert_allclose(stage(initial)[0].cpu().numpy(), reference, rtol=1e-6)
    assert stage.stats.converged.all()
    assert not torch.isfinite(odenets.ODEStage(stage.fields, "rk4", time, steps)(initial)).all(), "not stiff at this step"


# torchdiffeq's rk4 is the 3/8 rule.
@pytest.mark.parametrize(
    ("name", "method"), [("explicit_euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"), ("rk38", "rk4")]
)
def test_fixed_grids_of_torchdiffeq_give_the_same_trajectory(name, method, device, generator):
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64).to(device)
    y = torch.randn(3, 6, generator=generator, dtype=torch.float64).to(device)

    def field(t, y):
        return torch.tanh(y @ W) * torch.cos(torch.as_tensor(t, dtype=y.dtype, device=y.device)) - y**2 / 5

    ours = odenets.ODEStage([field], name, interval=1.5, substeps=12)(y, trajectory=True)
    theirs = odeint(field, y, torch.linspace(0, 1.5, 13, dtype=torch.float64, device=device), method=method)
    assert (ours - theirs).abs().max() < 1e-12


def test_dopri5_is_the_method_of_scipy():
    tableau, theirs = odenets.get_scheme("dopri5").tableau, scipy.integrate.RK45
    np.testing.assert_array_equal(tableau.b, theirs.B)
    np.testing.assert_allclose(tableau.A[:, :5], theirs.A, rtol=1e-15)
    np.testing.assert_allclose(tableau.c, theirs.C, rtol=1e-13, atol=1e-15)
