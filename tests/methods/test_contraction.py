"""Contraction of a step: verdicts against what is published, and an ascent that tries to break each of them."""

import math

import numpy as np
import pytest
import torch
from certified import SHAPE, field, size, worst_ratio

import odenets
import stability
from odenets.solve.log import Guesses
from stability.methods.contraction import cocoercive_limit, inexact

STABLE = ["implicit_euler", "implicit_midpoint", "gauss4", "gauss6", "radau3", "radau5", "lobatto_iiic4", "norsett3"]
# h L up to which steps on gradient flows are proven, to the digits given: Sanz-Serna & Zygalakis (2020), Dahlquist & Jeltsch.
LIMITS = {
    "explicit_euler": 2,
    "heun": 2,
    "ssprk33": 2,
    "rk4": 2,
    "ralston2": 1.58,
    "kutta3": 1,
    "rk38": 0.93,
    "ssprk104": 12,
    "rkc1": 2.89,
    "trapezoid": 4,
    "theta": 4,
    "tr_bdf2": 5.56,
    "sdirk2": 16.5,
    "midpoint": 0,
    "dopri5": 0,
    "rkc2": 0,
    "sdirk3": 0,
}


def tight(name):
    return f"{name}(tol=1e-13,max_iterations=400,solver=newton)" if odenets.get_scheme(name).solves else name


@pytest.mark.parametrize("name", [n for n in odenets.list_schemes() if odenets.get_scheme(n).tableau is not None])
def test_limits_on_gradient_flows(name):
    """2 over minus the least eigenvalue of diag(b)^-1/2 M diag(b)^-1/2, here by bisection on the definition instead."""
    tableau = odenets.get_scheme(name).tableau
    A, b = tableau.A, tableau.b
    M = np.diag(b) @ A + A.T @ np.diag(b) - np.outer(b, b)

    def proven(hL):
        return b.min() >= 0 and np.linalg.eigvalsh(2 / hL * np.diag(b) + M).min() >= -1e-12

    if name in STABLE:
        assert proven(1e9) and cocoercive_limit(tableau) == math.inf
        return
    low, high = 1e-9, 1e3
    for _ in range(100):
        low, high = ((low + high) / 2, high) if proven((low + high) / 2) else (low, (low + high) / 2)
    assert cocoercive_limit(tableau) == pytest.approx(low if low > 1e-6 else 0, rel=1e-6)
    assert cocoercive_limit(tableau) == pytest.approx(LIMITS[name], rel=0.004)


@pytest.mark.parametrize("h", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize("spec", ["gradient_flow", "monotone", "skew"])
def test_algebraically_stable_schemes_contract_at_every_step_size(name, h, spec):
    proof = stability.contraction(name, field(spec), h)
    assert proof.factor == 1 and proof.factor_inf == math.inf and "Burrage" in proof.source
    assert (proof.residual < 30) == (name != "lobatto_iiic4")  # for which no constant is known


@pytest.mark.parametrize("name", [n for n, limit in LIMITS.items() if limit])
def test_others_up_to_their_limit_and_not_beyond(name):
    flow = field("gradient_flow")
    limit = cocoercive_limit(odenets.get_scheme(name).tableau) * flow.constants(2, SHAPE).forward / 2
    assert stability.contraction(name, flow, limit, SHAPE).factor == 1
    assert worst_ratio(odenets.ODEStage(flow, tight(name), interval=limit), count=20, rounds=12) <= 1 + 1e-9
    with pytest.raises(odenets.InputError, match=f"is proven up to h = {limit:.6g}"):
        stability.contraction(name, flow, 1.001 * limit, SHAPE)
    assert stability.contraction(name, flow, 0.9 * limit, SHAPE).factor == 1
    with pytest.raises(odenets.InputError, match="not algebraically stable"):
        stability.contraction(name, field("monotone"), limit, SHAPE)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("midpoint", "proven up to h = 0"),
        ("rkc2", "proven up to h = 0"),
        ("dopri5", "proven up to h = 0"),
        ("sdirk3", "proven up to h = 0"),
        ("rosenbrock_euler", "Jacobian at the start of the step"),
        ("ros2", "Jacobian at the start of the step"),
        ("exponential_euler", "Jacobian at the start of the step"),
        ("adaptive", "step sizes depend on the state"),
        ("ab2", "multistep"),
        ("bdf2", "multistep"),
        ("lm_resnet", "multistep"),
        ("ie_skip", "cut short"),
        ("splitting", "splits fields that say their parts"),
    ],
)
def test_what_has_no_proof_is_refused_with_the_reason(name, reason):
    flow = field("gradient_flow", gain=3.0)
    h = 1.9 * flow.constants(2, SHAPE).forward / 2
    with pytest.raises(ValueError, match=reason):
        stability.contraction(name, flow, h, SHAPE)
    if name in ("midpoint", "rkc2"):  # and indeed
        assert worst_ratio(odenets.ODEStage(flow, tight(name), interval=h)) > 1.001


def test_bad_input():
    with pytest.raises(odenets.InputError, match="Block says no one-sided constants"):
        stability.contraction("implicit", field("residual"), 1.0)
    for h in (0, -1, math.inf, math.nan):
        with pytest.raises(odenets.InputError, match="step_size must be positive and finite"):
            stability.contraction("implicit", field("skew"), h)
    with pytest.raises(odenets.InputError, match="unknown scheme"):
        stability.contraction("implict", field("skew"), 1.0)


def test_skew_fields():
    """Linear and normal: |R| on the imaginary axis decides, for every scheme that has an R."""
    turn = field("skew")
    unit = 1 / turn.constants(2, SHAPE).lipschitz
    assert stability.contraction("rk4", turn, 2.82 * unit, SHAPE).factor <= 1 + 1e-9
    for name in ("trapezoid", "sdirk2", "rosenbrock_euler", "exponential_euler"):
        assert stability.contraction(name, turn, 100 * unit, SHAPE).factor <= 1 + 1e-9
    for name, h in (("explicit_euler", 1e-3), ("rk4", 2.83)):
        with pytest.raises(odenets.InputError, match="imaginary axis"):
            stability.contraction(name, turn, h * unit, SHAPE)
    turned = odenets.ODEStage(turn, tight("implicit_midpoint"), interval=100 * unit)
    assert worst_ratio(turned, rounds=5) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("composition", ["lie", "strang"])
@pytest.mark.parametrize("skew", ["implicit_midpoint", "exponential_euler"])
def test_splitting_takes_the_explicit_step_at_its_limit(composition, skew):
    spec = f"splitting(tol=1e-13,max_iterations=400,solver=newton,composition={composition},skew={skew})"
    monotone = field("monotone", gain=2.0)
    limit = monotone.flow.constants(2, SHAPE).forward
    proof = stability.contraction(spec, monotone, limit, SHAPE)
    assert proof.factor <= 1 + 1e-9 and (proof.residual == 2) == (skew == "implicit_midpoint")
    assert worst_ratio(odenets.ODEStage(monotone, spec, interval=limit), count=20, rounds=8) <= 1 + 1e-9
    with pytest.raises(odenets.InputError, match="of its move .*: .*it is proven up to h"):
        stability.contraction(spec, monotone, 1.001 * limit, SHAPE)


@pytest.mark.parametrize("reach", [1.0, 5.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_in_L_infinity_implicit_euler_is_alone_beyond_the_explicit_limit(reach):
    f = field("inf_monotone", gain=3.0)
    limit = f.constants(math.inf).forward
    proof = stability.contraction("implicit_euler", f, reach * limit)
    assert proof.factor_inf == pytest.approx(1, abs=1e-12) and proof.factor == math.inf and proof.residual_inf == 1
    assert worst_ratio(odenets.ODEStage(f, tight("implicit_euler"), interval=reach * limit), p=math.inf, rounds=20) <= 1 + 1e-9
    for name in ("implicit_midpoint", "explicit_euler", "radau3", "gauss4", "sdirk2"):
        if reach == 1 and name in ("explicit_euler", "implicit_midpoint", "sdirk2"):
            assert stability.contraction(name, f, limit).factor_inf == pytest.approx(1, abs=1e-11)
        else:
            with pytest.raises(odenets.InputError, match="absolutely monotonic"):
                stability.contraction(name, f, reach * limit)
    if reach == 20:  # and indeed
        for name in ("explicit_euler", "implicit_midpoint"):
            assert worst_ratio(odenets.ODEStage(f, tight(name), interval=reach * limit), p=math.inf, rounds=10) > 1.02


def test_the_limits_in_L_infinity_are_ssp_coefficients():
    f = field("inf_monotone")
    limit = f.constants(math.inf).forward
    for name in ("explicit_euler", "heun", "ssprk33", "ssprk104", "ralston2", "trapezoid", "implicit_midpoint", "sdirk2"):
        ssp = stability.region(name).ssp
        assert stability.contraction(name, f, ssp * limit * (1 - 1e-6)).factor_inf <= 1 + 1e-9
        with pytest.raises(odenets.InputError, match="absolutely monotonic"):
            stability.contraction(name, f, ssp * limit * (1 + 1e-6))


def test_strict_monotonicity_contracts():
    class Damped:
        def constants(self, p, shape=None):
            from odenets.nets.monotone import Constants

            return Constants(mu=-0.5, forward=0.4, reason="for the test")

    assert stability.contraction("implicit", Damped(), 4.0).factor == pytest.approx(1 / 3)
    assert stability.contraction("implicit", Damped(), 4.0).factor_inf == pytest.approx(1 / 3)
    assert stability.contraction("implicit_midpoint", Damped(), 0.5).factor == 1


@pytest.mark.parametrize("name", [n for n in odenets.list_schemes() if odenets.get_scheme(n).implicit])
def test_residuals_move_the_end_of_a_step_by_no_more_than_their_constant(name):
    """On linear monotone fields the end of a step is linear in the residuals: the norm of that map stays below the constant."""
    tableau = odenets.get_scheme(name).tableau
    if tableau is None or (constant := inexact(tableau).residual) == math.inf:
        return
    first = int(tableau.A.any(axis=1).argmax())  # the stages before are explicit, and exact
    A, b, s = tableau.A[first:, first:], tableau.b[first:], tableau.stages - first
    B = np.zeros_like(A)
    for i, j in tableau.blocks:
        if i >= first:
            B[i - first : j - first, i - first : j - first] = A[i - first : j - first, i - first : j - first]
    generator, largest, n = np.random.default_rng(0), 0.0, 3
    for h in (0.1, 1.0, 10.0, 1e3):
        for _ in range(40):
            K, S = generator.normal(size=(2, n, n))
            M = generator.random() * (S - S.T) - generator.random() * K.T @ K
            stages = np.linalg.solve(np.eye(s * n) - h * np.kron(A, M), np.kron(A @ np.linalg.inv(B), np.eye(n)))
            end = np.kron((np.linalg.inv(A).T @ b)[None], np.eye(n)) @ stages
            largest = max(largest, np.linalg.norm(end, 2))
    assert largest <= constant * (1 + 1e-9) and constant <= 20 * largest
    published = {"implicit_euler": 1, "implicit_midpoint": 2, "radau3": 6.0, "gauss4": 7.7, "radau5": 39, "gauss6": 45}
    assert constant <= published.get(name, math.inf)


@pytest.mark.parametrize(
    ("A", "b"),
    [([[-0.1]], [1]), ([[0, 0], [1, -0.1]], [0.6, 0.4]), ([[1, 0], [1, 0]], [0.5, 0.5]), ([[0, 1], [-1, 0]], [0.5, 0.5])],
)
def test_no_constant_where_an_equation_is_no_resolvent(A, b):
    """With a < 0 the equation is not monotone, and its error E = a h df + rho is longer than rho; singular blocks likewise."""
    constants = inexact(odenets.Tableau("own", A, b, order=1, structure="coupled", source="for the test"))
    assert constants.residual == math.inf and not constants.weights


SOLVING = ["implicit_euler", "implicit_midpoint", "norsett3", "gauss4", "gauss6", "radau3", "radau5"]


def sums(matrix, vectors):
    return torch.einsum("kl,bl...->bk...", torch.tensor(matrix), vectors)


def of_slopes(tableau, flow, h, y, V):
    """(the end of a step that takes the slopes V, the norm of the residuals of all its equations)."""
    off = V - h * torch.stack([flow(0.0, stage) for stage in (y[:, None] + sums(tableau.A, V)).unbind(1)], 1)
    B = np.zeros_like(tableau.A)
    for i, j in tableau.blocks:
        B[i:j, i:j] = tableau.A[i:j, i:j]
    return y + sums(tableau.b[None], V)[:, 0], sums(B, off).flatten(1).norm(dim=1)


def slopes_of_a_solve(tableau, stage, y):
    """(the end, V) of a step as the stage takes it, from the increments that its solves ended with."""
    guesses, V = Guesses(), []
    end = stage(y, guesses=guesses)
    for (i, j), (increments, _) in zip(tableau.blocks, guesses.found()):
        V.append(sums(np.linalg.inv(tableau.A[i:j, i:j]), increments[:, None] if j - i == 1 else increments))
    return end, torch.cat(V, 1)


@pytest.mark.parametrize("tol", [1e-3, 0.3])
@pytest.mark.parametrize("name", SOLVING)
def test_what_counts_as_converged_may_expand_and_its_residual_says_by_how_much(name, tol):
    flow, generator = field("gradient_flow", gain=2.0), torch.Generator().manual_seed(0)
    tableau = odenets.get_scheme(name).tableau
    h, c = 20 * flow.constants(2, SHAPE).forward / 2, inexact(tableau).residual
    stage = odenets.ODEStage(flow, f"{name}(tol={tol})", interval=h)
    x, d = torch.randn(2, 100, *SHAPE, generator=generator, dtype=torch.float64)
    d = d * torch.randn(100, 1, 1, 1, generator=generator, dtype=torch.float64).mul(1.5).sub(1).exp()

    def run(y):
        end, V = slopes_of_a_solve(tableau, stage, y)
        again, rho = of_slopes(tableau, flow, h, y, V)
        torch.testing.assert_close(end, again)
        return end, rho

    expanded = False
    with torch.no_grad():
        for _ in range(4):
            (a, rho_a), (b, rho_b) = run(x), run(x + d)
            apart, before = (b - a).flatten(1).norm(dim=1), d.flatten(1).norm(dim=1)
            assert ((apart - c * (rho_a + rho_b)) <= before * (1 + 1e-9)).all()
            expanded |= bool((apart > before * (1 + 1e-9)).any())
            d = (b - a) / apart.clamp_min(1e-12).view(-1, 1, 1, 1) * before.view(-1, 1, 1, 1)
    assert tol < 0.3 or expanded  # a relative tolerance certifies nothing


@pytest.mark.parametrize("name", SOLVING)
@pytest.mark.parametrize("spec", ["gradient_flow", "monotone"])
def test_no_slopes_whatsoever_part_two_states_by_more_than_their_residuals_pay_for(name, spec):
    """An ascent in both states and in all slopes, from those of loose and of tight solves: no solver could do worse."""
    flow, generator = field(spec, gain=2.0), torch.Generator().manual_seed(1)
    tableau = odenets.get_scheme(name).tableau
    h, c, found = 1.0, inexact(tableau).residual, list[list[torch.Tensor]]()
    for settings in ("tol=0.3", "tol=1e-9,max_iterations=300,solver=newton"):
        stage = odenets.ODEStage(flow, f"{name}({settings})", interval=h)
        x, d = torch.randn(2, 12, *SHAPE, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found.append([x, d, *(slopes_of_a_solve(tableau, stage, y)[1] for y in (x, x + d))])
    free = [torch.cat(both) for both in zip(*found)]
    best, rate = torch.full((24,), -math.inf, dtype=torch.float64), 0.3
    for _ in range(60):
        x, d, V, W = free = [v.detach().requires_grad_() for v in free]
        (a, rho_a), (b, rho_b) = of_slopes(tableau, flow, h, x, V), of_slopes(tableau, flow, h, x + d, W)
        ratio = (size(b - a, 2) - c * (rho_a + rho_b)) / size(d, 2)
        best = torch.maximum(best, ratio.detach())
        gradients = torch.autograd.grad(ratio.sum(), free)
        with torch.no_grad():  # steps in units of d
            rates = rate * size(d, 2)
            for n, (v, g) in enumerate(zip(free, gradients)):
                free[n] = v + (rates / size(g, 2).clamp_min(1e-30)).view(-1, *[1] * (v.dim() - 1)) * g
        rate *= 0.93
    assert 0.3 < best.max() <= 1 + 1e-9


@pytest.mark.parametrize("name", [*SOLVING, "trapezoid", "tr_bdf2", "sdirk2"])
def test_stages_and_the_step_from_zero_are_no_longer_than_their_bounds(name):
    flow, tableau, h = field("gradient_flow", gain=1.5), odenets.get_scheme(name).tableau, 0.5
    k, y = inexact(tableau), torch.randn(40, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stage = odenets.ODEStage(flow, f"{name}(tol=1e-12,max_iterations=300,solver=newton)", interval=h)
    zero = size(h * flow(0.0, 0 * y), 2)
    with torch.no_grad():
        for scale in (0.0, 1e-2, 1.0):
            first = int(tableau.A.any(1).argmax())
            V = [h * flow(0.0, scale * y)] * first
            for i, j in tableau.blocks[first:]:  # fixed points of the equations, one block after the other
                base = scale * y[:, None] + sums(tableau.A[i:j, :i], torch.stack(V, 1) if V else y.new_empty(40, 0, *SHAPE))
                own = torch.zeros(40, j - i, *SHAPE, dtype=torch.float64)
                for _ in range(400):
                    stages = base + sums(tableau.A[i:j, i:j], own)
                    own = own + 0.1 * (h * torch.stack([flow(0.0, s) for s in stages.unbind(1)], 1) - own)
                V += own.unbind(1)
            stages = scale * y[:, None] + sums(tableau.A, torch.stack(V, 1))
            longest = k.start * size(scale * y, 2) + k.slope * size(h * flow(0.0, scale * y), 2) + k.zero * zero
            assert (stages.flatten(2).norm(dim=2) <= longest[:, None] * (1 + 1e-6)).all()
            end = stage(scale * y)
            torch.testing.assert_close(end, scale * y + sums(tableau.b[None], torch.stack(V, 1))[:, 0], rtol=1e-4, atol=1e-5)
            assert scale or (size(end, 2) <= k.end_zero * zero * (1 + 1e-6)).all()
