"""What an implicit net costs: training, attacks, audit, stability, and what an accelerator would be asked for.

Phases of a case are measured in steps of training of an explicit net, which no change of the phases makes faster: so two
commits compare. The targets of phases are shares of what they cost at 14673b3, on the same machine.
"""

from collections.abc import Iterator

import torch

import odenets
from experiments.benchmarks import pretend
from experiments.benchmarks.counts import Counts, count
from experiments.benchmarks.timing import Row, fastest, trained_on_digits, training_pass
from experiments.harness.run import measure

IMPLICIT = "implicit(tol=1e-2)"
# Phase: (what it cost at 14673b3, in 1,000 steps of training; the share of that to be reached).
BEFORE = {"evaluation attacks": (7.66, 0.55), "audit": (5.48, 0.6), "stability": (1.62, 0.5)}


def phases(device: torch.device, smoke: bool) -> Iterator[Row]:
    """The default measurements of a net trained with implicit Euler, in steps of training of an explicit one."""
    net, digits = trained_on_digits("implicit", device, smoke)
    explicit = odenets.ode_resnet_small(scheme="explicit").to(device)
    batch, test = digits.train.first(64), digits.test.first(16 if smoke else 450)
    step = training_pass(explicit, batch.images, batch.labels)
    attacks, epsilons = ("pgd20",), (0.1,) if smoke else (0.05, 0.1, 0.15)
    work = {
        "evaluation attacks": lambda: measure.measure_accuracy(net, test, attacks, epsilons, 0),
        "audit": lambda: measure.measure_audit(net, test, 0.1, 4 if smoke else 64),
        "stability": lambda: measure.measure_stability(net, test.images[: 2 if smoke else 16]),
    }
    (unit,) = fastest([step], 1 if smoke else 50, device)
    for name, run in work.items():
        (seconds,) = fastest([run], 1, device)
        before, share = BEFORE[name]
        yield Row(f"{name} of an implicit net: time / 1,000 explicit steps", seconds / unit / 1e3, before * share)


def cifar_step(device: torch.device, smoke: bool) -> Iterator[Row]:
    """A step of small-stride2 on random images of CIFAR-10's shape after a few steps on them: a lower bound of the real one."""
    generator = torch.Generator().manual_seed(0)
    count_, trained = (4, 1) if smoke else (64, 30)
    x = torch.rand(count_, 3, 32, 32, generator=generator).to(device)
    y = torch.randint(10, (count_,), generator=generator).to(device)
    steps = []
    for scheme in ("explicit", IMPLICIT):
        torch.manual_seed(0)
        net = odenets.ode_resnet_small_stride2(in_channels=3, scheme=scheme).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        steps.append(training_pass(net, x, y))
        for _ in range(trained):
            steps[-1]()
            optimizer.step()
    explicit, implicit = fastest(steps, 1 if smoke else 7, device)
    yield Row(f"CIFAR-10 shapes, small-stride2, {IMPLICIT}: step / explicit", implicit / explicit, 7.0)


def accelerator(device: torch.device, smoke: bool) -> Iterator[Row]:
    """Kernels and host synchronisations of a training step on digits, on CUDA or else on the pretend accelerator."""
    if device.type == "cuda":
        yield from _asked_of(device, smoke)
    elif torch.cuda.is_available():
        yield Row("no pretend accelerator beside CUDA: skipped (--device cuda counts there)", None, None)
    else:
        with pretend.device() as there:
            yield from _asked_of(there, smoke)


def _asked_of(device: torch.device, smoke: bool) -> Iterator[Row]:
    found: dict[str, Counts] = {}
    for scheme in ("explicit", IMPLICIT):
        net, digits = trained_on_digits(scheme, torch.device("cpu"), smoke)
        batch = digits.train.first(4 if smoke else 64).to(device)
        found[scheme] = count(training_pass(net.train().to(device), batch.images, batch.labels))
    yield Row("explicit training step: kernels", found["explicit"].kernels, None)
    yield Row(f"{IMPLICIT} training step: kernels", found[IMPLICIT].kernels, 1200)
    yield Row(f"{IMPLICIT} training step: host synchronisations", found[IMPLICIT].synchronisations, 12)
