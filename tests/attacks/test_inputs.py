"""What attacks refuse, in a sentence that shows it, and what they take though it looks unusual."""

import pytest
import torch
from attack_problems import conv_net, images, linear_net

import stability
from stability import Linf
from stability.attacks.images import check_logits

X, Y = images(2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: stability.pgd(linear_net(), X, Y.int(), Linf(0.1)), r"labels must be int64.*got torch.int32 \(2,\) on cpu"),
        (lambda: stability.pgd(linear_net(), X, [0, 1], Linf(0.1)), "labels must be int64.*got list"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), generator=0), "generator must be a torch.Generator.*got 0"),
        (lambda: stability.square(linear_net(), X, Y, Linf(0.1), generator=0), "generator must be a torch.Generator.*got 0"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), indices=[0.5, 1.0]), "indices must be whole.*got torch.float"),
        (lambda: stability.pgd(linear_net(), X, Y, Linf(0.1), step_size="a"), "step_size must be finite.*got 'a'"),
        (lambda: stability.pgd(lambda x: (x.flatten(1), 1), X, Y, Linf(0.1)), "floating-point tensor of logits, got tuple"),
        (lambda: stability.square(lambda x: x.flatten(1).long(), X, Y, Linf(0.1)), "tensor of logits, got torch.int64"),
        (lambda: stability.pgd(lambda x: x.detach().flatten(1), X, Y, Linf(0.1)), "square and noise need no gradient"),
        (lambda: check_logits(torch.tensor([[float("nan"), 0.0], [0.0, 1.0]]), Y, torch.tensor([True, False])), "NaN"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nan_is_allowed_where_nobody_trusts_it():
    check_logits(torch.tensor([[float("nan"), 0.0], [0.0, 1.0]]), Y, torch.tensor([False, True]))


def test_images_that_require_gradients_are_taken_without_them():
    moved = stability.pgd(linear_net(), X.clone().requires_grad_(), Y, Linf(0.1))
    assert not moved.requires_grad and torch.equal(moved, stability.pgd(linear_net(), X, Y, Linf(0.1)))


@pytest.mark.parametrize("attack", [stability.pgd, stability.apgd, stability.square, stability.noise, stability.fgsm])
def test_logits_of_low_precision_are_attacked_too(attack):
    net, x, y = conv_net(), images(dtype=torch.float32), torch.arange(16) % 3
    moved = attack(lambda x: net(x).half(), x, y, Linf(0.1))
    assert moved.dtype == torch.float32 and not torch.equal(moved, x)


@pytest.mark.parametrize("attack", [stability.fgsm, stability.pgd, stability.apgd, stability.square, stability.noise])
def test_rounding_beyond_the_box_is_clipped(attack):
    x = images(dtype=torch.float32)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1 + 2e-7, -1e-7
    net, y, before = conv_net(), torch.arange(16) % 3, x.clone()
    moved = attack(net, x, y, Linf(0.1))
    assert torch.equal(moved, attack(net, x.clamp(0, 1), y, Linf(0.1))) and torch.equal(x, before)
    verdicts = [stability.worst_case(net, images, y, Linf(0.1), [lambda net, x, y: x]) for images in (x, x.clamp(0, 1))]
    assert torch.equal(verdicts[0].x_adv, verdicts[1].x_adv) and verdicts[0].question == verdicts[1].question
    assert 0 <= verdicts[0].x_adv.min() and verdicts[0].x_adv.max() <= 1


@pytest.mark.parametrize(
    "value, beyond",
    [(1 + 1e-5, "1.00001], 1e-05 beyond"), (-3e-6, "-3e-06, .*3e-06 beyond"), (2.0, "2], 1 beyond"), (float("nan"), "nan")],
)
def test_an_image_outside_the_box_is_told_by_how_much(value, beyond):
    x = X.clone()
    x[0, 0, 0, 0] = value
    for call in (lambda: stability.pgd(linear_net(), x, Y, Linf(0.1)), lambda: stability.audit(linear_net(), x, Y, Linf(0.1))):
        with pytest.raises(ValueError, match=beyond.replace("]", r"\]").replace("+", r"\+")):
            call()
