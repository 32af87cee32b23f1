"""What explain advises is done here, and measured: on linear networks with normal Jacobians, whose growth is the norm of their
matrix. And every cause is named, with its block."""

import math
import re

import numpy as np
import pytest
import torch

import odenets
import stability


def spiral(rate, frequency):
    """A 2 x 2 block with eigenvalues rate +- i frequency."""
    return np.array([[rate, frequency], [-frequency, rate]])


def blocks(*parts):
    """The matrix with these numbers and square blocks along its diagonal."""
    return torch.block_diag(*(torch.as_tensor(np.atleast_2d(part)) for part in parts))


def network(matrices, scheme="explicit", substeps=1, rate=0.0):
    return odenets.ODEStage([lambda t, y, M=M: y @ M.mT - rate * y for M in matrices], scheme, substeps=substeps)


def growth(matrices, **settings):
    """The largest growth of any perturbation through the network: the norm of its matrix."""
    return float(torch.linalg.matrix_norm(network(matrices, **settings)(torch.eye(len(matrices[0]), dtype=torch.float64)), 2))


def explained(matrices, **settings):
    return stability.explain(network(matrices, **settings), torch.ones(2, len(matrices[0]), dtype=torch.float64))


def remedies(sentence):
    """The settings of `network` that a sentence advises, a dict for each alternative."""
    substeps = [{"substeps": int(n)} for n in re.findall(r"(?:try|with) (\d+) substeps", sentence)]
    schemes = [{"scheme": name} for name in re.findall(r"A-stable scheme such as (\w+)", sentence)]
    rates = [{"rate": float(rate)} for rate in re.findall(r"damped\(rate=([0-9.e+]+)\)", sentence)]
    if rates:  # all at once
        return [{key: value for change in rates + substeps + schemes for key, value in change.items()}]
    return substeps + schemes


NETS = {
    "the field of the issue, 50 substeps": ([blocks(spiral(-0.01, 7.0))] * 3, {"substeps": 50}),
    "the field of the issue, 100 substeps": ([blocks(spiral(-0.01, 14.0))] * 3, {"substeps": 100}),
    "heun": ([blocks(spiral(-0.01, 35.0))] * 3, {"scheme": "heun", "substeps": 50}),
    "a rotation": ([blocks(spiral(0.0, 3.0))], {}),
    "a slow rotation": ([blocks(spiral(0.0, 0.3))], {}),
    "a rotation under rk4": ([blocks(spiral(0.0, 3.0))], {"scheme": "rk4"}),
    "many blocks that each grow hardly": ([blocks(spiral(-0.001, 0.1))] * 30, {}),
    "too long a step": ([blocks(-0.9, -0.5), blocks(-58.0, -1.0)], {}),
    "damping would leave the region": ([blocks(6.0, -0.1, -0.3, -0.5)] * 2, {}),
    "both in every block": ([blocks(6.0, -1.0, -3.0, -3.5)] * 2, {}),
    "expanding, then stiff": ([blocks(30.0, -0.1), blocks(-0.1, -25.0)], {}),
    "hardly expanding, then stiff": ([blocks(3.0, -0.1), blocks(-0.1, -25.0)], {}),
    "stiff, then expanding": ([blocks(-0.1, -5.0), blocks(9.0, -0.1)], {}),
    "a rotation that hardly expands": ([blocks(spiral(1e-3, 2.0))], {}),
    "near the pole of implicit euler": ([blocks(0.99, -0.1), blocks(-0.1, -6.0)], {}),
    "an implicit scheme": ([blocks(0.7, -3.0)] * 2, {"scheme": "implicit(tol=1e-10,max_iterations=100)"}),
    "stabilised": ([blocks(0.2, -40.0)] * 2, {"scheme": "rkc1"}),
}


@pytest.mark.parametrize("case", NETS)
def test_every_advice_taken_helps(case):
    matrices, settings = NETS[case]
    before, taken = growth(matrices, **settings), 0
    assert before > 1.01
    advice = explained(matrices, **settings).advice
    assert not any("non-normality" in sentence for sentence in advice)
    for sentence in advice:
        for change in remedies(sentence):
            after, taken = growth(matrices, **{**settings, **change}), taken + 1
            assert after < before, (sentence, change, before, after)
            if len(advice) == 1 or "rate" in change:
                assert after <= 1.0101, (sentence, change, after)
    assert taken


def test_growth_is_that_of_all_steps_of_all_blocks():
    matrices, settings = NETS["the field of the issue, 100 substeps"]
    found = explained(matrices, **settings)
    assert growth(matrices, **settings) == pytest.approx(17.85, abs=0.01)
    assert found.growth == pytest.approx(17.852 ** (1 / 3), rel=1e-3) and found.amplification**100 == pytest.approx(
        found.growth
    )
    text = str(found)
    assert "max |R(h\u03bb)| = 1.01 in a step and 2.61 over the block" in text
    assert "Here and in 2 other blocks the step is longer than the contracting modes allow" in text
    assert "try an A-stable scheme" in text  # 200 substeps still leave a growth of 4
    assert growth(matrices, substeps=200) > 4
    assert "Nothing grows" in str(explained(matrices, scheme="rk4", substeps=100))


def test_every_cause_is_named_with_its_block():
    matrices, _ = NETS["expanding, then stiff"]
    found = explained(matrices)
    assert (found.stage, found.block, found.amplification) == (0, 0, pytest.approx(31))
    step, field = found.advice
    assert step.startswith("In stage 0, block 1 the step is longer than the contracting modes allow, they grow 24-fold")
    assert field.startswith("Modes with Re \u03bb > 0 grow in the flow itself")
    # Shorter steps follow the flow, which grows by exp(30), more than explicit Euler does: that is no advice, though it
    # cures the second block.
    assert growth(matrices, substeps=13) > 1000 * growth(matrices) and "substeps instead" not in step
    step, field = explained([matrices[1], matrices[0] / 10, matrices[0] / 10]).advice
    assert step.startswith("The step") and field.startswith("In stage 0, block 1 and 1 other block modes with Re")


def test_damping_is_advised_as_it_helps_and_not_as_it_harms():
    matrices, _ = NETS["damping would leave the region"]
    assert growth(matrices) == pytest.approx(49) and growth(matrices, rate=7.0) > 40
    (sentence,) = explained(matrices).advice
    assert "field='damped(rate=7)' with 4 substeps or" in sentence and growth(matrices, rate=7.0, substeps=4) < 1
    (sentence,) = explained([blocks(0.73, -1.0, -0.2)]).advice
    assert "field='damped(rate=0.8)' or" in sentence
    (sentence,) = explained([blocks(0.73, -900.0)], scheme="rkc1(stages=25)").advice
    assert "damped(rate=0.8)' or" in sentence
    step, field = explained([blocks(0.73, -900.0)]).advice
    assert "damped(rate=0.8)' with an A-stable scheme such as implicit_euler" in field  # 451 steps would be no advice
    assert growth([blocks(0.73, -900.0)], rate=0.8, scheme="implicit_euler(tol=1e-10,max_iterations=100)") < 1


def test_a_rotation_grows_at_any_step_of_explicit_euler():
    found = explained([blocks(spiral(0.0, 3.0))])
    assert found.largest_step == 0 and found.amplification == pytest.approx(10**0.5)
    text = str(found)
    assert "rightmost h\u03bb = 0+3i" in text and "largest stable h = 0." in text
    assert "Every mode on the imaginary axis grows at any h, by |R(ih\u03c9)| = 3.16 a step" in text
    assert "non-normality" not in text and "no scheme helps" not in text
    found = explained([blocks(spiral(0.0, 3.0))], scheme="rk4")
    assert found.largest_step == pytest.approx(8**0.5 / 3) and "modes on the imaginary axis allow" in str(found)
    # Rounding by a change of basis puts the eigenvalues to either side of the axis: nothing is different.
    Q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    M = Q @ blocks(spiral(0.0, 3.0), spiral(0.0, 1.0), spiral(0.0, 2.0)) @ Q.mT
    assert "Every mode on the imaginary axis" in str(explained([M])) and explained([M]).largest_step == 0
    M = blocks(spiral(0.0, 3.0), spiral(0.0, 1.0), spiral(0.0, 2.0))
    (block,) = stability.dynamics(network([M], "rk4"), torch.ones(1, 6, dtype=torch.float64), dense_limit=6)
    named = stability.predictors(block)
    assert float(named["largest_stable_h"]) == pytest.approx(8**0.5 / 3, rel=1e-6) and named["expanding_share"] == 0
    (block,) = stability.dynamics(network([M]), torch.ones(1, 6, dtype=torch.float64), dense_limit=6)
    named = stability.predictors(block)
    assert named["largest_stable_h"] == 0 and named["fraction_outside"] == 1


@pytest.mark.parametrize("scheme", ["gauss4(tol=1e-10,max_iterations=100)", "trapezoid(tol=1e-10,max_iterations=100)"])
def test_what_the_scheme_keeps_as_the_flow_does_is_no_growth(scheme):
    matrices = [blocks(spiral(0.0, 3.0), spiral(0.0, 0.5))] * 4
    assert growth(matrices, scheme=scheme) == pytest.approx(1, abs=1e-6)
    assert "Nothing grows by its eigenvalues" in str(explained(matrices, scheme=scheme))


def test_float32_knows_the_axis_less_well_and_says_the_same():
    Q = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0]
    M = Q @ blocks(*(spiral(0.0, w) for w in np.linspace(0.2, 3, 20))).float() @ Q.mT
    for scheme, expected in (("explicit", "Every mode on the imaginary axis"), ("rk4", "modes on the imaginary axis allow")):
        found = stability.explain(odenets.ODEStage(lambda t, y: y @ M.mT, scheme), torch.ones(2, 40))
        assert expected in str(found) and "no scheme helps" not in str(found)


def test_the_fields_and_the_penalty_that_are_advised_do_not_expand():
    def norm(field, weights=None):
        stage = odenets.ODEStage(field, "explicit")
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return stage, x, float(stability.spectral_norm(stage, x, tol=1e-3).max())

    torch.manual_seed(0)
    residual = odenets.get_field("residual").build(odenets.fields.basic_layers, 4).double()
    stage, x, before = norm(residual)
    assert before > 1.1 and "gradient_flow" in str(stability.explain(stage, x))
    flow = odenets.get_field("gradient_flow").build(odenets.fields.basic_layers, 4).double()
    assert norm(flow)[2] <= 1 + 1e-6 < before
    optimizer = torch.optim.SGD(residual.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        stability.log_norm_penalty(stage, x).backward()
        optimizer.step()
    assert norm(residual)[2] < 0.8 * before + 0.2


def test_newton_and_more_iterations_solve_what_was_left_unsolved():
    torch.manual_seed(0)
    field = odenets.get_field("residual").build(odenets.fields.basic_layers, 4).double()
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(2.0)
    stages = [
        odenets.ODEStage([lambda t, y: -0.1 * y, field], f"implicit({settings})")
        for settings in ("max_iterations=12", "solver=newton,max_iterations=400")
    ]
    y = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = (stability.explain(stage, y) for stage in stages)
    assert before.unsolved > after.unsolved and "solver=newton and more max_iterations" in str(before)
    # The factor is that of the block whose equations are hard, not of the first.
    factor = int(re.search(r"Equations.*try (\d+) substeps", str(before))[1])
    places = stability.places(stages[0], y)
    norms = [float(stability.spectral_norm(place.increment, place.state, tol=1e-3).max()) for place in places]
    assert factor == math.ceil(2 * max(norms)) and norms[1] > 5 * norms[0]
