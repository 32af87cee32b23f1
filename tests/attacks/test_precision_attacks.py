"""Attacks on networks and images in half precision. Oracles: a linear net's best attack in closed form, and float32."""

from functools import partial

import pytest
import torch
from torch import nn

import odenets
import stability
from stability import L2, Linf
from stability.attacks.ascent import in_parts
from stability.attacks.judge import _held
from stability.attacks.threats import representable, working_precision
from stability.errors import InputError
from stability.masking.audit import CHECKS

HALVES = [torch.bfloat16, torch.float16]
COUNT, SHAPE = 60, (3, 8, 8)
ATTACKS = {
    "fgsm": stability.fgsm,
    "pgd": partial(stability.pgd, steps=10),
    "momentum": partial(stability.pgd, steps=10, momentum=0.9, loss="margin"),
    "last": partial(stability.pgd, steps=10, keep="last"),
    "apgd": partial(stability.apgd, steps=10),
    "square": partial(stability.square, queries=30),
    "noise": partial(stability.noise, draws=5, where="edge"),
}
GRADIENT = ["fgsm", "pgd", "momentum", "last", "apgd"]


class Linear(nn.Module):
    """Two logits +-(w, x - 1/2), weights that every dtype here holds exactly; nothing in the images is saturated."""

    def __init__(self, shape=SHAPE):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = (torch.randint(1, 9, shape, generator=generator) * (2 * torch.randint(2, shape, generator=generator) - 1)) / 8
        self.weight = nn.Parameter(torch.stack([weights.flatten(), -weights.flatten()]))

    def forward(self, x):
        return (x - 0.5).flatten(1) @ self.weight.T


class Turn(nn.Module):
    """A field that turns and contracts two logits, with a weight to be rounded."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-0.1, 0.3], [-0.3, -0.1]]))

    def forward(self, t, y):
        return torch.tanh(y) @ self.weight.T


def _images(count=COUNT, shape=SHAPE):
    """Images whose pixels all dtypes hold, their labels, and the weights of the loss, (B, ...): w where y is 1, else -w."""
    x = torch.rand((count, *shape), generator=torch.Generator().manual_seed(1)).mul(0.8).add(0.1).bfloat16().float()
    y = Linear(shape)(x).argmax(1)
    w = Linear(shape).weight[0].detach().view(shape)
    return x, y, torch.where(y.view(-1, 1, 1, 1) == 0, -w, w)


def _margin(x, uphill):
    """(B,) wrong logit minus right one of `Linear`, in float64."""
    return 2 * ((x.double() - 0.5) * uphill.double()).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("threat", [Linf(2 / 255), Linf(1 / 255), Linf(0.03), L2(0.1), L2(0.5)], ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_images_keep_their_dtype_move_and_stay_in_the_ball(name, threat, dtype):
    x, y, _ = _images(8)
    adversarial = ATTACKS[name](Linear().to(dtype), x.to(dtype), y, threat)
    assert adversarial.dtype == dtype and adversarial.min() >= 0 and adversarial.max() <= 1
    size = threat.size(adversarial.double() - x.double())
    assert (size <= threat.epsilon * (1 + 1e-12)).all() and (size > 0.75 * threat.epsilon).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", GRADIENT)
def test_the_best_attack_of_the_grid_is_found(name, dtype):
    """In the max norm each pixel goes as far as the ball does, to the last number of its dtype: a search over all of them."""
    (x, y, uphill), threat, net = _images(30), Linf(2 / 255), _Never(3.0)
    x, y, uphill = (rows[y == 0] for rows in (x, y, uphill))
    grid = torch.arange(torch.tensor(1.0, dtype=dtype).view(torch.int16).item() + 1, dtype=torch.int16).view(dtype).double()
    lowest = grid[torch.searchsorted(grid, (x.double() - threat.epsilon).clamp_min(0))]
    highest = grid[torch.searchsorted(grid, (x.double() + threat.epsilon).clamp_max(1), right=True) - 1]
    best = torch.where(uphill > 0, highest, lowest)
    found = ATTACKS[name](net, x.to(dtype), y, threat)
    # float32 takes a few millionths of the budget off for its rounding, which may cost a number at the very edge.
    gained, possible = (_margin(image, uphill) - _margin(x, uphill) for image in (found, best))
    assert (gained > 0.99 * possible).all() and (gained <= possible + 1e-9).all()


class _Never(nn.Module):
    """The same slopes in float32, class 0 far ahead: no image falls, so that attacks go all the way."""

    def __init__(self, ahead):
        super().__init__()
        self.linear, self.ahead = Linear(), ahead

    def forward(self, x):
        return self.linear(x.float()) + torch.tensor([self.ahead, 0.0])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("threat", [Linf(2 / 255), L2(0.1)], ids=str)
@pytest.mark.parametrize("name", GRADIENT)
def test_as_many_images_fall_as_in_float32(name, threat, dtype):
    x, y, uphill = _images()
    best = 2 * threat.epsilon * (uphill.flatten(1).norm(p=1 if isinstance(threat, Linf) else 2, dim=1))
    closed = _margin(x, uphill) + best
    sure = closed.abs() > 0.1 * best  # the grid costs a little of the budget, and logits are rounded
    outcomes = []
    for kind in (torch.float32, dtype):
        net, images = Linear().to(kind), x.to(kind)
        verdict = stability.worst_case(net, images, y, threat, [partial(ATTACKS[name], threat=threat)])
        outcomes.append(verdict.robust)
        assert torch.equal(verdict.robust[sure], (closed < 0)[sure])
        assert torch.equal(net(verdict.x_adv).argmax(1) == y, verdict.robust)  # the very images that were counted
    assert 0.1 < float(outcomes[0].float().mean()) < 0.95 and sure.float().mean() > 0.8


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_returned_was_shown_to_the_network(name, dtype):
    shown, net = [], Linear().to(dtype)
    net.register_forward_pre_hook(lambda module, args: shown.append(args[0].detach().clone()))
    x, y, _ = _images(6)
    adversarial = ATTACKS[name](net, x.to(dtype), y, Linf(2 / 255))
    assert all(image.dtype == dtype for image in shown)
    if name not in ("fgsm", "last"):  # those end with a step, after which nobody looks
        seen = {tuple(image.flatten().tolist()) for batch in shown for image in batch}
        assert all(tuple(image.flatten().tolist()) in seen for image in adversarial)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["pgd", "square", "noise"])
def test_l2_moves_at_the_size_of_imagenet(name, dtype):
    """A quarter spread over 150,528 pixels is 0.0006 for each: below half a step of bfloat16 wherever a pixel exceeds 1/8."""
    x = torch.rand((1, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(dtype)
    net, threat = Linear((3, 224, 224)).to(dtype), L2(0.25)
    attack = {"pgd": partial(ATTACKS["pgd"], steps=2), "square": partial(ATTACKS["square"], queries=2)}.get(name, ATTACKS[name])
    y = net(x).argmax(1)
    size = threat.size(attack(net, x, y, threat).double() - x.double())
    assert 0.9 * threat.epsilon < size <= threat.epsilon


@pytest.mark.parametrize("threat", [Linf(1e-7), L2(3e-6)], ids=str)
def test_a_ball_of_a_few_units_of_float32_is_used_too(threat):
    x, y, _ = _images(6)
    adversarial = stability.pgd(Linear(), x, y, threat)
    size = threat.size(adversarial.double() - x.double())
    assert (size <= threat.epsilon).all() and (size > 0.5 * threat.epsilon).all()


def test_ordinary_balls_are_attacked_in_the_dtype_of_the_images():
    for dtype, threat, wanted in (
        (torch.float32, Linf(1 / 255), torch.float32),
        (torch.float64, Linf(1e-9), torch.float64),
        (torch.bfloat16, Linf(1 / 255), torch.float32),
        (torch.float32, Linf(1e-7), torch.float64),
        (torch.float32, Linf(0.0), torch.float32),
    ):
        assert working_precision(threat, torch.rand(1, *SHAPE).to(dtype)) == wanted
    (part,) = in_parts(*_images(4)[:2], Linf(0.1), torch.arange(4), 4)
    assert part.shown(part.x) is part.x


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("threat", [Linf(0.01), L2(0.2)], ids=str)
def test_rounding_into_the_ball(threat, dtype):
    generator = torch.Generator().manual_seed(3)
    x = (torch.rand((50, 40), generator=generator) ** 3).to(dtype).float()
    x[0], x[1] = 0.0, 1.0
    point = (x + threat.project(torch.randn(x.shape, generator=generator) * threat.epsilon * 0.3) * 0.999).clamp(0, 1)
    image = representable(threat, point, x, dtype)
    moved, wanted = image.double() - x.double(), point.double() - x.double()
    assert image.dtype == dtype and (threat.size(moved) <= threat.epsilon).all() and (image >= 0).all() and (image <= 1).all()
    assert (moved * wanted >= 0).all()  # never to the other side
    # One of the two numbers beside the point: no third one lies between.
    spacing = torch.finfo(dtype).eps * torch.maximum(image.double(), point.double()).clamp_min(torch.finfo(dtype).tiny)
    assert ((moved - wanted).abs() <= spacing).all()
    assert torch.equal(representable(threat, x, x, dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_judge_holds_half_precision_images_to_the_ball(dtype):
    x = _images(5)[0].to(dtype)
    for threat in (Linf(2 / 255), L2(0.05)):
        held = _held((x.float() + 0.05).to(dtype), x, threat)
        size = threat.size(held.double() - x.double())
        assert held.dtype == dtype and (size <= threat.epsilon).all() and (size > 0.9 * threat.epsilon).all()
        assert torch.equal(_held(held, x, threat), held)


def test_float16_gradients_do_not_vanish_where_the_softmax_saturates():
    """Logits 18 apart: the slope of the cross-entropy is 2e-8, less than float16 can hold."""
    exact, (x, y, _) = Linear(), _images()
    exact.weight.data *= 4
    confident = (exact(x).diff(dim=1).abs()[:, 0] > 18).nonzero()[:8, 0]
    assert len(confident) >= 3
    x, y = x[confident], y[confident]
    theirs = stability.fgsm(exact, x, y, Linf(0.02)) - x
    ours = stability.fgsm(exact.half(), x.half(), y, Linf(0.02)).float() - x
    assert torch.equal(ours.sign(), theirs.sign())
    x, y, uphill = _images(5)
    ours = stability.fgsm(_Never(25.0), x.half(), torch.zeros_like(y), Linf(0.02)).float() - x
    assert torch.equal(ours.sign(), -Linear().weight[0].sign().detach().view(SHAPE).expand_as(x))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("threat", [Linf(2 / 255), L2(0.1)], ids=str)
def test_an_honest_net_passes_the_audit_in_every_precision(threat, dtype):
    x, y, _ = _images(40)
    result = stability.audit(Linear().to(dtype), x.to(dtype), y, threat, many_steps=40, queries=30)
    assert result.passed, str(result)
    (moved,) = (check for check in result.checks if check.name == "moved")
    assert moved.passed and moved.figures["used_median"] > 0.9 and moved.thresholds["used_median"] == 0.5


@pytest.mark.parametrize("dtype", HALVES)
def test_an_ode_net_in_half_precision_is_audited(dtype):
    x, y, _ = _images(30)
    net = nn.Sequential(Linear(), odenets.ODEStage([Turn()], "implicit")).to(dtype)
    result = stability.audit(net, x.to(dtype), y, Linf(2 / 255), steps=5, many_steps=10, queries=5)
    assert result.passed, str(result)
    assert {check.name: check.passed for check in result.checks if check.passed is None} == {}


def _moved(net, x, y, threat):
    return stability.audit(net, x, y, threat, steps=3, many_steps=5, checks=["moved"]).checks[0]


def test_an_attack_that_returns_the_image_itself_does_not_pass(monkeypatch):
    x, y, _ = _images(20)
    monkeypatch.setattr("stability.masking.subject.pgd", lambda net, x, y, threat, **settings: x)
    check = _moved(Linear(), x, y, Linf(2 / 255))
    assert check.passed is False and check.figures == {"used_median": 0.0, "used_smallest": 0.0, "still": 1.0}
    assert "20 images left standing 20 were moved by less than 10%" in check.reason


def test_an_attack_that_uses_a_quarter_of_the_budget_does_not_pass(monkeypatch):
    x, y, _ = _images(20)
    monkeypatch.setattr(
        "stability.masking.subject.pgd", lambda net, x, y, threat, **settings: (x + threat.epsilon / 4).clamp(0, 1)
    )
    assert _moved(Linear(), x, y, Linf(2 / 255)).passed is False


def test_a_ball_that_no_dtype_resolves_does_not_pass():
    x, y, _ = _images(20)
    assert _moved(Linear(), x, y, Linf(1e-9)).passed is False  # float32 images have no neighbours so near


def test_moved_does_not_apply_where_nothing_stands_or_may_move():
    x, y, _ = _images(10)
    assert _moved(Linear(), x, y, Linf(0.0)).passed is None
    assert _moved(Linear(), x, y, Linf(0.9)).passed is None
    assert list(CHECKS).index("moved") < list(CHECKS).index("more_steps")


def test_autoattack_says_why_it_takes_float32_alone():
    pytest.importorskip("pyautoattack")
    x, y, _ = _images(2)
    with pytest.raises(InputError, match="float32 images .* got torch.bfloat16 .* outside the ball"):
        stability.autoattack(Linear().bfloat16(), x.bfloat16(), y, Linf(0.1))
