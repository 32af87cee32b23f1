"""Attacks before the judge: what they do to a network that is in training mode, and which attacks they take."""

from functools import partial

import torch
from torch import nn

import stability

THREAT = stability.Linf(0.1)


def batch():
    """Images and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 4, 4, generator=generator), torch.randint(3, (12,), generator=generator)


def test_a_network_in_training_mode_is_evaluated_in_eval_mode_and_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attack = stability.before_the_judge(partial(stability.pgd, threat=THREAT, steps=2))
    stability.worst_case(net, *batch(), THREAT, [attack], judge=stability.cold_judge(net))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_attacks_that_worst_case_takes_are_taken():
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), batch()
    told = partial(stability.pgd, threat=THREAT, steps=3)
    untold = partial(stability.fgsm, threat=THREAT)
    for attack in (told, untold):
        plain, before = (stability.worst_case(net, x, y, THREAT, [one]) for one in (attack, stability.before_the_judge(attack)))
        assert torch.equal(plain.x_adv, before.x_adv)
