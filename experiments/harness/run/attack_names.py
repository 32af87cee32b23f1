"""What the names of attacks and of threats on a command line stand for."""
import re
from functools import partial
from importlib.util import find_spec

import torch

import stability
from odenets.errors import InputError, MissingExtra

THREATS = {"linf": stability.Linf, "l2": stability.L2}
# A form of names, N being a whole number: the attack, what N is to it, and its other arguments.
FORMS = {
    "fgsm": (stability.fgsm, None, {}),
    "pgdN": (stability.pgd, "steps", {}),
    "pgdN-margin": (stability.pgd, "steps", {"loss": "margin"}),
    "pgdN-dlr": (stability.pgd, "steps", {"loss": "dlr"}),
    "pgdN-momentum": (stability.pgd, "steps", {"momentum": 1.0}),
    "apgdN-ce": (stability.apgd, "steps", {"loss": "cross_entropy"}),
    "apgdN-dlr": (stability.apgd, "steps", {"loss": "dlr"}),
    "apgdN-t": (stability.apgd, "steps", {"loss": "dlr", "targets": 9}),
    "squareN": (stability.square, "queries", {}),
    "noiseN": (stability.noise, "draws", {}),
    "autoattack": (stability.autoattack, None, {}),
}
CHOICE = f"{', '.join(FORMS)}, N being a number of steps, queries or draws, such as pgd20"


def norm_symbol(config):
    """The norm of a run's attacks, for sentences and figures; runs of before there was a choice used L-infinity."""
    return {"linf": "L\u221e", "l2": "L\u2082"}[config.get("threat", "linf")]


def radius(epsilon):
    """A radius for tables and figures: 0.1; 8/255 where it is that and three digits do not say it."""
    levels, short = 255 * epsilon, f"{epsilon:.3g}"
    return f"{levels:.0f}/255" if float(short) != epsilon and abs(levels - round(levels)) < 1e-6 else short


def parse_attack(name):
    """(net, x, y, threat, generator, indices) -> adversarial images, for a name of one of the `FORMS`."""
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)?(-[a-z]+)?", name)
    form = match and f"{match[1]}{'N' if match[2] else ''}{match[3] or ''}"
    if form not in FORMS:
        raise InputError(f"unknown attack {name!r}; choose from {CHOICE}")
    if form == "autoattack" and find_spec("pyautoattack") is None:
        raise MissingExtra("the attack autoattack needs the package pyautoattack: pip install \"odenets[autoattack]\"")
    attack, count, settings = FORMS[form]
    return partial(_call, attack, settings if count is None else {count: int(match[2]), **settings})


def follows_gradient(name):
    """Whether an attack's outcome depends on the gradient in use."""
    return not name.startswith(("square", "noise"))


def parse_attacks(names):
    """The names without repetitions, each checked; ValueError where there is none."""
    if not names:
        raise InputError(f"--attacks is empty; choose from {CHOICE}")
    for name in names:
        parse_attack(name)
    return list(dict.fromkeys(names))


def _call(attack, settings, net, x, y, threat, generator, indices):
    if attack is stability.fgsm:  # no noise
        return attack(net, x, y, threat, **settings)
    if attack is stability.autoattack:  # its noise knows no images
        return attack(net, x, y, threat, generator=generator, **settings)
    return attack(net, x, y, threat, generator=generator, indices=indices, **settings)


def seeded(attack, threat, seed):
    """The attack with noise that depends on the seed and an image's index, so that all schemes meet the same."""
    def seeded_attack(net, x, y, indices):
        return attack(net, x, y, threat, torch.Generator().manual_seed(seed), indices)
    return stability.before_the_judge(seeded_attack)
