"""Channels last in memory against contiguous, one net twice, side by side: where `odenets.channels_last(net)` pays.

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python experiments/benchmarks/run.py --only layout

as a machine with AVX2 alone would do it; without the two variables as this one does.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import odenets
from experiments.benchmarks.timing import Row, both_ways, digits_on, take_turns, training_pass

IMPLICIT = "implicit(tol=1e-2)"
STEPS = 20  # of AdamW at 3e-3 before a net is timed


def ratios(device: torch.device, smoke: bool) -> Iterator[Row]:
    """Time with channels last over time without: steps of training, of an attack, blocks of an attack's batch."""
    digits, few = digits_on(device), 4 if smoke else None
    batch, attacked = digits.train.first(few or 64), digits.test.first(few or 450)
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(few or 64, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (few or 64,), generator=generator).to(device)
    rounds = 1 if smoke else 9

    y = torch.randn(few or 450, 16, 8, 8, device=device)
    block = nn.ModuleList([odenets.fields.Block(odenets.fields.basic_layers, 16)]).to(device)
    yield _ratio("block of 450x16x8x8, there and back", odenets.ODEStage(block, "explicit"), y, None, rounds, device)
    for scheme in ("explicit", IMPLICIT, "ie_skip"):
        net = _net("small", 1, scheme, batch.images, batch.labels, device, smoke)
        yield _ratio(f"training step, digits, {scheme}", net, batch.images, batch.labels, rounds, device)
        if scheme != "ie_skip":
            name = f"attack step, 450 digits, {scheme}"
            yield _ratio(name, net, attacked.images, attacked.labels, max(1, rounds // 3), device, attack=True)
    for model, count, schemes in (("small-stride2", 64, ("explicit", IMPLICIT)), ("resnet18", 8, ("explicit", IMPLICIT))):
        for scheme in schemes[: 1 if smoke else None]:
            x, right = large[:count], labels[:count]
            net = _net(model, 3, scheme, x, right, device, smoke)
            yield _ratio(f"training step, {count} of 32x32, {model}, {scheme}", net, x, right, max(1, rounds // 3), device)


def _net(
    model: str, channels: int, scheme: str, x: torch.Tensor, y: torch.Tensor, device: torch.device, smoke: bool
) -> nn.Module:
    """A net after a few steps on one batch: random weights alone have easy equations."""
    torch.manual_seed(0)
    net = odenets.MODELS[model](in_channels=channels, scheme=scheme).to(device)
    step, optimizer = training_pass(net, x, y), torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(1 if smoke else STEPS if model != "resnet18" else 1):
        step()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
    return net


def _ratio(
    name: str,
    net: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor | None,
    rounds: int,
    device: torch.device,
    attack: bool = False,
) -> Row:
    nets = [net, copy.deepcopy(net)]
    odenets.channels_last(nets[1])
    if y is None:
        states = [x, x.to(memory_format=torch.channels_last)]
        runs: list[Callable[[], object]] = [both_ways(own, partial(own, state), 5) for own, state in zip(nets, states)]
    elif attack:
        runs = [partial(_gradient, own, x, y) for own in nets]
    else:
        runs = [training_pass(own, x, y) for own in nets]
    for run in runs:
        run()
    return take_turns(runs, rounds, device).ratio(f"{name}: channels last / contiguous", 1, 0)


def _gradient(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss by the images, as a step of PGD takes it."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
    return gradient
