"""The losses that attacks climb, against formulas written out class by class, and what they must not change under."""

import pytest
import torch

from stability.attacks.losses import LOSSES, likeliest_wrong, objective_named


def by_hand(name, logits, right, target):
    """One image, in plain numbers."""
    ordered, exp = sorted(logits, reverse=True), [2.718281828459045**value for value in logits]
    wrong = max(value for index, value in enumerate(logits) if index != right) if target is None else logits[target]
    if name.endswith("cross_entropy"):
        probability = exp[right if target is None else target] / sum(exp)
        return float(torch.tensor(probability).log()) * (-1 if target is None else 1)
    if name == "margin":
        return wrong - logits[right]
    spread = ordered[0] - (ordered[2] if target is None else (ordered[2] + ordered[3]) / 2)
    return -(logits[right] - wrong) / spread


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas(name, targeted, generator):
    logits = 3 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y, target = torch.arange(40) % 6, (torch.arange(40) % 6 + 2) % 6
    found = objective_named(name)(logits, y, target if targeted else None)
    expected = [by_hand(name, row.tolist(), int(a), int(b) if targeted else None) for row, a, b in zip(logits, y, target)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_knows_no_scale_and_no_shift(targeted, generator):
    logits, y = torch.randn(20, 5, generator=generator, dtype=torch.float64), torch.arange(20) % 5
    target = (y + 1) % 5 if targeted else None
    dlr = objective_named("dlr")
    torch.testing.assert_close(dlr(1e6 * logits + 7, y, target), dlr(logits, y, target), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_stay_finite_where_logits_tie(name):
    logits = torch.zeros(3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective_named(name)(logits, torch.arange(3)).sum(), logits)
    assert gradient.isfinite().all()


def test_the_likeliest_wrong_classes_leave_the_right_one_out():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    assert likeliest_wrong(logits, torch.tensor([0, 1]), 3).tolist() == [[1, 2, 3], [3, 2, 0]]
    with pytest.raises(ValueError, match="1 to 3.*got 4"):
        likeliest_wrong(logits, torch.tensor([0, 1]), 4)
