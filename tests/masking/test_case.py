"""Attacks before the judge: what they do to a network that is in training mode, and which attacks they take."""

from functools import partial

import torch
from audited import sample, trained
from torch import nn

import odenets
import stability
from experiments.harness.run import measure
from experiments.harness.training.data import Split
from stability.masking import subject

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


def marked(call):
    call.takes_indices = True
    return call


def test_an_attack_before_the_judge_starts_warm_where_it_says_whom_it_shows():
    """PGD as it is marked, and the same attack as a plain callable (net, x, y): the latter gets the network itself."""
    net, (x, y), threat = trained("implicit", "implicit"), sample(12), stability.Linf(0.05)
    seen, counted = [], []
    stage = next(iter(odenets.stages(net).values()))
    hook = stage.register_forward_hook(lambda stage, args, value: counted.append(stage.stats.evaluations))

    @marked
    def speaking(net, x, y, indices):
        seen.append(type(net))
        return stability.pgd(net, x, y, threat, steps=6, indices=indices)

    def plain(net, x, y):
        seen.append(type(net))
        return stability.pgd(net, x, y, threat, steps=6)

    found, spent = [], []
    for attack in (speaking, plain):
        counted.clear()
        found.append(stability.before_the_judge(attack)(net, x, y))
        spent.append(sum(counted[1:7]))
    hook.remove()
    assert set(seen) == {odenets.WarmStart, type(net)} and spent[0] < 0.8 * spent[1]
    judge = stability.cold_judge(net)
    right = [int((judge(images)[0].argmax(1) == y).sum()) for images in found]
    assert abs(right[0] - right[1]) <= 2
    result = stability.worst_case(net, x, y, threat, [("plain", stability.before_the_judge(plain))], judge)
    assert result.names == ("plain",) and torch.equal(found[1], stability.before_the_judge(plain)(net, x, y))


def test_clean_images_are_judged_once_a_case(monkeypatch):
    net, test, judged = trained("implicit", "implicit"), Split(*sample(8)), []
    judge = subject.ColdJudge.__call__
    monkeypatch.setattr(subject.ColdJudge, "__call__", lambda self, x, y=None: judged.append(x) or judge(self, x, y))
    measured = measure.measure_accuracy(net, test, ["pgd3"], [0.02, 0.05], 0)
    clean = [x for x in judged if torch.equal(x, test.images)]
    assert len(clean) == 1 and len(judged) == len(measured) == 5
    alone = measure.measure_attack(net, test, "pgd3", 0.05, "detached", 0)
    assert alone == measured[-1]
