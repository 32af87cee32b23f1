"""Our attacks beside foolbox's, torchattacks' and the reference AutoAttack's: the same weights, images, radius and step.

Peers that are not installed are named and skipped; `pip install -e ".[attacks-bench]"` gets them.
It is an extra of its own, best in an environment of its own: torchattacks pins requests to a version of 2020.
"""

from dataclasses import replace
from functools import cache

import torch

import odenets
import stability
from experiments.benchmarks import libraries as peers
from experiments.benchmarks.timing import TRAINING, fastest
from experiments.harness.training import data
from experiments.harness.training import loop as training

STEPS = 20
# How a net was trained, the radius it is attacked with, the target for time, what becomes of the images.
CASES = (("standard", 0.25, 0.6, "most fall early"), ("standard", 0.1, None, "some fall"), ("pgd", 0.05, None, "few fall"))
REFERENCE = {"standard": (stability.Linf(0.1),), "pgd": (stability.L2(0.8),)}


@cache
def trained(method, device, smoke):
    """The default small net on digits, its test images and labels."""
    digits = data.load("digits", None)
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="explicit")
    settings = replace(TRAINING, training=method, train_epsilon=0.15, train_steps=5, epochs=1 if smoke else 15)
    training.train(net, digits, settings, 0)
    test = digits.test.first(20) if smoke else digits.test
    return net.to(device), test.images.to(device), test.labels.to(device)


def robust(net, x, y):
    """Accuracy in percent."""
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).double().mean())


def _foolbox(net, x, y, epsilon, step_size):
    module = peers.peer("foolbox")
    model = module.PyTorchModel(net, bounds=(0, 1), device=x.device)
    attack = module.attacks.LinfPGD(abs_stepsize=step_size, steps=STEPS, random_start=False)
    return lambda: attack(model, x, y, epsilons=epsilon)[1]


def _torchattacks(net, x, y, epsilon, step_size):
    attack = peers.peer("torchattacks").PGD(net, eps=epsilon, alpha=step_size, steps=STEPS, random_start=False)
    return lambda: attack(x, y)


def pgd(device, smoke):
    """PGD-20 against the PGD of foolbox and of torchattacks, all from the images themselves with the same step."""
    found = {name: attack for name, attack in (("foolbox", _foolbox), ("torchattacks", _torchattacks)) if peers.peer(name)}
    for name in {"foolbox", "torchattacks"} - set(found):
        yield f"{name} is not installed: skipped", None, None
    if not found:
        return
    for method, epsilon, target, label in CASES[: 1 if smoke else None]:
        net, x, y = trained(method, device, smoke)
        step_size = 2.5 * epsilon / STEPS

        def ours(keep, net=net, x=x, y=y, epsilon=epsilon, step_size=step_size):
            return stability.pgd(net, x, y, stability.Linf(epsilon), STEPS, step_size, random_start=False, keep=keep)

        theirs = [attack(net, x, y, epsilon, step_size) for attack in found.values()]
        own = [lambda ours=ours: ours("best"), lambda ours=ours: ours("last")]
        best, last = (robust(net, function(), y) for function in own)
        seconds = fastest([*own, *theirs], 1 if smoke else 5, device)
        yield f"{method} net, epsilon {epsilon}, {label}: robust accuracy, %", last, None
        for name, function, time in zip(found, theirs, seconds[2:]):
            other = robust(net, function(), y)
            yield f"  last iterate: points from {name}", abs(last - other), 0.5
            yield f"  last iterate: time / {name}", seconds[1] / time, 1.1
            yield f"  fallen images leave: points from {name}", abs(best - other), 0.5
            yield f"  fallen images leave: time / {name}", seconds[0] / time, target


def reference(device, smoke):
    """Auto-PGD and Square against those of the reference AutoAttack, means over seeds; Square must not be weaker."""
    if peers.peer("pyautoattack") is None:
        yield "pyautoattack is not installed: skipped", None, None
        return
    # One seed against another differs by about a point: the mean of four tells a difference of one.
    seeds, steps, queries = (1, 5, 5) if smoke else (4, 100, 300)

    def settings(reference):
        reference.apgd.n_restarts, reference.square.n_queries = 1, queries
        if smoke:
            reference.apgd.n_iter = steps

    attacks = {
        "apgd-ce": lambda *case: stability.apgd(*case[:-1], steps, "cross_entropy", generator=case[-1]),
        "apgd-dlr": lambda *case: stability.apgd(*case[:-1], steps, "dlr", generator=case[-1]),
        "square": lambda *case: stability.square(*case[:-1], queries, generator=case[-1]),
    }
    for method, threats in list(REFERENCE.items())[: 1 if smoke else None]:
        net, x, y = trained(method, device, smoke)
        for threat in threats:
            for name, attack in attacks.items():

                def ours(seed, net=net, x=x, y=y, threat=threat, attack=attack):
                    return robust(net, attack(net, x, y, threat, torch.Generator().manual_seed(seed)), y)

                def theirs(seed, net=net, x=x, y=y, threat=threat, name=name):
                    generator = torch.Generator().manual_seed(seed)
                    moved = stability.autoattack(
                        net, x, y, threat, "custom", attacks=(name,), configure=settings, generator=generator
                    )
                    return robust(net, moved, y)

                (mine, other), seconds = _means((ours, theirs), seeds, device)
                label = f"{method} net, {threat}, {name}"
                yield f"{label}: robust accuracy, %", mine, None
                gap = max(0.0, mine - other) if name == "square" else abs(mine - other)
                yield f"  points {'weaker than' if name == 'square' else 'from'} the reference", gap, 1.0
                yield "  time / reference", seconds[0] / seconds[1], None


def _means(functions, seeds, device):
    """Of each function of a seed the mean of what it returns, and its seconds in all."""
    found, seconds = [[] for _ in functions], [0.0] * len(functions)
    for seed in range(seeds):
        runs = [
            lambda function=function, own=own, seed=seed: own.append(function(seed)) for function, own in zip(functions, found)
        ]
        seconds = [sum(pair) for pair in zip(seconds, fastest(runs, 1, device))]
    return [sum(own) / seeds for own in found], seconds
