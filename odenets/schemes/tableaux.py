"""The catalogue of Runge-Kutta methods: one entry each, every coefficient pinned by what the entry claims."""
from functools import cache
from math import sqrt

import numpy as np
from numpy.polynomial import Chebyshev

from odenets.errors import InputError
from odenets.schemes.tableau import Tableau

SQRT2, SQRT3, SQRT6, SQRT15 = sqrt(2), sqrt(3), sqrt(6), sqrt(15)
HNW = "Hairer, Norsett, Wanner I (1993)"
HW = "Hairer & Wanner II (1996)"

# --- explicit -------------------------------------------------------------------------------------------------------------

EXPLICIT_EULER = Tableau("explicit_euler", A=[[0]], b=[1], order=1, source="Euler (1768); " + HNW + ", section II.1")

MIDPOINT = Tableau("midpoint", A=[[0, 0], [1/2, 0]], b=[0, 1], order=2, source="Runge (1895); " + HNW + ", section II.1")

# The trapezoid with an Euler predictor; the optimal two-stage SSP method, hence its alias ssprk22.
HEUN = Tableau("heun", A=[[0, 0], [1, 0]], b=[1/2, 1/2], order=2, source="Heun (1900); Shu & Osher (1988), equation 2.16")

# The smallest bound on the truncation error among two-stage methods of order 2.
RALSTON2 = Tableau("ralston2", A=[[0, 0], [2/3, 0]], b=[1/4, 3/4], order=2,
                   source="Ralston (1962), Math. Comp. 16")

KUTTA3 = Tableau("kutta3", A=[[0, 0, 0], [1/2, 0, 0], [-1, 2, 0]], b=[1/6, 2/3, 1/6], order=3,
                 source="Kutta (1901)")

# Convex combinations of Euler steps: a norm that Euler does not increase, this does not increase, at the same step size.
SSPRK33 = Tableau("ssprk33", A=[[0, 0, 0], [1, 0, 0], [1/4, 1/4, 0]], b=[1/6, 1/6, 2/3], order=3,
                  source="Shu & Osher (1988), equation 2.18")

RK4 = Tableau("rk4", A=[[0, 0, 0, 0], [1/2, 0, 0, 0], [0, 1/2, 0, 0], [0, 0, 1, 0]], b=[1/6, 1/3, 1/3, 1/6], order=4,
              source="Kutta (1901); " + HNW + ", table II.1.2")

RK38 = Tableau("rk38", A=[[0, 0, 0, 0], [1/3, 0, 0, 0], [-1/3, 1, 0, 0], [1, -1, 1, 0]], b=[1/8, 3/8, 3/8, 1/8], order=4,
               source="Kutta (1901); " + HNW + ", table II.1.2")

# SSP coefficient 6 for ten evaluations: 0.6 of an Euler step each, against a third for ssprk33.
_HALVES = np.tril(np.full((5, 5), 1/6), -1)
SSPRK104 = Tableau("ssprk104", A=np.block([[_HALVES, np.zeros((5, 5))], [np.full((5, 5), 1/15), _HALVES]]),
                   b=[1/10] * 10, order=4, source="Ketcheson (2008), SIAM J. Sci. Comput. 30")

# At fixed steps, and without the seventh stage, which only serves the error estimate.
DOPRI5 = Tableau("dopri5", A=[[0, 0, 0, 0, 0, 0], [1/5, 0, 0, 0, 0, 0], [3/40, 9/40, 0, 0, 0, 0],
                              [44/45, -56/15, 32/9, 0, 0, 0],
                              [19372/6561, -25360/2187, 64448/6561, -212/729, 0, 0],
                              [9017/3168, -355/33, 46732/5247, 49/176, -5103/18656, 0]],
                 b=[35/384, 0, 500/1113, 125/192, -2187/6784, 11/84], order=5, source=HNW + ", table II.5.2")

# --- stabilised explicit --------------------------------------------------------------------------------------------------


def _chebyshev_arguments(name: str, stages: int, damping: float, fewest: int) -> tuple[list[Chebyshev], float]:
    if isinstance(stages, bool) or stages != int(stages) or not fewest <= stages <= 50:
        raise InputError(f"{name}: stages must be a whole number from {fewest} to 50, got {stages}")
    if not 0 <= damping <= 10:
        raise InputError(f"{name}: damping must lie in [0, 10], got {damping}")
    T = [Chebyshev.basis(j) for j in range(stages + 1)]
    return T, 1 + damping / stages**2


def _from_recurrence(stages: int, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows[:stages]), np.array(rows[stages])


def _taylor(polynomial: Chebyshev, w0: float, w1: float, scale: float) -> list[float]:
    """Coefficients in z of scale * polynomial(w0 + w1 z), by derivatives: all positive at w0 >= 1, so nothing cancels."""
    coefficients, factor = [], scale
    for k in range(polynomial.degree() + 1):
        coefficients.append(factor * polynomial(w0))
        polynomial, factor = polynomial.deriv(), factor * w1 / (k + 1)
    return coefficients


@cache
def rkc1(stages: int = 5, damping: float = 0.05) -> Tableau:
    """Chebyshev method of order 1: R(z) = T_s(w0 + w1 z) / T_s(w0), real interval about 2 s^2 (less where damped).

    Source: van der Houwen & Sommeijer (1980); Hairer & Wanner II (1996), equations IV.2.14 to 2.17.
    """
    T, w0 = _chebyshev_arguments("rkc1", stages, damping, 1)
    w1 = T[stages](w0) / T[stages].deriv()(w0)
    unit = np.eye(stages)
    rows = [np.zeros(stages), w1 / w0 * unit[0]]
    for j in range(2, stages + 1):
        ratio = T[j - 1](w0) / T[j](w0)
        rows.append(2 * w0 * ratio * rows[-1] - T[j - 2](w0) / T[j](w0) * rows[-2] + 2 * w1 * ratio * unit[j - 1])
    A, b = _from_recurrence(stages, rows)
    return Tableau("rkc1", A, b, order=1, r_polynomial=tuple(_taylor(T[stages], w0, w1, 1 / T[stages](w0))),
                   source=HW + ", section IV.2")


@cache
def rkc2(stages: int = 5, damping: float = 2/13) -> Tableau:
    """Chebyshev method of order 2: R(z) = a_s + b_s T_s(w0 + w1 z), real interval about 0.65 s^2.

    Source: Sommeijer, Shampine, Verwer (1998), J. Comput. Appl. Math. 88, equations 2.1 to 2.9.
    """
    T, w0 = _chebyshev_arguments("rkc2", stages, damping, 2)
    d1, d2 = [t.deriv()(w0) for t in T], [t.deriv(2)(w0) for t in T]
    w1 = d1[stages] / d2[stages]
    b = [d2[2] / d1[2]**2] * 2 + [d2[j] / d1[j]**2 for j in range(2, stages + 1)]
    a = [1 - b[j] * T[j](w0) for j in range(stages + 1)]
    unit = np.eye(stages)
    rows = [np.zeros(stages), b[1] * w1 * unit[0]]
    for j in range(2, stages + 1):
        ratio = 2 * b[j] / b[j - 1]
        slope = ratio * w1 * (unit[j - 1] - a[j - 1] * unit[0])
        rows.append(ratio * w0 * rows[-1] - b[j] / b[j - 2] * rows[-2] + slope)
    A, weights = _from_recurrence(stages, rows)
    polynomial = _taylor(T[stages], w0, w1, b[stages])
    polynomial[0] += a[stages]
    return Tableau("rkc2", A, weights, order=2, r_polynomial=tuple(polynomial),
                   source="Sommeijer, Shampine, Verwer (1998), J. Comput. Appl. Math. 88")


# --- diagonally implicit --------------------------------------------------------------------------------------------------

# R(infinity) pins the diagonal, which the one order condition leaves free.
IMPLICIT_EULER = Tableau("implicit_euler", A=[[1]], b=[1], order=1, structure="diagonal", r_infinity=0,
                         source=HW + ", section IV.3")

# A-stable without damping: R(infinity) = -1, so that stiff components flip their sign at each step.
TRAPEZOID = Tableau("trapezoid", A=[[0, 0], [1/2, 1/2]], b=[1/2, 1/2], order=2, structure="diagonal", r_infinity=-1,
                    source=HW + ", section IV.3")

IMPLICIT_MIDPOINT = Tableau("implicit_midpoint", A=[[1/2]], b=[1], order=2, structure="diagonal", r_infinity=-1,
                            source=HW + ", section IV.3")


@cache
def theta(theta: float = 0.5) -> Tableau:
    """From explicit Euler (0, excluded) over the trapezoid (1/2) to implicit Euler (1); A-stable for theta >= 1/2.

    Source: Hairer & Wanner II (1996), example IV.3.2 (iv).
    """
    if not (0.001 <= theta <= 1 and (theta == 1/2 or abs(theta - 1/2) > 1e-6)):
        raise InputError(f"theta: theta must lie in [0.001, 1], and not so near 1/2 that its order is in doubt; got {theta}")
    A, b = ([[0, 0], [1 - theta, theta]], [1 - theta, theta]) if theta < 1 else ([[1]], [1])
    return Tableau("theta", A, b, order=2 if theta == 1/2 else 1, structure="diagonal", r_infinity=(theta - 1) / theta,
                   source=HW + ", section IV.3")


# gamma = 1 - 1/sqrt 2 makes it L-stable and stiffly accurate: the last stage is the result.
SDIRK2 = Tableau("sdirk2", A=[[1 - 1/SQRT2, 0], [1/SQRT2, 1 - 1/SQRT2]], b=[1/SQRT2, 1 - 1/SQRT2], order=2,
                 structure="diagonal", equal_diagonal=True, r_infinity=0,
                 source="Alexander (1977), SIAM J. Numer. Anal. 14")

# gamma is the root of x^3 - 3 x^2 + 3/2 x - 1/6 between 1/6 and 1/2.
_GAMMA3 = 0.43586652150845899942
SDIRK3 = Tableau("sdirk3", A=[[_GAMMA3, 0, 0], [(1 - _GAMMA3)/2, _GAMMA3, 0],
                              [-(6*_GAMMA3**2 - 16*_GAMMA3 + 1)/4, (6*_GAMMA3**2 - 20*_GAMMA3 + 5)/4, _GAMMA3]],
                 b=[-(6*_GAMMA3**2 - 16*_GAMMA3 + 1)/4, (6*_GAMMA3**2 - 20*_GAMMA3 + 5)/4, _GAMMA3], order=3,
                 structure="diagonal", equal_diagonal=True, r_infinity=0, source="Alexander (1977), SIAM J. Numer. Anal. 14")

# Norsett's choice of gamma: order 3 with two stages, and algebraically stable, which no sdirk above is.
_GAMMA_N = (3 + SQRT3) / 6
NORSETT3 = Tableau("norsett3", A=[[_GAMMA_N, 0], [1 - 2*_GAMMA_N, _GAMMA_N]], b=[1/2, 1/2], order=3, structure="diagonal",
                   equal_diagonal=True, r_infinity=1 - SQRT3,
                   source="Norsett (1974); Burrage & Butcher (1979), SIAM J. Numer. Anal. 16; " + HW + ", section IV.12")

# Half a step of the trapezoid, then BDF2 over both: L-stable, one diagonal coefficient, the first stage explicit.
_GAMMA = 2 - SQRT2
TR_BDF2 = Tableau("tr_bdf2", A=[[0, 0, 0], [_GAMMA/2, _GAMMA/2, 0], [SQRT2/4, SQRT2/4, _GAMMA/2]],
                  b=[SQRT2/4, SQRT2/4, _GAMMA/2], order=2, structure="diagonal", equal_diagonal=True, r_infinity=0,
                  source="Bank et al. (1985); Hosea & Shampine (1996), Appl. Numer. Math. 20")

# --- fully implicit -------------------------------------------------------------------------------------------------------

# Two-stage Gauss: the highest order two stages can reach, A-stable; |R(inf)| = 1, so fast modes ring instead of dying.
GAUSS4 = Tableau("gauss4", A=[[1/4, 1/4 - SQRT3/6], [1/4 + SQRT3/6, 1/4]], b=[1/2, 1/2], order=4, structure="coupled",
                 r_infinity=1, source=HW + ", table IV.5.1")

GAUSS6 = Tableau("gauss6", A=[[5/36, 2/9 - SQRT15/15, 5/36 - SQRT15/30], [5/36 + SQRT15/24, 2/9, 5/36 - SQRT15/24],
                              [5/36 + SQRT15/30, 2/9 + SQRT15/15, 5/36]], b=[5/18, 4/9, 5/18], order=6, structure="coupled",
                 r_infinity=-1, source=HW + ", table IV.5.2")

# Radau IIA: L-stable, stiffly accurate, algebraically stable; with three stages the workhorse of stiff codes.
RADAU3 = Tableau("radau3", A=[[5/12, -1/12], [3/4, 1/4]], b=[3/4, 1/4], order=3, structure="coupled", r_infinity=0,
                 source=HW + ", table IV.5.5")

RADAU5 = Tableau("radau5", A=[[(88 - 7*SQRT6)/360, (296 - 169*SQRT6)/1800, (-2 + 3*SQRT6)/225],
                              [(296 + 169*SQRT6)/1800, (88 + 7*SQRT6)/360, (-2 - 3*SQRT6)/225],
                              [(16 - SQRT6)/36, (16 + SQRT6)/36, 1/9]], b=[(16 - SQRT6)/36, (16 + SQRT6)/36, 1/9], order=5,
                 structure="coupled", r_infinity=0, source=HW + ", table IV.5.6")

LOBATTO_IIIC4 = Tableau("lobatto_iiic4", A=[[1/6, -1/3, 1/6], [1/6, 5/12, -1/12], [1/6, 2/3, 1/6]], b=[1/6, 2/3, 1/6], order=4,
                        structure="coupled", r_infinity=0, source=HW + ", table IV.5.11")

# In the order of tables, plots and the command line. A family is a function of its parameters that returns a Tableau.
CATALOGUE = (EXPLICIT_EULER, MIDPOINT, HEUN, RALSTON2, KUTTA3, SSPRK33, RK4, RK38, SSPRK104, DOPRI5, rkc1, rkc2,
             IMPLICIT_EULER, TRAPEZOID, IMPLICIT_MIDPOINT, theta, SDIRK2, SDIRK3, NORSETT3, TR_BDF2,
             GAUSS4, GAUSS6, RADAU3, RADAU5, LOBATTO_IIIC4)
