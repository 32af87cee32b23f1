"""Attacks against a closed-form worst case, their promises (ball, box, determinism, restored modes)."""

from functools import partial

import make_nets
import numpy as np
import pytest
import torch
from attack_problems import conv_net, hilly_net, images, linear_net, margins, robust

import stability
from stability import L2, Linf

# Each with few steps, and all that it can do besides.
EVERY = {
    "fgsm": stability.fgsm,
    "pgd": partial(stability.pgd, steps=5, restarts=2),
    "pgd-momentum": partial(stability.pgd, steps=4, momentum=0.75, loss="dlr"),
    "pgd-targets": partial(stability.pgd, steps=3, loss="margin", targets=2),
    "pgd-last": partial(stability.pgd, steps=3, keep="last"),
    "apgd": partial(stability.apgd, steps=12),
    "apgd-targets": partial(stability.apgd, steps=9, loss="cross_entropy", targets=2),
    "square": partial(stability.square, queries=12),
    "noise": partial(stability.noise, draws=5),
    "noise-edge": partial(stability.noise, draws=5, where="edge"),
}
every_attack = pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)
noisy_attack = pytest.mark.parametrize("attack", [partial(attack) for attack in EVERY.values()][1:], ids=list(EVERY)[1:])


@pytest.mark.parametrize(
    "threat, worst", [(Linf(0.1), lambda w: 0.1 * w.abs().sum(1)), (L2(0.2), lambda w: 0.2 * w.norm(dim=1))]
)
def test_pgd_is_exact_on_a_linear_model(threat, worst, device):
    # Away from the box the largest margin of a two-class linear model is known: m + eps * ||w||_dual.
    net, x = linear_net(classes=2).to(device), images(low=0.3, high=0.7).to(device)
    y = net(x).argmax(1)
    W = net[1].weight.detach()
    expected = margins(net, x, y) + worst(W[1 - y] - W[y])
    for attack in (
        partial(stability.pgd, loss="margin", step_size=1.0),
        partial(stability.pgd, random_start=False),
        stability.fgsm,
    ):
        moved = attack(net, x, y, threat)
        # PGD stops at the first misclassified iterate: an image falls exactly when the closed form says so.
        assert torch.equal(margins(net, moved, y) > 0, expected > 0) and 0 < (expected > 0).sum() < len(x)
        standing = expected <= 0
        torch.testing.assert_close(margins(net, moved, y)[standing], expected[standing], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 8 / 255, 0.5, 1.0])
@pytest.mark.parametrize("norm", [Linf, L2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_attack
def test_in_ball_and_box(norm, epsilon, dtype, attack, device):
    threat = norm(epsilon)
    net, x = conv_net(dtype).to(device), images(dtype=dtype).to(device)
    x[:4] = x[:4].round()
    moved = attack(net, x, torch.arange(16, device=device) % 3, threat)
    assert moved.shape == x.shape and moved.dtype == dtype and not moved.requires_grad
    assert moved.min() >= 0 and moved.max() <= 1
    assert (threat.size(moved.double() - x.double()) <= threat.epsilon * (1 + 1e-6)).all()
    if threat.epsilon > 1e-3:
        assert not torch.equal(moved, x)


@noisy_attack
@pytest.mark.parametrize("threat", [Linf(0.01), L2(0.03)])
def test_noise_depends_on_generator_and_index_only(attack, threat):
    net, x = hilly_net(), images()
    y = net(x).argmax(1)

    def attacked(rows, seed=5, **settings):
        return attack(net, x[rows], y[rows], threat, indices=rows, generator=torch.Generator().manual_seed(seed), **settings)

    every = attacked(torch.arange(16))
    shuffled = torch.tensor([9, 3, 12, 0])
    torch.testing.assert_close(attacked(shuffled), every[shuffled], rtol=0, atol=1e-9)
    torch.testing.assert_close(attacked(torch.arange(16), batch_size=5), every, rtol=0, atol=1e-9)
    assert torch.equal(attacked(torch.arange(16)), every)
    assert (attacked(torch.arange(16), seed=6) - every).abs().max() > 1e-5


def test_twins_of_different_index_start_apart():
    net, x = conv_net(), images(1, dtype=torch.float32).repeat(2, 1, 1, 1)
    same = stability.pgd(net, x, net(x).argmax(1), Linf(0.01), steps=1, step_size=0.0)
    assert (same[0] - same[1]).abs().max() > 1e-3


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.3)])
def test_starts_fill_the_ball(threat):
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([threat.random_start((2,), generator) for _ in range(2000)])
    size = threat.size(starts) / 0.3
    assert size.max() <= 1 + 1e-6
    assert float((size < 0.5).double().mean()) == pytest.approx(0.25, abs=0.03)  # a quarter of the area
    assert starts.mean(0).abs().max() < 0.02


def test_a_misclassified_iterate_is_kept_and_fallen_images_cost_nothing():
    calls = []

    def net(x):
        calls.append(len(x))
        total = x.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(total), 1.04 - total], 1)  # class 0 where the sum exceeds 1.04

    x = torch.tensor([[1.0, 0.045, 0.0], [1.0, 0.6, 0.0]])
    moved = stability.pgd(net, x, torch.zeros(2, dtype=torch.int64), Linf(0.1), steps=4, random_start=False)
    assert net(moved).argmax(1).tolist() == [1, 0]
    assert calls[:5] == [2, 2, 1, 1, 1]


def test_the_iterate_of_highest_loss_is_returned_start_and_end_included():
    def net(x):  # the loss falls along its own reported gradient: every step makes things worse
        value = 2 * x.detach().sum(1) - x.sum(1)
        return torch.stack([10 - value, -10 + value], 1)

    x = torch.full((3, 2), 0.5)
    moved = stability.pgd(net, x, torch.zeros(3, dtype=torch.int64), Linf(0.2), random_start=False)
    assert torch.equal(moved, x)


def test_a_misclassified_iterate_counts_though_its_loss_is_lower():
    # At the start three classes tie (loss 1.1) and the first wins; one step on, two tie (loss 0.7) and the second wins.
    far = torch.tensor([[0.01, 0.0, 0.0], [0.0, 0.01, -9.0]])

    def net(x):
        moved = (x[:, 0].detach() > 0.55).long()
        return far[moved] + 1e-6 * torch.stack([-x[:, 0], x[:, 0], x[:, 0]], 1)

    x, y = torch.full((1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    moved = stability.pgd(net, x, y, Linf(0.1), steps=1, random_start=False)
    assert torch.nn.functional.cross_entropy(net(moved), y) < torch.nn.functional.cross_entropy(net(x), y)
    assert net(moved).argmax(1).item() == 1


def test_a_restart_that_succeeds_counts_though_its_loss_is_lower():
    # As above, but the two starts differ: the first ends in the tie of three, the second falls with a lower loss.
    calls = []

    def net(x):
        calls.append(len(x))
        logits = torch.tensor([[0.0, 0.01, -9.0]] if len(calls) > 2 else [[0.01, 0.0, 0.0]])
        return logits + 1e-9 * x.sum(1, keepdim=True)

    def attacked(restarts):
        calls.clear()
        return stability.pgd(net, torch.full((1, 2), 0.5), torch.tensor([0]), Linf(0.1), steps=1, restarts=restarts)

    assert not torch.equal(attacked(2), attacked(1))


def test_more_restarts_never_do_worse():
    net, x = conv_net(), images(64, dtype=torch.float32)
    y = net(x).argmax(1)
    moved = [stability.pgd(net, x, y, Linf(0.06), steps=2, restarts=n) for n in (1, 4)]
    assert robust(net, moved[1], y) <= robust(net, moved[0], y)


def test_targets_are_the_likeliest_wrong_classes_and_each_is_tried():
    # On a linear model the margin towards class t grows by eps * ||w_t - w_y||_1: which class can be reached is known.
    net, x = linear_net(classes=5), images(64, low=0.3, high=0.7)
    logits = net(x).detach()
    y = logits.argmax(1)
    W = net[1].weight.detach()
    reach = logits - logits.gather(1, y[:, None]) + 0.08 * (W[None] - W[y][:, None]).abs().sum(2)
    order = logits.argsort(1, descending=True)
    for targets in (1, 2, 4):
        moved = stability.pgd(net, x, y, Linf(0.08), steps=1, step_size=1.0, loss="margin", targets=targets)
        expected = (reach.gather(1, order[:, 1 : targets + 1]) > 0).any(1)
        fallen = net(moved).argmax(1) != y
        # A step towards one class may meet another on its way: never fewer, and exactly the margin's best of those left.
        assert (fallen | ~expected).all() and int(fallen.sum()) < len(x)
        if targets == 4:
            assert torch.equal(fallen, expected)
            best = reach.scatter(1, y[:, None], -torch.inf).amax(1)
            torch.testing.assert_close(margins(net, moved, y)[~fallen], best[~fallen], rtol=1e-6, atol=1e-8)


def test_momentum_is_a_sum_of_normalised_gradients():
    # The gradient turns by 90 degrees after the first step: (1, 0), then (0, 3); a step keeps half of the direction so far.
    def net(x):
        turned = (x[:, :1] > 0.52).double()
        value = (x * torch.cat([1 - turned, 3 * turned], 1)).sum(1)
        return torch.stack([20 - value, value], 1)

    x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    moved = stability.pgd(
        net, x, y, L2(1.0), steps=2, step_size=0.1, momentum=0.5, loss="margin", random_start=False, keep="last"
    )
    second = torch.tensor([0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.5]], dtype=torch.float64) + 0.1 * second / second.norm()
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)


def test_the_last_iterate_is_that_of_a_loop_written_by_hand():
    net, x = hilly_net(), images(32)
    y = net(x).argmax(1)
    moved = stability.pgd(net, x, y, Linf(0.05), steps=7, step_size=0.02, random_start=False, keep="last")
    by_hand = x
    for _ in range(7):
        point = by_hand.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(point), y, reduction="sum"), point)
        by_hand = (x + (point.detach() + 0.02 * gradient.sign() - x).clamp(-0.05, 0.05)).clamp(0, 1)
    torch.testing.assert_close(moved, by_hand, rtol=0, atol=1e-9)
    kept = stability.pgd(net, x, y, Linf(0.05), steps=7, step_size=0.02, random_start=False)
    assert 0 < robust(net, kept, y) <= robust(net, moved, y) < len(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@every_attack
def test_works_in_every_gradient_mode_and_leaves_the_network_alone(mode, attack, device):
    net = make_nets.small("implicit").to(device).train()
    net.head[0].eval()
    before = {name: module.training for name, module in net.named_modules()}
    with mode():
        x, y = images(4, (1, 8, 8), dtype=torch.float32).to(device), torch.tensor([0, 1, 2, 3], device=device)
        moved = attack(net, x, y, Linf(0.1))
    assert (moved - x).abs().max() > 0.01
    assert before == {name: module.training for name, module in net.named_modules()}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_modes_are_restored_after_an_error():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(12, 2)).train()
    with pytest.raises(ValueError, match="labels must lie"):
        stability.pgd(net, images(2, dtype=torch.float32), torch.tensor([0, 7]), Linf(0.1))
    assert all(module.training for module in net.modules())


X, Y = images(2, dtype=torch.float64), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Linf(-0.1), "epsilon"),
        (lambda: L2(float("nan")), "epsilon"),
        (lambda: Linf(float("inf")), "epsilon"),
        (lambda: Linf("0.1"), "epsilon"),
        (lambda: stability.pgd(linear_net(), X + 1, Y, Linf(0.1)), "lie in \\[0, 1\\]"),
        (lambda: stability.pgd(linear_net(), X * float("nan"), Y, Linf(0.1)), "lie in"),
        (lambda: stability.fgsm(linear_net(), X - 0.5, Y, Linf(0.1)), "lie in"),
        (lambda: stability.pgd(linear_net(), X[:0], Y[:0], Linf(0.1)), "B >= 1"),
        (lambda: stability.pgd(linear_net(), X, Y[:1], Linf(0.1)), "labels"),
        (lambda: stability.pgd(linear_net(), X, Y.float(), Linf(0.1)), "labels"),
        (lambda: stability.pgd(linear_net(), X, Y - 1, Linf(0.1)), "from -1"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), steps=0), "steps"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), restarts=0), "restarts"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), step_size=-1), "step_size"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), loss="hinge"), "cross_entropy, margin"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), indices=[1]), "indices"),
        (lambda: stability.pgd(lambda x: x.flatten(1) * float("nan"), X, Y, Linf(0.1)), "NaN"),
        (lambda: stability.pgd(lambda x: x, X, Y, Linf(0.1)), "logits"),
        (lambda: stability.pgd(lambda x: x.detach().flatten(1), X, Y, Linf(0.1)), "autograd"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), momentum=-1), "momentum"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), momentum=float("nan")), "momentum"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), targets=3), "1 to 2.*got 3"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), targets=0), "targets"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), keep="first"), "best, last"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), keep="last", restarts=2), "one untargeted run"),
        (lambda: stability.pgd(linear_net(classes=2), X, Y, Linf(0.1), loss="dlr"), "3 classes, the logits have 2"),
        (lambda: stability.pgd(linear_net(classes=3), X, Y, Linf(0.1), loss="dlr", targets=1), "4 classes with a target"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_of_numpy_are_numbers():
    threat, x = Linf(np.float32(0.25)), images(2, dtype=torch.float32)
    net = conv_net(classes=3)
    moved = stability.pgd(net, x, net(x).argmax(1), threat, step_size=np.float32(0.05), momentum=np.float64(0.5))
    assert 0 < float((moved - x).abs().max()) <= 0.25 + 1e-7
