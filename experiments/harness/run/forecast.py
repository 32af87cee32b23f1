"""How long a run will take, said before it starts: a step of training and a pass of an attack are timed for each scheme."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

import odenets
import stability
from experiments.harness.run.case import Case, load_data
from experiments.harness.run.config import RunConfig
from experiments.harness.run.measure import gradients
from experiments.harness.training import losses
from experiments.harness.training.data import Split
from stability.masking.subject import configured

FORWARD = 1 / 3  # of a pass there and back: what a query costs that takes no gradient
_known: dict[tuple, tuple[float, float]] = {}  # what has been timed in this process
OTHERS = 0.5  # of the attacks' time: the audit, the dynamics, the solver


@dataclass(frozen=True)
class Forecast:
    """Seconds of one process, of all nets together; attacks as if no image fell before their last step."""

    training: float
    attacks: float

    def seconds(self, workers: int) -> float:
        """Of the whole, with so many processes that keep out of each other's way."""
        return (self.training + (1 + OTHERS) * self.attacks) / workers


def forecast(config: RunConfig, cases: Iterable[Case]) -> Forecast:
    """Time a step of each scheme, at its first weights, and count how many there will be.

    Args:
        config: Its `RunConfig`.
        cases: Those that are to be run.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        config = replace(config, device="cpu")  # the nodes of a cluster have what this machine has not
    images, training, attacks = load_data(config), 0.0, 0.0
    steps = max(1, len(images.train) // config.settings.batch_size) * config.settings.epochs
    for case in cases:
        for scheme, substeps in case.walks:
            kind = config.model, scheme, case.field, config.settings, config.dataset, config.image_size, config.device
            if kind not in _known:
                net = odenets.get_model(config.model).build(images.classes, images.channels, scheme, 1, case.field)
                _known[kind] = _timed(net.to(config.device), images.train.first(config.settings.batch_size), config)
            step, attack = _known[kind]
            training += steps * step * substeps * ((scheme, substeps) == case.walks[0])
            ways = len(gradients(odenets.get_scheme(scheme)))
            whole = len(images.test) * len(config.epsilons) * sum(passes(name, ways) for name in config.attacks)
            attacks += whole * attack * substeps
    return Forecast(training, attacks)


def passes(name: str, ways: int = 1) -> float:
    """Passes there and back that an attack takes for an image that withstands it, along so many gradients."""
    attack = stability.get_attack(name)
    settings = {key: value for key, (value, _) in attack.parameters.items()}
    count = settings[attack.count] if attack.count else 1
    whole = count * settings.get("restarts", 1) * max(settings.get("targets", 0), 1)
    return ways * whole if attack.follows_gradient else FORWARD * whole


def _timed(net: nn.Module, batch: Split, config: RunConfig) -> tuple[float, float]:
    """Seconds of a step of training, and for each image of a pass of an attack."""
    batch = batch.to(torch.device(config.device))
    generator = torch.Generator(config.device).manual_seed(0)
    method = losses.METHODS[config.settings.training]

    def step() -> None:
        method(net, batch.images, batch.labels, config.settings, generator, {}).backward()

    def attack() -> None:
        x = batch.images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(net(x), batch.labels, reduction="sum"), x)

    with configured(net, gradient=config.settings.train_gradient):
        stepped = _second(step, config.device)
    return stepped, _second(attack, config.device) / len(batch)


def _second(work: Callable[[], None], device: str) -> float:
    """Seconds of the second of two calls, on one thread as workers are: the first one warms up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            start = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
