"""What the names of attacks on a command line stand for."""
import functools
import re

import torch

import stability


def parse_attack(name):
    """(net, x, y, threat, generator, indices) -> adversarial images, for "fgsm" or "pgdN" with N steps."""
    match = re.fullmatch(r"fgsm|pgd([1-9]\d*)", name)
    if not match:
        raise ValueError(f"unknown attack {name!r}; choose fgsm or pgd with a number of steps, such as pgd20")
    if name == "fgsm":
        return lambda net, x, y, threat, generator, indices: stability.fgsm(net, x, y, threat)
    return functools.partial(_pgd, int(match[1]))


def _pgd(steps, net, x, y, threat, generator, indices):
    return stability.pgd(net, x, y, threat, steps=steps, generator=generator, indices=indices)


def seeded(attack, threat, seed):
    """The attack with noise that depends on the seed and an image's index, so that all schemes meet the same."""
    def seeded_attack(net, x, y, indices):
        return attack(net, x, y, threat, torch.Generator().manual_seed(seed), indices)
    return stability.before_the_judge(seeded_attack)
