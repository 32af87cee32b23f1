"""Auto-PGD against its algorithm written out for one image, known optima, and plain PGD."""

from math import ceil

import pytest
import torch
from attack_problems import hilly_net, images, linear_net, margins, robust

import stability
from stability import L2, Linf
from stability.attacks import losses
from stability.attacks.auto_pgd import checkpoints


def reference(net, x, y, threat, steps, loss):
    """Algorithm 1 of Croce & Hein (2020) for one image, line by line, without noise and without an early end."""
    linf = isinstance(threat, Linf)

    def project(point):
        delta = point - x
        if linf:
            delta = delta.clamp(-threat.epsilon, threat.epsilon)
        elif delta.norm() > threat.epsilon:
            delta = delta * threat.epsilon / delta.norm()
        return (x + delta).clamp(0, 1)

    def value(point):
        return loss(net(point[None]), y[None])[0]

    def towards(point):
        point = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(point), point)
        return gradient.sign() if linf else gradient / gradient.norm()

    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    W = [ceil(round(share * steps, 9)) for share in shares if share <= 1]
    size = 2 * threat.epsilon
    xs = [x, project(x + size * towards(x))]
    fs = [value(point).item() for point in xs]
    best = max(fs)
    top = xs[fs.index(best)]
    seen = {0: (size, fs[0])}
    for k in range(1, steps + 1):
        if k in W:
            start = W[W.index(k) - 1]
            rising = sum(fs[i + 1] > fs[i] for i in range(start, k))
            reduce = rising < 0.75 * (k - start) or (seen[start] == (size, best))
            seen[k] = (size, best)
            if reduce:
                size, xs[k], fs[k] = size / 2, top, best
        if k == steps:
            break
        z = project(xs[k] + size * towards(xs[k]))
        xs.append(project(xs[k] + 0.75 * (z - xs[k]) + 0.25 * (xs[k] - xs[k - 1])))
        fs.append(value(xs[-1]).item())
        if fs[-1] > best:
            best, top = fs[-1], xs[-1]
    return top


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_it_is_the_algorithm_of_the_paper(threat, steps):
    net, x = hilly_net(), images(12)
    far = lambda x: net(x) + 100 * torch.nn.functional.one_hot(y, 5)  # noqa: E731  no image falls
    y = net(x).argmax(1)
    moved = stability.apgd(far, x, y, threat, steps=steps, loss="margin", random_start=False)
    for one, label, found in zip(x, y, moved):
        expected = reference(
            lambda x, label=label: net(x) + 100 * torch.nn.functional.one_hot(label, 5),
            one,
            label,
            threat,
            steps,
            losses.margin,
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_steps_are_halved_by_each_of_the_two_conditions_alone():
    # Checkpoints after 5 and 9 of 20 steps. Until 5 four of five steps rise, but none above the start: the second condition
    # halves. Until 9 three of four rise, which is enough, and the second condition does not hold twice in a row.
    script, points = [10, 1, 2, 3, 4, 5, 1, 2, 3, 4, *range(5, 16)], []

    def net(x):  # the loss is as scripted, the gradient always the same
        value = script[len(points)] - 100 + (x - x.detach()).sum(1)
        points.append(float(x.detach()[0, 0] - 0.5) / 0.1)
        return torch.stack([torch.zeros_like(value), value], 1)

    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    stability.apgd(net, x, torch.zeros(1, dtype=torch.int64), Linf(0.1), steps=20, loss="margin", random_start=False)
    # Back at the start after 5, half a ball ahead with momentum against it; all the way again; and no halving after 9.
    assert points[1:11] == pytest.approx([1, 1, 1, 1, 1, 0.5, 1, 1, 1, 1], abs=1e-6)


def test_checkpoints_are_those_of_the_paper():
    # Periods of 22, 19, 16, 13, 10, 7, 6, 6 and so on percent.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50)[:2] == [11, 21] and checkpoints(1)[0] == 1


@pytest.mark.parametrize(
    "threat, worst", [(Linf(0.1), lambda w: 0.1 * w.abs().sum(1)), (L2(0.2), lambda w: 0.2 * w.norm(dim=1))]
)
def test_exact_on_a_linear_model(threat, worst, device):
    net, x = linear_net(classes=2).to(device), images(low=0.3, high=0.7).to(device)
    y = net(x).argmax(1)
    W = net[1].weight.detach()
    expected = margins(net, x, y) + worst(W[1 - y] - W[y])
    for loss in ("cross_entropy", "margin"):
        moved = stability.apgd(net, x, y, threat, steps=50, loss=loss)
        assert torch.equal(margins(net, moved, y) > 0, expected > 0) and 0 < (expected > 0).sum() < len(x)
        standing = expected <= 0
        torch.testing.assert_close(margins(net, moved, y)[standing], expected[standing], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("threat", [Linf(0.06), L2(0.15)])
def test_more_steps_never_lower_the_loss_and_it_beats_pgd(threat):
    net, x = hilly_net(), images(96)
    y = net(x).argmax(1)
    left = {}
    for name, attack in (("pgd", stability.pgd), ("apgd", stability.apgd)):
        moved = attack(net, x, y, threat, steps=30)
        left[name] = robust(net, moved, y)
    assert 0 < left["apgd"] <= left["pgd"] < len(x)
    both = stability.apgd(net, x, y, threat, steps=30, restarts=3)
    assert robust(net, both, y) <= left["apgd"]


def test_fallen_images_cost_nothing():
    calls = []

    def net(x):
        calls.append(len(x))
        total = x.sum(1)
        return torch.stack([torch.zeros_like(total), total - 1.3, torch.full_like(total, -5)], 1)

    x = torch.tensor([[0.5, 0.5], [0.2, 0.2]])
    moved = stability.apgd(net, x, torch.zeros(2, dtype=torch.int64), Linf(0.2), steps=5, random_start=False)
    assert net(moved).argmax(1).tolist() == [1, 0] and calls[:6] == [2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"targets": 9}, "targets"),
        ({"loss": "hinge"}, "choose from"),
        ({"indices": [1]}, "indices"),
    ],
)
def test_bad_input(settings, message):
    net, x = linear_net(), images(2)
    with pytest.raises(ValueError, match=message):
        stability.apgd(net, x, torch.tensor([0, 1]), Linf(0.1), **settings)
