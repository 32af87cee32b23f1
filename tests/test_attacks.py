"""Attacks against a closed-form worst case, their promises (ball, box, determinism, restored modes), and the judge."""
from functools import partial

import pytest
import torch

import odenets
import stability
from stability import L2, Linf


def linear_net(dtype=torch.float64, features=12, classes=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(features, classes)).to(dtype)


def images(count=16, shape=(1, 3, 4), seed=1, dtype=torch.float64, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conv_net(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
                               torch.nn.Linear(48, 3)).to(dtype)


def margins(net, x, y):
    logits = net(x)
    right = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - right[:, 0]).detach()


@pytest.mark.parametrize("threat, worst", [
    (Linf(0.1), lambda w: 0.1 * w.abs().sum(1)), (L2(0.2), lambda w: 0.2 * w.norm(dim=1))])
def test_pgd_is_exact_on_a_linear_model(threat, worst, device):
    # Away from the box the largest margin of a two-class linear model is known: m + eps * ||w||_dual.
    net, x = linear_net(classes=2).to(device), images(low=0.3, high=0.7).to(device)
    y = net(x).argmax(1)
    W = net[1].weight.detach()
    expected = margins(net, x, y) + worst(W[1 - y] - W[y])
    for attack in (partial(stability.pgd, loss="margin", step_size=1.0), partial(stability.pgd, random_start=False),
                   stability.fgsm):
        moved = attack(net, x, y, threat)
        # PGD stops at the first misclassified iterate: an image falls exactly when the closed form says so.
        assert torch.equal(margins(net, moved, y) > 0, expected > 0) and 0 < (expected > 0).sum() < len(x)
        standing = expected <= 0
        torch.testing.assert_close(margins(net, moved, y)[standing], expected[standing], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 8 / 255, 0.5, 1.0])
@pytest.mark.parametrize("norm", [Linf, L2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attack", [stability.fgsm, partial(stability.pgd, steps=5, restarts=2)], ids=["fgsm", "pgd"])
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


def test_noise_depends_on_generator_and_index_only():
    net, x = conv_net(), images(dtype=torch.float32)
    y = net(x).argmax(1)

    def attack(rows, seed=5, **settings):
        generator = torch.Generator().manual_seed(seed)
        return stability.pgd(net, x[rows], y[rows], Linf(0.01), steps=2, restarts=2, indices=rows,
                             generator=generator, **settings)

    every = attack(torch.arange(16))
    some = torch.tensor([9, 3, 12])
    torch.testing.assert_close(attack(some), every[some], rtol=0, atol=1e-6)
    torch.testing.assert_close(attack(torch.arange(16), batch_size=5), every, rtol=0, atol=1e-6)
    assert (attack(torch.arange(16), seed=6) - every).abs().max() > 1e-3
    same = stability.pgd(net, x[:1].repeat(2, 1, 1, 1), y[:1].repeat(2), Linf(0.01), steps=1, step_size=0.0)
    assert (same[0] - same[1]).abs().max() > 1e-3  # twins of different index start apart


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


def test_more_restarts_never_do_worse():
    net, x = conv_net(), images(64, dtype=torch.float32)
    y = net(x).argmax(1)
    moved = [stability.pgd(net, x, y, Linf(0.06), steps=2, restarts=n) for n in (1, 4)]
    robust = [int((net(images).argmax(1) == y).sum()) for images in moved]
    assert robust[1] <= robust[0]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", [stability.fgsm, partial(stability.pgd, steps=3)], ids=["fgsm", "pgd"])
def test_works_in_every_gradient_mode_and_leaves_the_network_alone(mode, attack, device):
    net = odenets.ode_resnet_small(scheme="implicit").to(device).train()
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


@pytest.mark.parametrize("call, message", [
    (lambda: Linf(-0.1), "epsilon"), (lambda: L2(float("nan")), "epsilon"), (lambda: Linf(float("inf")), "epsilon"),
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
    (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [lambda net, x, y: x[:, :, :1]]), "returned"),
    (lambda: stability.worst_case(linear_net(), X, Y, Linf(0.1), [("nan", lambda net, x, y: x / 0)]), "'nan'")])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def threshold(x):
    """Class 1 where the mean exceeds 1/2."""
    mean = x.flatten(1).mean(1)
    return torch.stack([torch.full_like(mean, 0.5), mean], 1)


def test_the_judge_projects_counts_and_passes_on_survivors_only():
    x = torch.tensor([0.3, 0.45, 0.6, 0.2])[:, None, None].repeat(1, 1, 2)
    y = torch.zeros(4, dtype=torch.int64)
    seen = []

    def brighten(net, x, y):  # far out of the ball: counts for no more than the ball allows
        seen.append(len(x))
        return torch.ones_like(x)

    def remember(net, x, y, indices):
        seen.append(indices.tolist())
        return x

    result = stability.worst_case(threshold, x, y, Linf(0.1), [("brighten", brighten), remember])
    assert seen == [3, [0, 3]]
    assert result.broken_by.tolist() == [-1, 0, -2, -1] and result.robust.tolist() == [True, False, False, True]
    assert result.names == ("brighten", "remember") and not result.untrusted.any()
    assert (result.x_adv - x).abs().max() <= 0.1 * (1 + 1e-6) and torch.equal(result.x_adv[0], x[0])


def test_an_untrusted_image_counts_as_broken():
    x = torch.tensor([0.1, 0.2, 0.3])[:, None].repeat(1, 2)

    def judge(x):
        return threshold(x), x[:, 0] < 0.25

    y = torch.zeros(3, dtype=torch.int64)
    result = stability.worst_case(threshold, x, y, Linf(0.1), [lambda net, x, y: x + 0.08], judge)
    assert result.untrusted.tolist() == [False, True, True] and result.broken_by.tolist() == [-1, 0, -2]


def test_an_image_within_the_ball_is_judged_bit_for_bit():
    net, x = conv_net(), images(dtype=torch.float32)
    y = net(x).argmax(1)
    edge = 0.5 * x + 0.25  # moves by exactly epsilon, which the attacks themselves keep a rounding error away from
    result = stability.worst_case(net, 0.5 * x, y, Linf(0.25), [lambda net, x, y: x + 0.25])
    tried = result.broken_by != -2
    assert torch.equal(result.x_adv[tried], edge[tried]) and tried.any()
    attack = partial(stability.pgd, threat=Linf(8 / 255), steps=3)
    result = stability.worst_case(net, x, y, Linf(8 / 255), [attack])
    assert result.names == ("pgd",) and torch.equal(result.x_adv, attack(net, x, y))
