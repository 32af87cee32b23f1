from functools import partial

import make_nets
import pytest
import torch

import odenets
import stability
from experiments.harness.training import losses as adversarial_training
from experiments.harness.training.precision import low_precision
from experiments.harness.training.settings import TrainingSettings
from odenets.schemes import solving

SIX = torch.arange(6)
SOLVING = ["implicit", "sdirk2", "radau3", "tr_bdf2", "bdf2", "trapezoid"]


def _net(scheme="implicit(tol=1e-8,max_iterations=100)"):
    torch.manual_seed(0)
    return make_nets.small(scheme).double().eval()


def _images(count=6, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _iterations(net):
    return sum(stage.stats.iterations for stage in odenets.stages(net).values())


@pytest.mark.parametrize("scheme", SOLVING)
def test_a_pass_repeated_is_solved_before_it_starts(scheme):
    net, x = _net(f"{scheme}(tol=1e-6)"), _images()
    warm = odenets.WarmStart(net)
    with torch.no_grad():
        first, cold = warm(x, SIX), _iterations(net)
        assert torch.equal(first, net(x))
        # Later solves start from states that the first ones have moved within their tolerance.
        again = warm(x, SIX)
    assert (cold > 0).all() and _iterations(net).sum() <= 0.3 * cold.sum()
    torch.testing.assert_close(again, first, rtol=0, atol=1e-4)


def test_images_are_told_apart_by_their_indices():
    net, x = _net(), _images()
    warm, indices = odenets.WarmStart(net), torch.tensor([11, 5, 7, 2, 40, 3])
    with torch.no_grad():
        whole = warm(x, indices)
        kept = torch.tensor([4, 0, 3])  # some have fallen, and the others stand in another order
        part = warm(x[kept], indices[kept])
        assert (_iterations(net) == 0).all(), "a guess went to another image"
        torch.testing.assert_close(part, whole[kept], rtol=0, atol=1e-9)
        warm(x[:2], torch.tensor([40, 99]))  # 99 is new: nobody starts from a guess, so that mates do not matter
        assert (_iterations(net) > 3).all()


def test_a_moved_image_costs_less_and_has_the_same_root():
    net, x = _net(), _images()
    moved = x + 1e-3 * torch.randn_like(x)
    warm = odenets.WarmStart(net)
    with torch.no_grad():
        cold, spent = net(moved), _iterations(net)
        warm(x, SIX)
        torch.testing.assert_close(warm(moved, SIX), cold, rtol=0, atol=1e-6)
    assert (_iterations(net) < spent).all()
    assert bool(odenets.converged(net).all())


def test_gradients_are_those_of_a_cold_start():
    net, x = _net(), _images()
    warm, gradients = odenets.WarmStart(net), []
    warm(x, SIX)
    for run in (net, partial(warm, indices=SIX)):
        point = (x + 1e-3).requires_grad_()
        run(point).square().sum().backward()
        gradients.append(point.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_pieces_of_a_batch_find_their_own_guesses(monkeypatch):
    net, x = _net("sdirk2(tol=1e-8,max_iterations=100)"), _images()
    with torch.no_grad():
        whole = net(x)
        monkeypatch.setitem(solving.PIECE, "cpu", 2 * 8 * 64)
        warm = odenets.WarmStart(net)
        warm(x, SIX)
        torch.testing.assert_close(warm(x, SIX), whole, rtol=0, atol=1e-6)
        first = next(iter(odenets.stages(net).values()))
        assert first.stats.iterations.max() <= 3


def test_the_network_itself_stays_cold_and_unchanged():
    net, x = _net(), _images()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        cold = net(x)
        warm = odenets.WarmStart(net)
        warm(x + 0.1, SIX)
        assert torch.equal(net(x), cold)
    assert not any(stage._forward_pre_hooks for stage in odenets.stages(net).values())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_has_fallen_is_remembered_until_the_next_cold_pass():
    net, x = _net(), _images()
    warm = odenets.WarmStart(net)
    with torch.no_grad():
        warm(x, SIX)
        warm(x[:2], SIX[:2])
        warm(x, SIX)
        assert (_iterations(net) == 0).all(), "the four that were not shown know their roots still"
        warm(x[:2], SIX[:2] + 9)
        warm(x, SIX)
        assert (_iterations(net) > 3).all()


class _Twice(torch.nn.Module):
    """The mean logits of an image and of a darker one, one after the other or in one batch."""

    def __init__(self, net, together):
        super().__init__()
        self.net, self.together = net, together

    def forward(self, x):
        views = [x, 0.9 * x]
        return (
            self.net(torch.cat(views)).view(2, len(x), -1) if self.together else torch.stack(list(map(self.net, views)))
        ).mean(0)


@pytest.mark.parametrize("together", [False, True])
def test_a_net_that_runs_its_stages_twice_has_guesses_for_each_time_or_none(together):
    net, x = _net(), _images()
    twice = _Twice(net, together)
    warm = odenets.WarmStart(twice)
    with torch.no_grad():
        first = warm(x, SIX)
        assert torch.equal(first, twice(x))
        spent = _iterations(net)
        torch.testing.assert_close(warm(x, SIX), first, rtol=0, atol=1e-6)
        torch.testing.assert_close(warm(x[2:4], SIX[2:4]), first[2:4], rtol=0, atol=1e-6)
    assert _iterations(net).sum() > 3 * len(x) if together else (_iterations(net) < spent[:2]).all()


def test_an_iteration_that_is_differentiated_is_the_whole_one():
    net, x = _net("implicit(tol=1e-3)"), _images()
    odenets.set_gradient(net, "unrolled")
    warm, gradients = odenets.WarmStart(net), []
    warm(x, SIX)
    for run in (net, partial(warm, indices=SIX)):
        point = x.clone().requires_grad_()
        run(point).square().sum().backward()
        gradients.append(point.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("scheme", ["explicit", "ros2", "ie_skip", "ab2"])
def test_schemes_without_nonlinear_equations_pass_through(scheme):
    net, x = _net(scheme), _images()
    warm = odenets.WarmStart(net)
    with torch.no_grad():
        assert all(torch.equal(warm(x, SIX), net(x)) for _ in range(2))


def test_without_indices_every_pass_is_cold():
    net, x = _net(), _images()
    warm = odenets.WarmStart(net)
    with torch.no_grad():
        warm(x, torch.arange(6))
        assert torch.equal(warm(x[:4]), net(x[:4]))
        assert (_iterations(net) > 3).all()


@pytest.mark.parametrize("attack", [stability.pgd, stability.apgd])
def test_attacks_tell_it_which_images_they_still_look_at(attack):
    # Solved so well that a warm start moves nothing; images fall on the way, and restarts and chunks follow.
    net, x = _net("implicit(tol=1e-10,max_iterations=100)"), _images(7)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = partial(attack, x=x, y=y, threat=stability.Linf(0.02), steps=4, restarts=2, batch_size=4)
    counted = []
    hook = next(iter(odenets.stages(net).values())).register_forward_hook(
        lambda stage, args, value: counted.append(float(stage.stats.evaluations))
    )
    cold, before = attack(net), sum(counted)
    counted.clear()
    torch.testing.assert_close(attack(odenets.WarmStart(net)), cold, rtol=0, atol=1e-4)
    assert sum(counted) < 0.9 * before
    hook.remove()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attacks_in_training_start_warm(precision):
    net = _net("implicit").float()
    settings = TrainingSettings(training="pgd", train_epsilon=0.05, train_steps=3, train_step_size=0.02)
    counted = []
    next(iter(odenets.stages(net).values())).register_forward_hook(
        lambda stage, args, value: counted.append(stage.stats.evaluations)
    )
    adversarial_training.pgd(low_precision(net, precision), _images().float(), SIX, settings, torch.Generator(), {})
    first, second, third, loss = counted
    assert max(second, third) < 0.8 * min(first, loss)
