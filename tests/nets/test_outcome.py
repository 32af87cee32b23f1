"""What an evaluation says of its own solves, whatever else runs before, after or within it."""

import pytest
import torch
from torch import nn

import odenets
import stability
from experiments.harness.run import measure
from experiments.harness.training.data import Split

EASY, HARD = 0.1, 1.0  # w = y + w^2 has a root below 1/4 and none above


class Squares(nn.Module):
    """One implicit step of y' = y^2 from each pixel; two logits."""

    def __init__(self, scheme="implicit_euler(max_iterations=100)"):
        super().__init__()
        self.stage = odenets.ODEStage(lambda t, y: y**2, scheme)

    def forward(self, x):
        w = self.stage(x.flatten(1)).sum(1, keepdim=True)
        return torch.cat([1 - w, w], 1)


class Around(nn.Module):
    """A net run by a function (net, x) -> logits."""

    def __init__(self, run, net=None):
        super().__init__()
        self.run, self.net = run, net or Squares()

    def forward(self, x):
        return self.run(self.net, x)


def images(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def then(value):
    """Answer, and evaluate other images of the same number behind it: the last pass is not the one that counts."""

    def run(net, x):
        logits = net(x)
        net(torch.full_like(x, value))
        return logits

    return run


def test_it_is_that_of_the_pass_itself_and_not_of_the_last_one():
    net, x = Squares(), images(EASY, HARD, 0.2)
    logits, outcome = odenets.evaluate(net, x)
    net(images(EASY))
    assert outcome.converged.tolist() == [True, False, True] and torch.equal(logits, net(x))
    assert outcome.residual.shape == (3,) and outcome.residual[1] > 1e-3 > outcome.residual[0]
    assert not net.stage._noted and odenets.converged(net).tolist() == [True, False, True]
    explicit = Squares("explicit_euler")
    found = odenets.evaluate(explicit, x)[1]
    assert found.converged is found.backward_converged is found.residual is None and found.solutions == []


@pytest.mark.parametrize("value, solved", [(EASY, [True, False]), (HARD, [False, False])])
def test_every_pass_within_counts(value, solved):
    """Today's `converged` would speak of the last one alone: True, True for easy ones behind."""
    net, x = Around(then(value)), images(EASY, HARD)
    assert odenets.evaluate(net, x)[1].converged.tolist() == solved
    assert stability.cold_judge(net)(x)[1].tolist() == solved


def views(net, x):
    """The mean over each image and a darker one of it, in one batch."""
    return net(torch.cat([x, 0.9 * x])).view(2, len(x), -1).mean(0)


def in_parts(net, x):
    return torch.cat([net(part) for part in x.split(2)])


@pytest.mark.parametrize("run", [views, in_parts, lambda net, x: torch.cat([net(image) for image in x.split(1)])])
def test_whose_equations_they_are_is_known_where_a_stage_sees_another_batch(run):
    net, x = Around(run), images(EASY, HARD, 0.2)
    logits, outcome = odenets.evaluate(net, x)
    assert outcome.converged.tolist() == [True, False, True]
    torch.testing.assert_close(logits, net(x))
    assert odenets.evaluate(net, x[::2])[1].converged.tolist() == [True, True]
    assert stability.cold_judge(net)(x)[1].tolist() == [True, False, True]
    assert stability.path_dependent(net, x).tolist() == [False] * 3


def test_nets_within_nets():
    """A stage whose field solves an equation itself, for those states that the outer solver has not let go."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = odenets.ODEStage(lambda t, y: y**2, "implicit_euler(max_iterations=100)")

        def forward(self, t, y):
            return -0.1 * self.stage(y)

    outer = odenets.ODEStage(Inner(), "implicit_euler")
    _, outcome = odenets.evaluate(outer, torch.tensor([[EASY], [2.0]]))
    assert outcome.converged.tolist() == [True, False]


def test_an_evaluation_within_another_does_not_hide_its_passes():
    seen = []

    def run(net, x):
        logits, outcome = odenets.evaluate(net, x)
        seen.append(outcome)
        return logits

    _, outer = odenets.evaluate(Around(run), images(EASY, HARD))
    assert outer.converged.tolist() == seen[0].converged.tolist() == [True, False]


def test_backward_passes_are_those_through_it():
    net, x = Squares(), images(EASY, 0.2).requires_grad_()
    logits, outcome = odenets.evaluate(net, x)
    net(images(HARD))
    assert len(outcome.solutions) == 1
    logits.sum().backward()
    assert outcome.backward_converged.tolist() == [True, True] and len(outcome.solutions) == 2


def test_what_is_measured_is_of_the_images_and_not_of_a_pass_behind_them():
    split = Split(images(EASY, 0.2, HARD, HARD), torch.tensor([0, 0, 0, 0]))
    net = Around(then(EASY)).double()
    net.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    net.run = lambda inner, x, behind=net.run: net.weight * behind(inner, x)
    assert measure.measure_solver(net, split).unconverged_share == 0.5
    assert measure.explain_unsolved(net, split).startswith("2 of 4 images")
