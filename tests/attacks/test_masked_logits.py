"""Losses and attacks where logits are masked, tie or are far apart: all of them find what a linear net's classes allow."""

import pytest
import torch

import stability
from stability.attacks.ascent import Attacked, look
from stability.attacks.images import check_logits
from stability.attacks.losses import LOSSES, likeliest_wrong, objective_named
from stability.errors import InputError

CLASSES = 6


class Masked(torch.nn.Module):
    """A linear net whose classes from `live` on have the logit `dead`, its logits multiplied by a factor."""

    def __init__(self, live, dead=-torch.inf, factor=1.0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.live, self.dead, self.factor = torch.nn.Linear(16, CLASSES).to(dtype), live, dead, factor

    def forward(self, x):
        logits = self.factor * self.layer(x.flatten(1))
        return torch.where(torch.arange(CLASSES) < self.live, logits, torch.full_like(logits, self.dead))


def images(net, count=40):
    """Clear images among random ones: each far enough from the edge of the box for what is asked of it here."""
    x = 0.25 + 0.5 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=net.layer.weight.dtype)
    return x, net(x).argmax(1)


def radii(net, x, y):
    """(B,) the smallest epsilon at which some live class overtakes y, in closed form: no perturbation here meets the box."""
    weight, bias = net.layer.weight.detach().double()[: net.live], net.layer.bias.detach().double()[: net.live]
    logits, norms = x.flatten(1).double() @ weight.T + bias, (weight - weight[y][:, None]).abs().sum(2)
    return ((logits.gather(1, y[:, None]) - logits) / norms).scatter(1, y[:, None], torch.inf).amin(1)


ATTACKS = {
    "fgsm": lambda *case, loss: stability.fgsm(*case, loss=loss),
    "pgd": lambda *case, loss: stability.pgd(*case, loss=loss),
    "pgd, targets": lambda *case, loss: stability.pgd(*case, loss=loss, targets=CLASSES - 1),
    "apgd": lambda *case, loss: stability.apgd(*case, loss=loss, steps=30),
    "apgd, targets": lambda *case, loss: stability.apgd(*case, loss=loss, steps=30, targets=CLASSES - 1),
}


def least(live, loss, name):
    """The share of what is possible that must be found: all of it, where the loss looks at nothing but the class to reach.

    With many classes the direction of cross-entropy mixes them, with a target above all, and that of a ratio its denominator.
    """
    if live == 2 or (loss == "margin" and "targets" in name):
        return 1
    if name == "fgsm" or (live == CLASSES and "targets" in name and "cross_entropy" in loss):
        return 0.1
    return 1 if live < CLASSES else 0.8


# -1e9 as code masks by hand; the smallest float32, whose mean with itself overflows; -inf.
DEAD = (-torch.inf, -1e9, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("live", [2, 3, CLASSES])
def test_every_attack_breaks_what_a_linear_net_allows(live, loss, name):
    for dead in DEAD:
        net = Masked(live, dead)
        x, y = images(net)
        radius = radii(net, x, y)
        epsilon = min(0.25, radius.median().item())
        assert (radius < 0.9 * epsilon).sum() >= 5 and (radius > 1.05 * epsilon).sum() >= 5
        broken = net(ATTACKS[name](net, x, y, stability.Linf(epsilon), loss=loss)).argmax(1) != y
        assert not broken[radius > 1.05 * epsilon].any(), "more than there is"
        assert broken[radius < 0.9 * epsilon].double().mean() >= least(live, loss, name)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("factor", [1e3, 1e6, 1e30])
def test_a_saturated_softmax_stops_no_attack(factor, loss):
    plain, net = Masked(CLASSES), Masked(CLASSES, factor=factor)
    x, y = images(plain)
    radius = radii(plain, x, y)
    threat = stability.Linf(radius.median().item())
    for attack in (ATTACKS["pgd"], ATTACKS["apgd"]):
        broken = net(attack(net, x, y, threat, loss=loss)).argmax(1) != y
        assert broken[radius < 0.9 * threat.epsilon].double().mean() >= 0.8 and not broken[radius > 1.05 * threat.epsilon].any()
    if factor > 1e3:
        x, y = x[radius > 0.01], y[radius > 0.01]
        stuck = stability.pgd(net, x, y, threat, loss="plain_cross_entropy", random_start=False)
        assert torch.equal(stuck, x), "the textbook's has no gradient there: what the audit's check looks for"


def test_the_log_odds_are_the_logarithm_of_the_cross_entropy():
    """In float64, which still holds probabilities that float32 does not: same direction, order kept across the switch."""
    logits = torch.tensor([[0.0, -gap, -gap - 1] for gap in (5, 10, 15, 18, 80, 300.0)], requires_grad=True)
    y = torch.zeros(len(logits), dtype=torch.int64)
    found = objective_named("cross_entropy")(logits, y)
    exact = torch.log1p(logits.detach().double()[:, 1:].exp().sum(1))
    torch.testing.assert_close(found[3:5].double(), exact[3:5].log(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[:3].double(), exact[:3], rtol=1e-3, atol=2e-7)
    assert (found.diff() <= 0).all() and bool((found[:3] >= 0).all() & (found[3:] < 0).all())
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    share = torch.tensor([0.0, 1, 1]) * logits.detach().softmax(1) / logits.detach().softmax(1)[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(gradient[3], (share - torch.tensor([1.0, 0, 0]))[3])
    assert not torch.equal(gradient[5], torch.zeros(3)) and gradient[5].isfinite().all()


HARD = {
    "two left": [5.0, 1, -torch.inf, -torch.inf, -torch.inf],
    "three left": [5.0, 1, 0, -torch.inf, -torch.inf],
    "all wrong ones equal": [5.0, 0, 0, 0, 0],
    "all equal": [1.0, 1, 1, 1, 1],
    "far": [5.0, 1, -1e38, -1e38, -3.4e38],
    "farther": [3e38, -3e38, -3e38, -3e38, -3e38],
    "tiny": [5e-30, 1e-30, 0, 0, 0],
    "saturated": [500.0, 1, 0, 0, 0],
    "rounding apart": [500.0, 1, 1 - 6e-8, 1 - 1.2e-7, 1],
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("case", HARD)
def test_no_loss_is_flat_or_without_a_gradient_where_there_is_a_way(case, loss, targeted):
    """Raising the likeliest wrong logit and lowering the right one must look like an ascent."""
    logits = torch.tensor([HARD[case], [4.0, 3, 2, 1, 0]], requires_grad=True)
    y, target = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    value = objective_named(loss)(logits, y, target if targeted else None)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all() and not value.isnan().any()
    assert gradient[0, 1] - gradient[0, 0] > 0
    healthy = logits[1:].detach().requires_grad_()
    alone = objective_named(loss)(healthy, y[1:], target[1:] if targeted else None)
    assert torch.equal(alone, value[1:]), "a hard image changes nothing for its neighbour"


def test_targets_are_classes_that_are_left():
    logits = torch.tensor([[3.0, 2, 1, -torch.inf, -torch.inf], [-torch.inf, 2, 1, 0, -1]])
    assert likeliest_wrong(logits, torch.tensor([0, 1]), 4).tolist() == [[1, 2, 1, 2], [2, 3, 4, 2]]


def test_a_masked_right_class_is_misclassified_and_stops_nobody():
    """Its loss is infinite and its gradient NaN: it has fallen, and the others go on."""
    weight = torch.tensor([[1.0, -1], [-1, 1]])

    def net(x):
        flat = x.flatten(1)
        return flat @ weight.T + torch.stack([(0.9 - flat[:, 0]).clamp_min(0).log(), flat[:, 0] - 1], 1)

    x, y = torch.tensor([[[0.95, 0.5]], [[0.55, 0.5]]]), torch.tensor([0, 0])
    for loss in ("cross_entropy", "margin"):
        for attack in (ATTACKS["pgd"], ATTACKS["apgd"], ATTACKS["fgsm"]):
            moved = attack(net, x, y, stability.Linf(0.04), loss=loss)
            assert (net(moved).argmax(1) != y).all() and moved.isfinite().all()
    moved = stability.pgd(net, x, y, stability.Linf(0.04), keep="last", random_start=False)
    assert moved.isfinite().all() and net(moved).argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        ([[1.0, torch.nan]], "NaN"),
        ([[1.0, torch.inf]], r"\+Inf"),
        ([[-torch.inf, -torch.inf]], "no class is left"),
        ([[1.0]], "at least 2 classes apart, its logits have 1"),
    ],
)
def test_logits_that_tell_no_class_are_refused(logits, sentence):
    values, y = torch.tensor(logits), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match=sentence):
        check_logits(values, y)
    with pytest.raises(ValueError, match=sentence):
        stability.pgd(lambda x: values + 0 * x.flatten(1)[:, :1], torch.full((1, 1, 2, 2), 0.5), y, stability.Linf(0.1))


def test_a_gradient_that_is_none_is_refused_where_an_image_stands():
    point, y = torch.full((1, 2), 0.5), torch.zeros(1, dtype=torch.int64)

    def net(x):
        return torch.stack([1 + (x[:, 0] - 0.5).abs().sqrt(), x[:, 1]], 1)

    with pytest.raises(ValueError, match="the gradient of the loss holds NaN or Inf"):
        look(net, objective_named("margin"), point, Attacked(point, y, None, torch.arange(1), stability.Linf(0.1), point.dtype))
