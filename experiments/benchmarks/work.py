"""What an implicit net costs: training, attacks, audit, stability, and what an accelerator would be asked for.

Phases of a case are measured in steps of training of an explicit net, which no change of the phases makes faster: so two
commits compare. The targets of phases are shares of what they cost at 14673b3, on the same machine.
"""

import itertools
from collections.abc import Iterator

import torch

import odenets
from experiments.benchmarks import pretend
from experiments.benchmarks.counts import Counts, count
from experiments.benchmarks.timing import Row, fastest, trained_on_digits, training_pass
from experiments.harness.run import measure
from experiments.harness.training import data

CIFAR_STEPS = 100  # of batch 64, by AdamW at 3e-3: a minute or two of an implicit net
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


def cifar_step(device: torch.device, smoke: bool, data_dir: str | None = None) -> Iterator[Row]:
    """A training step of small-stride2, implicit against explicit, on the weights of a short training with each.

    On CIFAR-10 where its folder is given; else on random images of its shape, which tell a lower bound of the real ratio.
    """
    count_, steps = (4, 1) if smoke else (64, CIFAR_STEPS if data_dir else 30)
    images, source = _cifar(data_dir, count_), f"after {steps} steps on " + ("CIFAR-10" if data_dir else "random images")
    measured = []
    for scheme in ("explicit", IMPLICIT):
        torch.manual_seed(0)
        net = odenets.ode_resnet_small_stride2(in_channels=3, scheme=scheme).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        batches = _batches(images, count_, device)
        for x, y in itertools.islice(batches, steps):
            training_pass(net, x, y)()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
        measured.append(training_pass(net, *next(batches)))
    explicit, implicit = fastest(measured, 1 if smoke else 5, device)
    yield Row(f"small-stride2 {source}, {IMPLICIT}: step / explicit", implicit / explicit, 7.0)


def _cifar(folder: str | None, count: int) -> data.Split:
    """CIFAR-10's training images; without a folder so many random ones of their shape."""
    if folder:
        return data.load("cifar10", folder, download=False).train
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)
    return data.Split(images, labels)


def _batches(images: data.Split, count: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, labels), `count` each, in an order of their own, over and over."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(count):
            if len(rows) == count:
                yield images.images[rows].to(device), images.labels[rows].to(device)


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
