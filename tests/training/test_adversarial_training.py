"""Training losses against closed forms, and against straightforward computations of their formulas."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import odenets
from experiments.harness.training import losses as adversarial_training
from experiments.harness.training.epoch import Epoch
from experiments.harness.training.losses import METHODS, collapsed
from experiments.harness.training.settings import TrainingSettings

EPS = 0.1


class Recorder(nn.Module):
    """A network that keeps what went into it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


def linear(seed=0):
    torch.manual_seed(seed)
    return Recorder(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))).double()


@pytest.fixture
def batch(generator):
    return torch.rand(5, 3, 2, 2, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])


def settings(method, **changes):
    return TrainingSettings(**{"training": method, "train_epsilon": EPS, "free_replays": 3, **changes}).resolved()


def loss(method, net, x, y, seed=0, memory=None, **changes):
    generator = torch.Generator().manual_seed(seed)
    return METHODS[method](net, x, y, settings(method, **changes), generator, {} if memory is None else memory)


def worst(net, x, y):
    """The image in the ball and the box with the highest loss of a linear classifier of two classes."""
    weight = net.net[1].weight.detach()
    slope = (weight[1 - y] - weight[y]).view_as(x)
    return (x + EPS * slope.sign()).clamp(0, 1)


def test_pgd_finds_the_worst_image_of_a_linear_classifier(batch):
    x, y = batch
    net = linear()
    assert loss("pgd", net, x, y).item() == pytest.approx(F.cross_entropy(net(worst(net, x, y)), y).item(), rel=1e-12)


def test_the_summed_loss_is_the_clean_one_plus_the_attacked_one(batch):
    x, y = batch
    net = linear()
    expected = F.cross_entropy(net(x), y) + F.cross_entropy(net(worst(net, x, y)), y)
    assert loss("summed", net, x, y, train_steps=9).item() == pytest.approx(expected.item(), rel=1e-12)


def test_fast_is_one_step_from_a_random_point_back_into_the_ball(batch):
    x, y = batch
    net = linear()
    noise = EPS * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).double() - 1)
    start = (x + noise).clamp(0, 1)
    stepped = start + 1.25 * EPS * (worst(net, x, y) - x).sign()  # where the box leaves no room the sign is lost, and unneeded
    expected = (x + (stepped - x).clamp(-EPS, EPS)).clamp(0, 1)
    value = loss("fast", net, x, y)
    assert torch.allclose(net.seen[-1], expected, atol=1e-7)
    assert value.item() == pytest.approx(F.cross_entropy(net(expected), y).item(), rel=1e-6)
    assert not torch.allclose(expected, worst(net, x, y), atol=1e-3), "from far away one step does not reach the corner"


def test_trades_is_its_formula_at_an_image_of_larger_divergence(batch):
    x, y = batch
    net = linear()
    value = loss("trades", net, x, y, trades_beta=3.0)
    both = net.seen[-1]
    assert torch.equal(both[:5], x)
    p, q = (net(part).softmax(1).detach().numpy() for part in both.chunk(2))
    divergence = (p * np.log(p / q)).sum(1)
    expected = -np.log(p[range(5), y]).mean() + 3 * divergence.mean()
    assert value.item() == pytest.approx(expected, rel=1e-10)
    # For two classes the divergence grows towards both corners: the ascent must have reached one of them.
    corners = [(x + sign * EPS * (worst(net, x, y) - x).sign()).clamp(0, 1) for sign in (1, -1)]
    reached = [(both[5:] - corner).flatten(1).abs().amax(1) < 1e-3 for corner in corners]
    assert (reached[0] | reached[1]).all()


def test_trades_trains_the_clean_output_towards_the_attacked_one_too(batch):
    x, y = batch
    net = linear()
    loss("trades", net, x, y, seed=1).backward()
    logits = [net(part) for part in net.seen[-1].chunk(2)]
    net.zero_grad()
    p, q = (part.log_softmax(1) for part in logits)
    (F.nll_loss(p, y) + 6 * (p.exp() * (p - q)).sum(1).mean()).backward()
    expected = net.net[1].weight.grad.clone()
    net.zero_grad()
    loss("trades", net, x, y, seed=1).backward()
    assert torch.allclose(net.net[1].weight.grad, expected, rtol=1e-10)


def test_free_moves_its_perturbation_by_the_gradient_that_trains(batch):
    x, y = batch
    net, memory, delta = linear(), {}, torch.zeros_like(batch[0])
    for n in range(4):
        images, labels = (x, y) if n < 2 else (x.flip(0), y.flip(0))  # the perturbation outlives its batch
        value = loss("free", net, images, labels, memory=memory)
        assert torch.equal(net.seen[-1], (images + delta).clamp(0, 1))
        value.backward()
        leaf = delta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net((images + leaf).clamp(0, 1)), labels), leaf)
        delta = (delta + EPS * gradient.sign()).clamp(-EPS, EPS)
        assert torch.equal(memory["delta"], delta)
    assert adversarial_training.rounds(settings("free")) == 3 and adversarial_training.rounds(settings("pgd")) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["explicit", "ie_skip(gamma=0.05)", "implicit(tol=1e-3)"])
def test_every_image_trained_on_lies_in_ball_and_box_and_training_is_what_moves_the_weights(method, scheme, device):
    torch.manual_seed(0)
    net = Recorder(odenets.ode_resnet_small(scheme=scheme)).to(device).train()
    x, y, memory = torch.rand(4, 1, 8, 8, device=device), torch.tensor([0, 1, 2, 3], device=device), {}
    x[0] = x[0].round()
    for _ in range(2):
        value = loss(method, net, x, y, memory=memory, train_steps=2)
        assert all(parameter.grad is None for parameter in net.parameters()), "an attack leaves nothing in the parameters"
        value.backward()
        assert all(parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
        net.zero_grad(set_to_none=True)
    for seen in net.seen:
        for part in seen.split(4):
            assert part.min() >= 0 and part.max() <= 1 and (part - x).abs().max() <= EPS + 1e-6
    moved = (net.seen[-1][-4:] - x).abs().max()
    assert moved == 0 if method in ("standard", "margin") else moved > EPS / 2
    assert net.training


@pytest.mark.parametrize("method", ["pgd", "summed", "fast", "trades"])
def test_the_noise_comes_from_the_generator(method, batch):
    net = linear()
    starts = []
    for seed in (0, 0, 1):
        net.seen.clear()
        loss(method, net, *batch, seed=seed)
        starts.append(net.seen[1 if method == "trades" else 0])
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("method", "steps", "size"),
    [("pgd", 7, 2.5 * EPS / 7), ("summed", 3, EPS / 4), ("trades", 10, EPS / 4), ("fast", 1, 1.25 * EPS), ("free", 1, EPS)],
)
def test_the_recipes_of_the_sources(method, steps, size):
    found = settings(method)
    assert found.train_steps == steps and found.train_step_size == pytest.approx(size)
    found = settings(method, train_steps=5, train_step_size=0.0)
    assert found.train_steps == (1 if steps == 1 else 5), "what a method has no use for is not on record as used"
    assert found.train_step_size == 0 and found.resolved() == found


@pytest.mark.parametrize(
    ("pgd", "fgsm", "verdict"),
    [
        ([0.4, 0.5, 0.1], [0.5, 0.6, 0.9], True),
        ([0.4, 0.5, 0.3], [0.5, 0.6, 0.9], False),
        ([0.4, 0.5, 0.1], [0.5, 0.6, 0.2], False),
        ([0.14, 0.01], [0.14, 0.3], False),
        ([0.5], [0.6], False),
        ([0.02, 0.0], [0.1, 0.3], False),
        ([0.4, 0.0], [0.4, 0.38], True),
        ([0.1, 0.4], [0.9, 0.5], False),
    ],
)
def test_catastrophic_overfitting_is_pgd_falling_while_fgsm_holds(pgd, fgsm, verdict):
    history = [Epoch(n, 0.0, 0.9, held_out_pgd=p, held_out_fgsm=f) for n, (p, f) in enumerate(zip(pgd, fgsm))]
    assert collapsed(history, classes=10) is verdict
