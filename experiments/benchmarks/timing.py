"""What the benchmarks share: a row of the page, times of functions that take turns, digits and a net trained on them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from experiments.harness.training import data
from experiments.harness.training import loop as training
from experiments.harness.training.settings import TrainingSettings

T = TypeVar("T")
TRAINING = TrainingSettings(epochs=20)  # as a run on digits trains by default


class Row(NamedTuple):
    """A figure of the page; `target` None: nothing is promised; `measured` None: `figure` says why nothing was measured."""

    figure: str
    measured: float | None
    target: float | None  # not to be exceeded


Rows = Iterator[Row | tuple[str, float | None, float | None]]
Part = Callable[[torch.device, bool], Rows]  # of a device, and whether in haste


def fastest(functions: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Seconds of the fastest of `repeats` runs of each function, the functions taking turns.

    On the CPU seconds of processor time, which on one thread are those of an idle machine: whatever else runs beside us
    cannot lengthen them.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            _synchronise(device)
            start = clock()
            function()
            _synchronise(device)
            best[index] = min(best[index], clock() - start)
    return best


def timed(function: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """(seconds, result) of one run."""
    result: list[T] = []
    (seconds,) = fastest([lambda: result.append(function())], 1, device)
    return seconds, result[0]


def both_ways(module: nn.Module, forward: Callable[[], Tensor], calls: int = 1) -> Callable[[], None]:
    """A function that runs `forward` and its backward pass so many times, the gradients of `module` from zero."""

    def run() -> None:
        for _ in range(calls):
            module.zero_grad()
            forward().sum().backward()

    return run


def training_pass(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A function that computes the gradients of the cross-entropy on one batch."""
    return both_ways(net, lambda: F.cross_entropy(net(x), y))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def digits_on(device: torch.device) -> data.Data:
    """scikit-learn's digits on a device."""
    return data.load("digits").to(device)


def trained_on_digits(scheme: str, device: torch.device, smoke: bool) -> tuple[nn.Module, data.Data]:
    """The default small net after the default training with a scheme, and the digits."""
    torch.manual_seed(0)
    net, digits = odenets.ode_resnet_small(scheme=scheme).to(device), digits_on(device)
    training.train(net, digits, replace(TRAINING, epochs=1, batch_size=600) if smoke else TRAINING, 0)
    return net.eval(), digits
