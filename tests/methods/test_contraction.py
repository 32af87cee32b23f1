"""Contraction of a step: verdicts against what is published, and an ascent that tries to break each of them."""

import math

import numpy as np
import pytest
from certified import SHAPE, field, worst_ratio

import odenets
import stability
from stability.methods.contraction import cocoercive_limit

STABLE = ["implicit_euler", "implicit_midpoint", "gauss4", "gauss6", "radau3", "radau5", "lobatto_iiic4", "norsett3"]
# h L up to which steps on gradient flows are proven, to the digits given: Sanz-Serna & Zygalakis (2020) and the references there.
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


@pytest.mark.parametrize("reach", [1.0, 5.0, 20.0])
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
