"""What the benchmarks share: a row of the page, times of functions that take turns, digits and a net trained on them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from experiments.harness.training import data
from experiments.harness.training import loop as training
from experiments.harness.training.settings import TrainingSettings

T = TypeVar("T")
TRAINING = TrainingSettings(epochs=20)  # as a run on digits trains by default


class Row(NamedTuple):
    """A figure of the page.

    figure: Its name, the same in every run: rows of two runs are matched by it. measured: None where `figure` says why nothing
    was measured. target: Not to be exceeded; None: nothing is promised. low, high: Its spread, of times the middle half of the
    rounds, of shares a 95 % interval; None where it is a count, or was measured once. note: What differs from run to run.
    """

    figure: str
    measured: float | None
    target: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


Rows = Iterator[Row | tuple[str, float | None, float | None]]
Part = Callable[[torch.device, bool], Rows]  # of a device, and whether in haste


@dataclass(frozen=True)
class Times:
    """Seconds of functions that took turns: seconds[round][function]."""

    seconds: Sequence[Sequence[float]]

    def of(self, function: int) -> float:
        """The fastest round."""
        return min(times[function] for times in self.seconds)

    def ratio(self, figure: str, of: int, to: int, target: float | None = None, note: str = "") -> Row:
        """The row of one function's time over another's: median over the rounds, and their middle half."""
        low, middle, high = np.quantile([times[of] / times[to] for times in self.seconds], (0.25, 0.5, 0.75)).tolist()
        return Row(figure, middle, target, low, high, note)


def take_turns(functions: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> Times:
    """Time every function once a round.

    On the CPU seconds of processor time, which on one thread are those of an idle machine: what else runs beside us lengthens
    them little, and those of one round alike.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = [[0.0] * len(functions) for _ in range(rounds)]
    for times in seconds:
        for index, function in enumerate(functions):
            _synchronise(device)
            start = clock()
            function()
            _synchronise(device)
            times[index] = clock() - start
    return Times(seconds)


def fastest(functions: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Seconds of the fastest of so many runs of each function, the functions taking turns."""
    times = take_turns(functions, rounds, device)
    return [times.of(index) for index in range(len(functions))]


def share(figure: str, successes: int, total: int, target: float | None = None, note: str = "") -> Row:
    """The row of a share, with the interval of Clopper and Pearson."""
    found = binomtest(successes, total).proportion_ci(0.95, "exact")
    return Row(figure, successes / total, target, float(found.low), float(found.high), note)


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


def small_step(scheme: str, device: torch.device) -> float:
    """Seconds of a training step of the default small net at its first weights, on 64 random images of 8x8."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    step = training_pass(odenets.ode_resnet_small(scheme=scheme).to(device), images.to(device), labels.to(device))
    return fastest([step], 10, device)[0]


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
