"""Other libraries beside ours on the same problems, as ratios measured side by side in this run.

Peers that are not installed are named and skipped; `pip install -e ".[bench]"` gets
torchode, torchdyn and torchdeq, and torchdiffeq's implicit_euler is in its git version alone. Evaluations are rows of f
and of its transposed products, counted alike in the field itself; failures are judged by what was returned.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from experiments.benchmarks import libraries as peers
from experiments.benchmarks.memory import peak_bytes
from experiments.benchmarks.timing import Row, Rows, both_ways, fastest, take_turns, trained_on_digits, training_pass
from experiments.harness.training import data
from odenets.solve.nonlinear import Broyden
from odenets.types import Time


class _Tanh(nn.Module):
    """A 64-dimensional field, tanh(Wy + b), or with a hidden layer V tanh(Wy + b)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), *[nn.Linear(64, 64)] * hidden)

    def forward(self, t: Time, y: Tensor) -> Tensor:
        return self.layers(y)


def fixed_grid(device: torch.device, smoke: bool) -> Rows:
    """Explicit schemes on the same fixed grid and field, forward and backward, against the peers' own."""
    torch.manual_seed(0)
    conv, batch = odenets.fields.Block(odenets.fields.basic_layers, 16), 2 if smoke else 64
    problems = (
        ("tanh(Wy), 64 dimensions", _Tanh(0), (batch, 64), 0, 20),
        ("MLP, 64 dimensions", _Tanh(1), (batch, 64), 0, 20),
        ("conv stage 8x8", conv, (batch, 16, 8, 8), 1, 3),
        ("conv stage 28x28", conv, (batch, 16, 28, 28), 1, 1),
    )
    for name, solver, methods in peers.FIXED_GRID:
        peer, worst = name.split(".")[0], 0.0
        if peers.peer(name) is None:
            yield f"{peer} is not installed (extra bench): skipped", None, None
            continue
        for problem, field, shape, kind, calls in problems[:: 3 if smoke else 1]:
            y, steps = torch.randn(shape, device=device), 2 if smoke else 8 if kind == 0 else 4
            for scheme, method in methods.items():
                stage = odenets.ODEStage(field.to(device), scheme, substeps=steps)
                both = partial(stage, y), solver(stage.fields[0], y, method, steps)
                a, b = (integrate().detach() for integrate in both)
                worst = max(worst, float((a - b).norm() / b.norm()))
                runs = [both_ways(stage, integrate, 1 if smoke else calls) for integrate in both]
                times = take_turns(runs, 1 if smoke else 15 if kind == 0 else 7, device)
                target = (0.7, 0.95)[kind] if peer == "torchdiffeq" else 0.9
                yield times.ratio(f"{scheme}, {problem}: time / {peer}", 0, 1, target)
        yield f"explicit schemes: largest relative difference from {peer}", worst, 1e-6


TORCHDEQ = ("anderson", "broyden")


class Problem(NamedTuple):
    """One implicit step: a block, its states (B, ...), what residuals are relative to, and our stage of it, counted."""

    block: nn.Module
    y: Tensor
    scale: Tensor
    stage: odenets.ODEStage


Method = Callable[[Problem], Tensor]


class _Counted(torch.autograd.Function):
    """The identity, which counts the rows of what passes forwards and backwards."""

    rows = 0

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        _Counted.rows += len(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override] # torch asks for one gradient an input
        _Counted.rows += len(gradient)
        return gradient


def _trained_blocks(scheme: str, device: torch.device, smoke: bool) -> list[tuple[nn.Module, Tensor]]:
    """Pairs (block, its inputs on test images) of the small net trained on digits with `scheme`."""
    (net, digits), pairs = trained_on_digits(scheme, device, smoke), list[tuple[nn.Module, Tensor]]()
    hooks = [
        stage.register_forward_hook(lambda stage, inputs, _: pairs.extend(_inputs(stage, *inputs)))
        for stage in odenets.stages(net).values()
    ]
    with torch.no_grad():
        net(digits.test.images[: 64 if smoke else 256])
    for hook in hooks:
        hook.remove()
    return pairs


def _inputs(stage: odenets.ODEStage, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
    states = odenets.ODEStage(stage.fields, stage.scheme)(y, trajectory=True).detach()
    return [(field, inputs.requires_grad_()) for field, y in zip(stage.fields, states) for inputs in y.split(64)]


def against_torchdeq(device: torch.device, smoke: bool) -> Rows:
    """Implicit Euler of trained blocks to the same residual, with implicit gradient, against TorchDEQ's solvers."""
    if peers.peer("torchdeq") is None:
        yield "torchdeq is not installed (extra bench): skipped", None, None
        return
    for scheme in ("explicit", "implicit"):
        problems = []
        for block, y in _trained_blocks(scheme, device, smoke):
            with torch.no_grad():
                scale = block(0.0, y).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            problems.append(Problem(block, y, scale, odenets.ODEStage([partial(_counted, block)], "implicit")))
        methods: list[Method] = [_ours, *(partial(_torchdeq, name) for name in TORCHDEQ)]
        counts = [_evaluations_and_failures(method, problems) for method in methods]
        times = take_turns([partial(_solve_all, method, problems) for method in methods], 1 if smoke else 5, device)
        (forward, both, failed), where = counts[0], f"implicit Euler, {scheme}-trained blocks"
        samples = sum(len(problem.y) for problem in problems)
        yield f"{where}: evaluations per sample, forward", forward / samples, None
        yield f"{where}: evaluations per sample, with backward", both / samples, None
        for index, (solver, (their_forward, their_both, _)) in enumerate(zip(TORCHDEQ, counts[1:]), start=1):
            yield f"{where}: evaluations / TorchDEQ's {solver}, forward", forward / their_forward, 0.7
            yield f"{where}: evaluations / TorchDEQ's {solver}, with backward", both / their_both, 0.7
            yield times.ratio(f"{where}: time / TorchDEQ's {solver}, with backward", 0, index, 0.8)
        yield f"{where}: failed of {samples}", failed, 0
        for solver, (_, _, their_failed) in zip(TORCHDEQ, counts[1:]):
            yield f"{where}: failed of {samples}, TorchDEQ's {solver}", their_failed, None


def _counted(block: nn.Module, t: Time, y: Tensor) -> Tensor:
    return block(t, _Counted.apply(y))


def _ours(problem: Problem) -> Tensor:
    return problem.stage(problem.y)


def _torchdeq(solver: str, problem: Problem) -> Tensor:
    return peers.torchdeq_implicit_euler(solver, problem.stage.fields[0], problem.y, problem.scale)


def _solve_all(method: Method, problems: list[Problem]) -> None:
    for problem in problems:
        method(problem).sum().backward()


def _evaluations_and_failures(method: Method, problems: list[Problem]) -> tuple[int, int, int]:
    """Rows of f evaluated forwards, rows forwards and backwards, and samples whose residual is above the tolerance."""
    forward = both = failed = 0
    for problem in problems:
        _Counted.rows = 0
        z = method(problem)
        forward += _Counted.rows
        z.sum().backward()
        both += _Counted.rows
        with torch.no_grad():
            residual = (z - problem.y - problem.block(0.0, z)).flatten(1).norm(dim=1)
            failed += int((residual > 1.05e-3 * problem.scale.flatten()).sum())
    return forward, both, failed


def large_states(device: torch.device, smoke: bool) -> Rows:
    """One implicit Euler step as the unknowns grow, beside the dense Broyden of torchdiffeq's git version."""
    torch.manual_seed(0)
    small, large = ((1, 32, 8, 8), (2, 32, 8, 8)) if smoke else ((1, 32, 8, 8), (128, 16, 32, 32))
    calls: list[tuple[str, Callable[[], Tensor] | None, int]] = []
    for shape in (small, large):
        y = torch.randn(shape, device=device)
        block = odenets.fields.Block(odenets.fields.basic_layers, shape[1]).to(device)
        stage = odenets.ODEStage([block], "implicit")
        calls.append((f"N = {y.numel():,}", partial(stage, y), 5))
        if shape == small:
            calls.append((f"N = {y.numel():,}, torchdiffeq", peers.torchdiffeq_implicit_euler(block, y), 1))
    for name, call, repeats in calls:
        if call is None:
            yield "torchdiffeq is installed without implicit_euler (its git version has it): skipped", None, None
            continue
        with torch.no_grad():
            yield f"one implicit Euler step, {name}: seconds", fastest([call], 1 if smoke else repeats, device)[0], None


def peak_memory(device: torch.device, smoke: bool) -> Rows:
    """Peak memory of a training step and of a single implicit step, allocations and saved tensors counted."""
    images, labels = _mnist_shapes(device, smoke)
    peaks = {}
    for scheme in ("explicit", "implicit(tol=1e-2)", "implicit"):
        torch.manual_seed(0)
        net = odenets.ode_resnet18(in_channels=1, scheme=scheme).to(device)
        known = [*net.parameters(), images, labels]
        peaks[scheme] = peak_bytes(training_pass(net, images, labels), known, device)
        if scheme != "explicit":
            yield f"training step of resnet18, {scheme}: peak memory / explicit", peaks[scheme] / peaks["explicit"], 1.3
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    y = torch.rand(len(images), 16, 28, 28, device=device, requires_grad=True)
    for tol in (0.3, 1e-3, 1e-6):
        stage = odenets.ODEStage([block], f"implicit(tol={tol},max_iterations=100)")
        peak = peak_bytes(both_ways(stage, partial(stage, y)), [*block.parameters(), y], device) / y.nbytes
        note, memory = f"{int(stage.stats.iterations.max())} iterations at most", Broyden.memory
        yield Row(f"one implicit step, tol {tol:g}, memory {memory}: peak in states", peak, 2 * memory + 10, note=note)


def _mnist_shapes(device: torch.device, smoke: bool) -> tuple[Tensor, Tensor]:
    """A batch of digits enlarged to MNIST's 28x28, and labels."""
    train = data.load("digits").train.first(2 if smoke else 64).to(device)
    return F.interpolate(train.images, (28, 28), mode="bilinear"), train.labels


def training_step(device: torch.device, smoke: bool) -> Rows:
    """Forward and backward on MNIST shapes against explicit Euler's: at initialisation, and after some training."""
    shapes = _mnist_shapes(device, smoke)
    for model, count in (("small", 64), ("resnet18", 16)):
        images, labels = (part[:count] for part in shapes)
        for trained in (0, 1 if smoke else 20):
            steps = []
            for scheme in ("explicit", "implicit(tol=1e-2)", "implicit"):
                torch.manual_seed(0)
                net = odenets.MODELS[model](in_channels=1, scheme=scheme).to(device)
                optimizer, step = torch.optim.AdamW(net.parameters(), lr=1e-3), training_pass(net, images, labels)
                for _ in range(trained):
                    step()
                    optimizer.step()
                steps.append(step)  # without the optimizer: the weights stay while it is timed
            times = take_turns(steps, 1 if smoke else 5, device)
            for index, (scheme, target) in enumerate((("implicit(tol=1e-2)", 6.0), ("implicit", None)), start=1):
                yield times.ratio(f"{model} after {trained} steps, {scheme}: time / explicit", index, 0, target)


def compiled(device: torch.device, smoke: bool) -> Rows:
    """The fixed-iteration mode through torch.compile(fullgraph=True) against itself without: no gradient, unrolled."""
    y = torch.rand(2 if smoke else 64, 16, 8, 8, device=device)
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    stage = odenets.ODEStage([block], "implicit(max_iterations=4,fixed=true)")
    odenets.set_gradient(stage, "unrolled")
    expected = stage(y).detach()
    fast = torch.compile(stage, fullgraph=True, backend="aot_eager" if smoke else "inductor")
    forwards = partial(fast, y), partial(stage, y)
    runs: dict[str, list[Callable[[], object]]] = {
        "no gradient": [torch.no_grad()(forward) for forward in forwards],
        "backward": [both_ways(stage, forward) for forward in forwards],
    }
    for label, (ours, plain) in runs.items():
        ours()
        times = take_turns([ours, plain], 1 if smoke else 15, device)
        yield times.ratio(f"4 fixed iterations, {label}: time compiled / not compiled", 0, 1, 1.0)
    difference = (fast(y).detach() - expected).norm() / expected.norm()
    yield "4 fixed iterations: relative difference compiled", float(difference), None
