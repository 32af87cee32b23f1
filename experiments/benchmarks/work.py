"""What an implicit net costs: training, attacks, audit, stability, and what an accelerator would be asked for.

Phases of a case are measured in steps of training of an explicit net, which no change of the phases makes faster: so two
commits compare. The targets of phases are shares of what they cost at 14673b3, on the same machine.
"""

import copy
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import odenets
from experiments.benchmarks import pretend
from experiments.benchmarks.counts import Counts, count
from experiments.benchmarks.timing import Row, Times, fastest, take_turns, trained_on_digits, training_pass
from experiments.harness.run import checkpoints, measure
from experiments.harness.training import data
from odenets.errors import InputError

CIFAR_STEPS = 100  # of batch 64, by AdamW at 3e-3
CIFAR_LIMIT, CIFAR_RUN = 10_000, "runs/bench-small-stride2"
IMPLICIT = "implicit(tol=1e-2)"
Batches = Iterator[tuple[Tensor, Tensor]]
# Phase: (what it cost at 14673b3, in 1,000 steps of training; the share of that to be reached).
BEFORE = {"evaluation attacks": (7.66, 0.55), "audit": (5.48, 0.6), "stability": (1.62, 0.5)}


def phases(device: torch.device, smoke: bool) -> Iterator[Row]:
    """The default measurements of a net trained with implicit Euler, in steps of training of an explicit one.

    Each is measured once: the spread is that of the steps.
    """
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
    for name, run in work.items():
        (seconds,) = fastest([run], 1, device)
        units = [(seconds / 1e3, *fastest([step], 10, device)) for _ in range(1 if smoke else 5)]
        before, share = BEFORE[name]
        yield Times(units).ratio(f"{name} of an implicit net: time / 1,000 explicit steps", 0, 1, before * share)


def cifar_step(device: torch.device, smoke: bool, data_dir: str | None = None, weights: str | None = None) -> Iterator[Row]:
    """A training step of small-stride2, implicit against explicit, on the weights of a short training with the former.

    On CIFAR-10 where its folder is given; else on random images of its shape, which tell a lower bound of the real ratio. With
    the checkpoint of a run, at its weights.
    """
    count_, steps = (4, 1) if smoke else (64, CIFAR_STEPS if data_dir else 30)
    batches = _batches(_cifar(data_dir, count_), count_, device)
    if weights:
        yield _at_weights(weights, batches, device, smoke)
        return
    torch.manual_seed(0)
    net = odenets.ode_resnet_small_stride2(in_channels=3, scheme=IMPLICIT).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for x, y in itertools.islice(batches, steps):
        training_pass(net, x, y)()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
    figure = f"small-stride2 after {steps} steps on {'CIFAR-10' if data_dir else 'random images'}, {IMPLICIT}: step / explicit"
    note = "at weights of 8 epochs: --only cifar_trained --data-dir DIR, or --weights FILE"
    yield _step_ratio(figure, net, batches, device, smoke, note)


def cifar_trained(device: torch.device, smoke: bool, data_dir: str | None = None) -> Iterator[Row]:
    """The same ratio after eight epochs on `CIFAR_LIMIT` images; the run is kept in `CIFAR_RUN`, and goes on there."""
    if data_dir is None:
        yield Row("the step at weights of 8 epochs on CIFAR-10 takes --data-dir: skipped", None)
        return
    script = Path(__file__).parents[1] / "compare_schemes.py"
    options = f"--dataset cifar10 --model small-stride2 --train-limit {CIFAR_LIMIT} --epochs 8 --seeds 0 --no-download --resume"
    few = "--test-limit 200 --attacks fgsm --epsilons 0.01 --audit none --workers 1"
    command = [sys.executable, str(script), "--schemes", IMPLICIT, "--data-dir", data_dir, "--out", CIFAR_RUN]
    subprocess.run([*command, *options.split(), *few.split()], check=True, capture_output=True)
    (weights,) = Path(CIFAR_RUN).glob("checkpoints/*.pt")
    yield from cifar_step(device, smoke, data_dir, str(weights))


def _at_weights(path: str, batches: Batches, device: torch.device, smoke: bool) -> Row:
    net, meta = checkpoints.load_net(path, device)
    if (meta["model"], meta["in_channels"]) != ("small-stride2", 3) or not odenets.get_scheme(meta["scheme"]).solves:
        raise InputError(f"{path} is no small-stride2 of CIFAR-10 with implicit Euler, but {meta['model']}, {meta['scheme']}")
    figure = f"small-stride2 trained on CIFAR-10, {meta['scheme']}: step / explicit"
    images = meta["config"]["data"]["train"]
    note = f"weights of epoch {meta['epoch']} of {meta['epochs']}, {images:,} training images"
    return _step_ratio(figure, net, batches, device, smoke, note)


def _step_ratio(figure: str, net: nn.Module, batches: Batches, device: torch.device, smoke: bool, note: str) -> Row:
    """Training steps of a net against an explicit one's, whose time does not hang on its weights, a batch for each round."""
    explicit, seconds = copy.deepcopy(net), list[Sequence[float]]()
    odenets.set_scheme(explicit, "explicit")
    for x, y in itertools.islice(batches, 1 if smoke else 8):
        seconds += take_turns([training_pass(own.train(), x, y) for own in (net, explicit)], 1, device).seconds
    return Times(seconds).ratio(figure, 0, 1, 7.0, note)


def _cifar(folder: str | None, count: int) -> data.Split:
    """CIFAR-10's training images; without a folder so many random ones of their shape."""
    if folder:
        return data.load("cifar10", folder, download=False).train
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)
    return data.Split(images, labels)


def _batches(images: data.Split, count: int, device: torch.device) -> Batches:
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
