"""Steps with several roots: which is the scheme's value, and how judge and audit take answers that hang on the solver.

All fields are separable, so that every root is found independently, coordinate by coordinate, by scipy on a bracket.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from records import measurement, record, run
from scipy.optimize import brentq
from torch import nn

import odenets
import stability
from experiments.harness.report import evaluation as evaluation_report
from experiments.harness.report import sentences as findings
from experiments.harness.report.arms import comparison
from experiments.harness.run import measure as evaluation
from experiments.harness.training.data import Split
from odenets.errors import InputError
from odenets.solve.continuation import Continuation
from stability.masking import subject

STIFF = 6.0  # w - 6 sin w = y has five roots and more around y = pi


def sine(t, y):
    return STIFF * torch.sin(y)


def connected(y):
    """The root of w - 6 sin w = y on the path from w = y in (0, 2 pi): the one between y and the field's sink, pi."""
    return brentq(lambda w: w - STIFF * np.sin(w) - y, *sorted((y, np.pi)), xtol=1e-14) if y != np.pi else y


def count_roots(f, y, low, high, points=200_001):
    """Changes of sign of w - f(w) - y on a grid."""
    w = np.linspace(low, high, points)
    return int((np.diff(np.sign(w - f(w) - y)) != 0).sum())


def starts(count):
    """States on both sides of the sink, away from the sources 0 and 2 pi."""
    return torch.linspace(0.3, 2 * np.pi - 0.3, count, dtype=torch.float64)


def step(field, y, scheme="implicit_euler", tol=1e-10):
    stage = odenets.ODEStage(field, f"{scheme}(tol={tol},max_iterations=200,solver=continuation)")
    with torch.no_grad():
        return stage(y), stage.stats


@pytest.mark.parametrize("size", [1, 4])
def test_continuation_ends_at_the_root_connected_to_the_state(size):
    y = starts(24).view(-1, size)
    assert count_roots(lambda w: STIFF * np.sin(w), 3.0, -20, 20) >= 5
    value, stats = step(sine, y)
    expected = torch.tensor([connected(float(v)) for v in y.flatten()], dtype=y.dtype).view_as(y)
    assert stats.converged.all() and torch.allclose(value, expected, atol=1e-8)
    assert torch.equal(value[1:2], step(sine, y[1:2])[0]), "samples are independent"
    # The other solvers start at y too, and leap over it.
    cold = odenets.ODEStage(sine, "implicit_euler(tol=1e-10,max_iterations=200)")
    with torch.no_grad():
        assert ((cold(y) - expected).abs().amax(1)[cold.stats.converged] > 1).any()


def test_of_two_roots_it_takes_the_lower_and_of_none_it_finds_none():
    """w = y + w^2: (1 - sqrt(1 - 4 y)) / 2 is connected to y, 1 minus it is not, and beyond y = 1/4 there is neither."""
    y = torch.tensor([[-3.0], [-0.5], [0.1], [0.24], [0.26], [2.0]], dtype=torch.float64)
    value, stats = step(lambda t, y: y**2, y)
    assert stats.converged.tolist() == [True] * 4 + [False] * 2
    assert torch.allclose(value[:4], (1 - (1 - 4 * y[:4]).sqrt()) / 2, atol=1e-8)


def test_a_path_that_turns_back_is_told_although_there_is_a_root():
    """w = 4 + 4 tanh(4 w - 1.6): one root, near 8, at the other end of a jump."""

    def f(w):
        return 4 + 4 * np.tanh(4 * w - 1.6)

    assert count_roots(f, 0.1, -20, 20) == 1
    y = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    value, stats = step(lambda t, y: 4 + 4 * torch.tanh(4 * y - 1.6), y)
    assert stats.converged.tolist() == [False, True]
    assert torch.allclose(value[1], torch.tensor([brentq(lambda w: w - f(w) - 1, 5, 15)], dtype=y.dtype), atol=1e-8)


@pytest.mark.parametrize("scheme", ["trapezoid", "implicit_midpoint", "sdirk2", "gauss4", "radau3", "bdf2"])
def test_every_scheme_with_nonlinear_equations_continues(scheme):
    """On a contracting field all solvers find the one root."""
    y, field = starts(8).view(-1, 2), lambda t, y: torch.cos(y) - y
    broyden = odenets.ODEStage(field, f"{scheme}(tol=1e-11,max_iterations=100)", substeps=2)
    continued = odenets.ODEStage(field, f"{scheme}(tol=1e-11,max_iterations=100,solver=continuation)", substeps=2)
    with torch.no_grad():
        assert torch.allclose(broyden(y), continued(y), atol=1e-9) and continued.stats.converged.all()


@pytest.mark.parametrize("gradient", ["exact", "unrolled"])
def test_gradients_are_those_of_the_root(gradient):
    y = starts(6).view(-1, 1).requires_grad_()
    stage = odenets.ODEStage(sine, "implicit_euler(tol=1e-11,max_iterations=200,solver=continuation)")
    odenets.set_gradient(stage, gradient)
    value = stage(y)
    (found,) = torch.autograd.grad(value.sum(), y)
    assert torch.allclose(found, 1 / (1 - STIFF * value.detach().cos()), rtol=1e-5)


def test_settings():
    with pytest.raises(InputError, match="fixed"):
        odenets.get_scheme("implicit(solver=continuation,fixed=true)")
    with pytest.raises(RuntimeError, match="1 of 2 samples"):
        Continuation(on_failure="raise")(lambda z, c: z - c - z**2, torch.zeros(2, 1), (torch.tensor([[0.1], [1.0]]),))
    with pytest.raises(InputError, match="NaN or Inf"):
        Continuation()(lambda z: z * float("nan"), torch.ones(2, 3))
    assert str(odenets.get_scheme("implicit(solver=continuation)")) == "implicit_euler(solver=continuation)"


class OneStep(nn.Module):
    """An image's pixels, 0 to 1, as states from 0 to 2 pi; one step; which side of pi the first pixel ends on."""

    def __init__(self, field, scheme):
        super().__init__()
        self.stage = odenets.ODEStage(field, scheme)

    def forward(self, x):
        w = self.stage(2 * np.pi * x.flatten(1))[:, :1]
        return torch.cat([np.pi - w, w - np.pi], 1)


def sick(scheme="implicit_euler(max_iterations=200)"):
    return OneStep(sine, scheme)


def healthy(scheme="implicit_euler(max_iterations=200)"):
    """The same, its one root by contraction."""
    return OneStep(lambda t, y: 0.5 * torch.sin(y), scheme)


def images(count=40):
    x = (starts(count) / (2 * np.pi)).float().view(-1, 1, 1, 1)
    return x, (x.flatten() > 0.5).long()


def lands_elsewhere(net, x):
    """By the bracket: (B,) bool, the cold solve of the judge converged, and to another root."""
    with torch.no_grad(), odenets.tightened(net):
        w, solved = net(x)[:, 1] + np.pi, odenets.converged(net)
    expected = torch.tensor([connected(2 * np.pi * float(v)) for v in x.flatten()])
    return solved & ((w - expected).abs() > 0.1)


def test_the_judge_trusts_no_answer_that_hangs_on_the_path():
    net, (x, y) = sick(), images()
    elsewhere = lands_elsewhere(net, x)
    assert 3 < elsewhere.sum() < 37
    assert torch.equal(stability.path_dependent(net, x), elsewhere)
    with torch.no_grad():
        logits, trusted = stability.cold_judge(net)(x)
    assert torch.equal(trusted, ~elsewhere & trusted) and not trusted[elsewhere].any() and trusted.any()
    assert (logits.argmax(1) == y)[elsewhere].any(), "by luck in the right class, and counted as broken all the same"
    result = stability.worst_case(net, x, y, stability.Linf(0.01), [], judge=stability.cold_judge(net))
    assert not result.robust[elsewhere].any() and result.robust.any()
    by_luck = elsewhere & (logits.argmax(1) == y)
    assert result.untrusted[by_luck].all(), "and what is wrong anyway is not asked"


def test_the_path_of_what_is_wrong_anyway_is_not_asked(monkeypatch):
    net, (x, y) = healthy(), images()
    followed = []
    ask = subject.off_path
    monkeypatch.setattr(subject, "off_path", lambda *arguments: followed.append(int(arguments[-1].sum())) or ask(*arguments))
    judge, wrong = stability.cold_judge(net), 1 - y
    wrong[:3] = y[:3]
    for labels in (None, y, wrong):
        logits, trusted = judge(x) if labels is None else judge(x, labels)
        assert trusted.all() and torch.equal(logits.argmax(1), y)
    assert followed == [40, 40, 3]


@pytest.mark.parametrize("solver", ["broyden", "anderson", "newton", "continuation"])
def test_one_root_is_trusted_whoever_finds_it(solver):
    net, (x, _) = healthy(f"implicit_euler(solver={solver})"), images()
    assert not stability.path_dependent(net, x).any()
    before = net.stage.scheme
    assert stability.cold_judge(net)(x)[1].all() and net.stage.scheme is before


def test_it_is_not_asked_where_no_nonlinear_equation_is_solved():
    x, y = images(8)
    for scheme in ("explicit_euler", "ie_skip", "rosenbrock_euler", "ros2", "exponential_euler"):
        assert stability.path_dependent(sick(scheme), x) is None
    assert stability.cold_judge(sick("rk4"))(x)[1] is None and stability.cold_judge(sick("ros2"))(x)[1].all()
    unsolved = OneStep(lambda t, y: y**2 + 1, "implicit_euler")
    assert not stability.path_dependent(unsolved, x).any(), "without a root there is no other one"


def test_the_audit_has_a_check_of_it():
    threat, only = stability.Linf(0.01), {"checks": ["connected_root"], "steps": 2, "many_steps": 3}
    for net, passed in ((sick(), False), (healthy(), True), (sick("rk4"), None), (sick("rosenbrock_euler"), None)):
        (check,) = stability.audit(net, *images(), threat, **only).checks
        assert check.passed is passed and check.reason, str(check)
        if passed is False:
            assert check.figures["clean_share"] == pytest.approx(float(lands_elsewhere(net, images()[0]).double().mean()))
            assert check.figures["clean_share"] > check.thresholds["clean_share"] and "hang on the solver" in check.reason


def test_the_share_travels_to_the_records():
    net, (x, y) = sick(), images()
    measured = evaluation.measure_attack(net, Split(x, y), "clean", 0.0, "exact", 0)
    with torch.no_grad(), odenets.tightened(net):
        by_luck = int((lands_elsewhere(net, x) & (net(x).argmax(1) == y)).sum())
    assert 0 < measured.path_dependent == by_luck <= measured.untrusted
    assert evaluation.measure_solver(nn.Sequential(net, nn.Linear(2, 2)), Split(x, y)).path_dependent_share > 0
    assert evaluation.measure_attack(healthy(), Split(x, y), "clean", 0.0, "exact", 0).path_dependent == 0


def test_headlines_say_so():
    config, records = run()
    assert not any("hangs" in sentence for sentence in findings.headline(comparison(config, records)))
    *rest, last = records[0].measurements
    records[0] = replace(records[0], measurements=(*rest, replace(last, path_dependent=3, untrusted=3)))
    (said,) = (sentence for sentence in findings.headline(comparison(config, records)) if "hangs" in sentence)
    assert records[0].scheme in said and f"{300 / last.total:.1f} %" in said
    mine = record(
        network="mine", measurements=(replace(measurement("clean", 0.0, [1, 1, 1, 0, 0, 0, 0, 0]), path_dependent=2),)
    )
    assert "up to 2 of them count as broken" in evaluation_report.sentences([mine])[0]


def test_a_step_that_grows_finds_the_first_other_root():
    """What the oracle is worth: as the field stiffens, roots appear in pairs, and the answer hangs on the solver only then."""
    x, _ = images()
    for stiffness, several in ((0.9, False), (STIFF, True)):
        roots = count_roots(partial(lambda k, w: k * np.sin(w), stiffness), np.pi, -20, 20)
        net = OneStep(lambda t, y, k=stiffness: k * torch.sin(y), "implicit_euler")
        assert (roots > 1) is several and bool(stability.path_dependent(net, x).any()) is several
