"""Whether a step inherits from its field that distances do not grow: a theorem for each answer, or a refusal.

The field says what is proven of it, the scheme brings its coefficients; no scheme is known by its name. In L2:

- Algebraic stability, b >= 0 and M = diag(b) A + A^T diag(b) - b b^T >= 0: non-expansive at every h where mu_2 <= 0.
- <f(x) - f(y), x - y> <= -||f(x) - f(y)||^2/L, as gradient flows have it: with the differences of stages and slopes,
  ||dy_1||^2 = ||dy||^2 + 2h sum b_i <dY_i, df_i> - h^2 sum m_ij <df_i, df_j>, where <dY_i, df_i> <= -||df_i||^2/L, so that
  (2/(hL)) diag(b) + M >= 0 is enough: h L at most 2 over minus the least eigenvalue of diag(b)^-1/2 M diag(b)^-1/2.
- A skew linear field is normal with eigenvalues i w, |w| <= ||S||: the factor is the largest |R(i h w)|.

In every norm: where y + h0 f(y) is non-expansive, absolute monotonicity at r = h/h0 writes the step as convex combinations of
such steps. For implicit Euler that holds at every r. A splitting multiplies the factors of its moves.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.optimize import minimize

from odenets.schemes import Scheme, Tableau, get_scheme
from stability.errors import InputError
from stability.methods.exits import first_exits

ROUNDING = 1e-14  # of the eigenvalues of M, a few numbers of modulus about 1
HW = "Hairer & Wanner II (1996)"


@runtime_checkable
class Constants(Protocol):
    """What a field says of itself in one norm; see `odenets.nets.monotone.Constants`."""

    mu: float
    forward: float
    lipschitz: float
    skew: bool
    reason: str


Shape = tuple[int, int, int]


@runtime_checkable
class ProvenField(Protocol):
    """A field that says what is proven of it, in L2 (p = 2) and in L-infinity."""

    def constants(self, p: float, shape: Shape | None = None, /) -> Constants:
        """Its constants in one norm."""
        ...


@runtime_checkable
class SplitField(Protocol):
    """A field that says its parts."""

    @property
    def parts(self) -> tuple[ProvenField, ProvenField]:
        """(skew, dissipative), which add up to the field."""
        ...


@dataclass(frozen=True)
class Contraction:
    """What a step of a scheme does to the distance of two states, provably.

    factor: Lipschitz constant of the exact step in L2; inf where nothing is proven in L2. factor_inf: the same in L-infinity.
    residual: a step whose equations are solved up to residuals r_1, r_2, ... ends within residual * (||r_1|| + ||r_2|| + ...)
        of the exact step, in L2; residual_inf in L-infinity. 0 for explicit steps, inf where no constant is proven.
    reason: why, in one sentence for each norm. source: of the theorem.
    """

    factor: float
    factor_inf: float
    residual: float
    residual_inf: float
    reason: str
    source: str


@dataclass(frozen=True)
class _Proof:
    """In one norm. A factor of inf is a refusal, for the reason given."""

    factor: float = math.inf
    residual: float = math.inf
    reason: str = ""
    source: str = ""

    @property
    def holds(self) -> bool:
        return self.factor < math.inf


def contraction(scheme: str | Scheme | Tableau, field: object, step_size: float, shape: Shape | None = None) -> Contraction:
    """The proven Lipschitz constants of a step of `scheme` with step size h on `field`.

    Args:
        scheme: A spec or a `Scheme`.
        field: A field that says its constants: `constants(p, shape)` for p = 2 and inf, as those of `odenets.nets.monotone` do.
        step_size: h > 0.
        shape: Channels, height and width of the states, where the constants shall be those of such states alone: tighter.

    Returns:
        A `Contraction`, proven in L2, in L-infinity or in both.

    Raises:
        ValueError: Nothing is proven in either norm, with the reasons; or a step size that is not positive and finite.

    Source: Burrage & Butcher (1979); Crouzeix (1979); Dahlquist & Jeltsch (1979); Sanz-Serna & Zygalakis (2020), Contractivity
    of Runge-Kutta methods for convex gradient systems, SIAM J. Numer. Anal. 58; Kraaijevanger (1991), BIT 31.
    """
    scheme = get_scheme(scheme)
    if not 0 < step_size < math.inf:
        raise InputError(f"step_size must be positive and finite, got {step_size}")
    if not isinstance(field, ProvenField):
        raise InputError(
            f"{type(field).__name__} says no one-sided constants, so nothing is proven of its steps: take a field that has "
            "constants(p, shape), such as skew, gradient_flow, monotone or inf_monotone"
        )
    proofs = {p: _proof(scheme, field, step_size, p, shape) for p in (2, math.inf)}
    if not any(proof.holds for proof in proofs.values()):
        refusals = "; ".join(f"in {_name(p)}, {proof.reason}" for p, proof in proofs.items())
        raise InputError(
            f"no step of {scheme} with h = {step_size:g} on {type(field).__name__} is proven to contract: {refusals}"
        )
    held = {p: proof for p, proof in proofs.items() if proof.holds}
    return Contraction(
        proofs[2].factor,
        proofs[math.inf].factor,
        proofs[2].residual,
        proofs[math.inf].residual,
        "; ".join(f"in {_name(p)}, {proof.reason}" for p, proof in held.items()),
        "; ".join(dict.fromkeys(proof.source for proof in held.values())),
    )


def _name(p: float) -> str:
    return "L2" if p == 2 else "L-infinity"


def _proof(scheme: Scheme, field: ProvenField, h: float, p: float, shape: Shape | None) -> _Proof:
    if scheme.moves:
        return _of_moves(scheme, field, h, p, shape)
    constants = field.constants(p, shape)
    if scheme.tableau is not None:
        return (_in_L2 if p == 2 else _in_any_norm)(scheme.tableau, constants, h)
    if scheme.adaptive:
        return _Proof(reason="its step sizes depend on the state, so that a step is no one map of it")
    if not scheme.one_step:
        return _Proof(reason="a multistep scheme maps several states to one: its steps are no map of one state")
    if not (scheme.has_R and scheme.analytic):
        return _Proof(reason="its iteration is cut short, and what is left of the equation is not monotone")
    if constants.skew and p == 2:
        return _of_skew(scheme, constants, h)
    return _Proof(
        reason="it steps with the Jacobian at the start of the step, which jumps at a kink of ReLU: on linear skew fields in "
        "L2 alone that is proven"
    )


def _of_moves(scheme: Scheme, field: ProvenField, h: float, p: float, shape: Shape | None) -> _Proof:
    """The product of the factors; the residuals of a move pass through those behind it."""
    if not isinstance(field, SplitField):
        return _Proof(reason="it splits fields that say their parts, skew and dissipative, and this one says none")
    factor, residual, reasons, sources = 1.0, 0.0, [], []
    for part, move, share in scheme.moves:
        proof = _proof(move, field.parts[part], share * h, p, shape)
        if not proof.holds:
            return _Proof(reason=f"of its move {move}: {proof.reason}")
        factor, residual = factor * proof.factor, max(residual * proof.factor, proof.residual)
        reasons.append(f"{move}: {proof.reason}")
        sources.append(proof.source)
    return _Proof(factor, residual, "; ".join(dict.fromkeys(reasons)), "; ".join(dict.fromkeys(sources)))


def _in_L2(tableau: Tableau, constants: Constants, h: float) -> _Proof:
    if not constants.mu <= 0:
        return _Proof(reason=f"the field is not known to have mu <= 0: {constants.reason}")
    residual = inexact(tableau).residual
    if _is_algebraically_stable(tableau):
        return _Proof(
            _strictly(tableau, constants.mu, h),
            residual,
            f"algebraically stable steps of any size do not expand a field with mu <= 0; {constants.reason}",
            f"Burrage & Butcher (1979); Crouzeix (1979); {HW}, theorem IV.12.4",
        )
    reasons = ["the scheme is not algebraically stable"]
    if constants.forward > 0:
        limit = cocoercive_limit(tableau) * constants.forward / 2
        # The field's bound is enlarged by more than what is forgiven here.
        if h <= limit * (1 + 1e-12):
            return _Proof(
                1.0,
                residual,
                f"h <= {limit:.6g}, where (2/(hL)) diag(b) + M >= 0 with L = {2 / constants.forward:.6g}; {constants.reason}",
                "Dahlquist & Jeltsch (1979); Sanz-Serna & Zygalakis (2020), SIAM J. Numer. Anal. 58",
            )
        reasons.append(f"for L = {2 / constants.forward:.6g} it is proven up to h = {limit:.6g}")
    if constants.skew:
        return _of_skew(get_scheme(tableau), constants, h, residual)
    return _Proof(reason=", and ".join(reasons))


def _of_skew(scheme: Scheme, constants: Constants, h: float, residual: float = math.inf) -> _Proof:
    limit = float(first_exits(scheme, np.array([1j]))[0]) / constants.lipschitz if constants.lipschitz else math.inf
    if h > limit:
        return _Proof(reason=f"on the imaginary axis |R| <= 1 up to h = {limit:.6g} for ||S|| = {constants.lipschitz:.6g}")
    return _Proof(
        1 + 1e-10,  # what counts as |R| <= 1 there
        residual,
        f"|R(ihw)| <= 1 for all |w| <= ||S|| = {constants.lipschitz:.6g}; {constants.reason}",
        f"{HW}, section IV.3",
    )


def _in_any_norm(tableau: Tableau, constants: Constants, h: float) -> _Proof:
    """With alpha = r K (I + rK)^-1 and v = (I + rK)^-1 1, ||dY|| <= v ||dy|| + alpha ||dY|| row by row, r = h/h0."""
    if not constants.mu <= 0:
        return _Proof(reason=f"the field is not known to have mu <= 0: {constants.reason}")
    s, r = tableau.stages, h / constants.forward if constants.forward else math.inf
    if r == math.inf:
        return _Proof(reason=f"no explicit step of the field is proven non-expansive: {constants.reason}")
    if tableau.structure == "coupled":
        return _Proof(reason="coupled stages are not absolutely monotonic, and their equations not known to be solvable there")
    K = np.zeros((s + 1, s + 1))
    K[:s, :s], K[s, :s] = tableau.A, tableau.b
    inverse = np.linalg.inv(np.eye(s + 1) + r * K)
    alpha, v = np.abs(r * K @ inverse), np.abs(inverse.sum(1))
    factors = np.zeros(s + 1)  # of the stages, and of the new state, each from those before it
    for i in range(s + 1):
        factors[i] = (v[i] + alpha[i, :i] @ factors[:i]) / (1 - alpha[i, i]) if alpha[i, i] < 1 else math.inf
    if factors[s] > 1 + 1e-9:
        return _Proof(
            reason=f"it is not absolutely monotonic at r = h/h0 = {r:.6g}, where h0 = {constants.forward:.6g} is the "
            "largest non-expansive explicit step"
        )
    return _Proof(
        min(max(1.0, factors[s]), _strictly(tableau, constants.mu, h)) if constants.mu < 0 else max(1.0, float(factors[s])),
        inexact(tableau).residual if np.count_nonzero(np.diag(tableau.A)) <= 1 else math.inf,
        f"absolutely monotonic at r = h/h0 = {r:.6g}; {constants.reason}",
        "Spijker (1983); Kraaijevanger (1991), BIT 31, theorem 4.2; Soderlind (2006), BIT 46",
    )


def _strictly(tableau: Tableau, mu: float, h: float) -> float:
    """The factor of one stage, whose resolvent contracts by 1/(1 - a h mu): |1 - b/a| + (b/a)/(1 - a h mu), or 1."""
    if tableau.stages > 1 or not tableau.implicit:
        return 1.0
    a, share = float(tableau.A[0, 0]), float(tableau.b[0] / tableau.A[0, 0])
    return min(1.0, abs(1 - share) + abs(share) / (1 - a * h * mu)) if a > 0 else 1.0


def _is_algebraically_stable(tableau: Tableau) -> bool:
    return bool(tableau.b.min() >= 0 and np.linalg.eigvalsh(_algebraic_matrix(tableau)).min() >= -ROUNDING)


def _algebraic_matrix(tableau: Tableau) -> np.ndarray:
    weighted = tableau.b[:, None] * tableau.A
    return weighted + weighted.T - np.outer(tableau.b, tableau.b)


def cocoercive_limit(tableau: Tableau) -> float:
    """The largest h L with (2/(hL)) diag(b) + M >= 0: inf where M >= 0, 0 where no step is.

    A stage that b leaves out has no slope to pay with, so that its row of M must vanish.
    """
    M, b = _algebraic_matrix(tableau), tableau.b
    used = b > ROUNDING
    if b.min() < -ROUNDING or np.abs(M[~used]).max(initial=0) > ROUNDING:
        return 0.0
    root = np.sqrt(b[used])
    least = np.linalg.eigvalsh(M[np.ix_(used, used)] / np.outer(root, root)).min()
    return math.inf if least >= -ROUNDING else float(-2 / least)


@dataclass(frozen=True)
class Inexact:
    """What becomes of errors in the stages of a tableau, on fields with mu_2 <= 0, whatever the step size; see `inexact`.

    residual: the end of a step is off by so many times the norm of the residuals of all stage equations. stage: the same for
    any one implicit stage. start, slope, zero: no stage is longer than start ||y|| + slope ||h f(y)|| + zero ||h f(0)||, with
    slope of explicit stages in front alone. end_slope: the end is off by so many times an error of h f(y) there. end_zero: the
    step from 0 is that times ||h f(0)|| long at most. weights: D^1/2 of the implicit stages, with D A^-1 + A^-T D positive
    definite. Where no such D is found all are inf, and there are no weights.
    """

    residual: float = math.inf
    stage: float = math.inf
    start: float = math.inf
    slope: float = math.inf
    zero: float = math.inf
    end_slope: float = math.inf
    end_zero: float = math.inf
    weights: tuple[float, ...] = ()


@cache
def inexact(tableau: Tableau) -> Inexact:
    """How residuals of the stage equations, and of what stands in front of them, move a step where mu_2 <= 0.

    Let the implicit stages Y = 1 y + e V + A h K hold for the slopes as the step takes them, V = h f(y) that of explicit stages
    in front, B the block diagonal of A that is solved for, and rho = B (h K - h f(Y)) the residuals, all of them stacked. The
    difference E to the exact stages Y* has A^-1 E = h (f(Y) - f(Y*)) + B^-1 rho. For a diagonal D > 0 monotonicity, stage by
    stage, says <E, f(Y) - f(Y*)>_D <= 0, so that alpha ||E||_D^2 <= <E, A^-1 E>_D <= ||E||_D ||D^1/2 B^-1|| ||rho||, alpha
    being the least eigenvalue of the symmetric part of D^1/2 A^-1 D^-1/2. The step ends off by b^T h (K - K*) = (A^-T b)^T E.
    In the same way the exact stages, A^-1 (Y* - 1 y - e V) = h f(Y*), are bounded by comparing them with 0. Any D with
    alpha > 0 proves constants, and the best that a search finds is taken. That diagonally implicit schemes solve one equation
    after the other does not matter: the proof has them all at once.

    Source: Hairer & Wanner II (1996), section IV.14, for alpha and D; Frank, Schneid, Ueberhuber (1985), Stability properties
    of implicit Runge-Kutta methods, SIAM J. Numer. Anal. 22, where `stage` and `residual` are BSI- and BS-stability.
    """
    if not tableau.implicit:
        return Inexact(0.0)
    solved = tableau.A.any(axis=1)
    first = int(solved.argmax())
    blocks = [(start, stop) for start, stop in tableau.blocks if stop > first]
    A, b, front = tableau.A[first:, first:], tableau.b[first:], tableau.A[first:, :first].sum(1)
    if not solved[first:].all() or any(not tableau.A[i:j, i:j].any() for i, j in blocks):
        return Inexact()  # an explicit stage behind an implicit one: its error has no bound without a Lipschitz constant
    if np.linalg.eigvals(A).real.min() <= ROUNDING:
        return Inexact()  # no D can be: it puts the eigenvalues of A to the right. One stage with a < 0 is no resolvent
    inverse, B = np.linalg.inv(A), np.zeros_like(A)
    for i, j in blocks:
        B[i - first : j - first, i - first : j - first] = tableau.A[i:j, i:j]
    reach, end = np.linalg.inv(B), inverse.T @ b

    def least(d: np.ndarray) -> float:
        scaled = d[:, None] * inverse / d
        return float(np.linalg.eigvalsh((scaled + scaled.T) / 2).min())

    def constant(logs: np.ndarray) -> float:
        d = np.exp(logs / 2)
        alpha = least(d)
        if alpha <= 1e-6:
            return 1e9 - 1e8 * alpha
        return float(np.linalg.norm(end / d) * np.linalg.norm(d[:, None] * reach, 2)) / alpha

    if len(b) == 1:  # a resolvent, of which all this holds in every norm
        d = np.ones(1)
    else:
        starts = np.random.default_rng(0).normal(size=(6, len(b)))
        options = {"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9}
        best = min((minimize(constant, start, method="Nelder-Mead", options=options) for start in starts), key=lambda r: r.fun)
        if not best.fun < 1e6:
            return Inexact()
        d = np.exp(best.x / 2)
        d = d / d.min()
    slack = (1 + 1e-9 * (len(b) > 1)) / least(d)
    last, behind = float(np.linalg.norm(end / d)), abs(float(tableau.b[:first].sum() - end @ front))
    solving, start = float(np.linalg.norm(d[:, None] * reach, 2)) * slack, float(np.linalg.norm(d * inverse.sum(1))) * slack
    slope, zero = float(np.linalg.norm(d * (inverse @ front))) * slack, float(np.linalg.norm(d)) * slack
    return Inexact(
        residual=solving * last,
        stage=solving,
        start=start,
        slope=slope,
        zero=zero,
        end_slope=behind + last * slope,
        end_zero=behind + last * (slope + zero),
        weights=tuple(d.tolist()),
    )
