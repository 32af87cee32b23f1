"""Other libraries beside ours on the same problems, as ratios measured side by side in this run.

Peers that are not installed are named and skipped; `pip install -e ".[bench]"` gets
torchode, torchdyn and torchdeq, and torchdiffeq's implicit_euler is in its git version alone. Evaluations are rows of f
and of its transposed products, counted alike in the field itself; failures are judged by what was returned.
"""

import torch
from torch import nn
from torch.nn import functional as F

import odenets
from experiments.benchmarks import libraries as peers
from experiments.benchmarks.memory import peak_bytes
from experiments.benchmarks.timing import fastest, trained_on_digits
from experiments.harness.training import data
from odenets.solve.nonlinear import Broyden


class _Tanh(nn.Module):
    """A 64-dimensional field, tanh(Wy + b), or with a hidden layer V tanh(Wy + b)."""

    def __init__(self, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), *[nn.Linear(64, 64)] * hidden)

    def forward(self, t, y):
        return self.layers(y)


def fixed_grid(device, smoke):
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
            yield f"{peer} is not installed: skipped", None, None
            continue
        for problem, field, shape, kind, calls in problems[:: 3 if smoke else 1]:
            y, steps = torch.randn(shape, device=device), 2 if smoke else 8 if kind == 0 else 4
            for scheme, method in methods.items():
                stage = odenets.ODEStage(field.to(device), scheme, substeps=steps)
                theirs = solver(stage.fields[0], y, method, steps)

                def run(forward, stage=stage, calls=1 if smoke else calls):
                    for _ in range(calls):
                        stage.zero_grad()
                        forward().sum().backward()

                a, b = stage(y).detach(), theirs().detach()
                worst = max(worst, float((a - b).norm() / b.norm()))
                functions = [lambda run=run, s=stage, y=y: run(lambda: s(y)), lambda run=run, f=theirs: run(f)]
                mine, other = fastest(functions, 1 if smoke else 25 if kind == 0 else 9, device)
                target = (0.7, 0.95)[kind] if peer == "torchdiffeq" else 0.9
                yield f"{scheme}, {problem}: time / {peer}", mine / other, target
        yield f"explicit schemes: largest relative difference from {peer}", worst, 1e-6


TORCHDEQ = ("anderson", "broyden")


class _Counted(torch.autograd.Function):
    """The identity, which counts the rows of what passes forwards and backwards."""

    rows = 0

    @staticmethod
    def forward(ctx, y):
        _Counted.rows += len(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, gradient):
        _Counted.rows += len(gradient)
        return gradient


def _trained_blocks(scheme, device, smoke):
    """Pairs (block, its inputs on test images) of the small net trained on digits with `scheme`."""
    (net, digits), pairs = trained_on_digits(scheme, device, smoke), []
    hooks = [
        stage.register_forward_hook(lambda stage, inputs, _: pairs.extend(_inputs(stage, *inputs)))
        for stage in odenets.stages(net).values()
    ]
    with torch.no_grad():
        net(digits.test.images[: 64 if smoke else 256])
    for hook in hooks:
        hook.remove()
    return pairs


def _inputs(stage, y):
    states = odenets.ODEStage(stage.fields, stage.scheme)(y, trajectory=True).detach()
    return [(field, inputs.requires_grad_()) for field, y in zip(stage.fields, states) for inputs in y.split(64)]


def against_torchdeq(device, smoke):
    """Implicit Euler of trained blocks to the same residual, with implicit gradient, against TorchDEQ's solvers."""
    if peers.peer("torchdeq") is None:
        yield "torchdeq is not installed: skipped", None, None
        return
    for scheme in ("explicit", "implicit"):
        problems = []
        for block, y in _trained_blocks(scheme, device, smoke):
            with torch.no_grad():
                scale = block(0.0, y).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            counted = lambda t, y, block=block: block(t, _Counted.apply(y))  # noqa: E731
            problems.append((block, y, scale, odenets.ODEStage([counted], "implicit")))

        theirs = [
            lambda _, y, scale, stage, name=name: peers.torchdeq_implicit_euler(name, stage.fields[0], y, scale)
            for name in TORCHDEQ
        ]
        methods = [lambda block, y, scale, stage: stage(y), *theirs]
        counts = [_evaluations_and_failures(method, problems) for method in methods]
        runs = [
            lambda method=method, problems=problems: [method(*problem).sum().backward() for problem in problems]
            for method in methods
        ]
        seconds = fastest(runs, 1 if smoke else 5, device)
        (forward, both, failed), where = counts[0], f"implicit Euler, {scheme}-trained blocks"
        samples = sum(len(y) for _, y, _, _ in problems)
        yield f"{where}: evaluations per sample, forward", forward / samples, None
        yield f"{where}: evaluations per sample, with backward", both / samples, None
        for solver, (their_forward, their_both, _), their_seconds in zip(TORCHDEQ, counts[1:], seconds[1:]):
            yield f"{where}: evaluations / TorchDEQ's {solver}, forward", forward / their_forward, 0.7
            yield f"{where}: evaluations / TorchDEQ's {solver}, with backward", both / their_both, 0.7
            yield f"{where}: time / TorchDEQ's {solver}, with backward", seconds[0] / their_seconds, 0.8
        yield f"{where}: failed of {samples}", failed, 0
        for solver, (_, _, their_failed) in zip(TORCHDEQ, counts[1:]):
            yield f"{where}: failed of {samples}, TorchDEQ's {solver}", their_failed, None


def _evaluations_and_failures(method, problems):
    """Rows of f evaluated forwards, rows forwards and backwards, and samples whose residual is above the tolerance."""
    forward = both = failed = 0
    for block, y, scale, stage in problems:
        _Counted.rows = 0
        z = method(block, y, scale, stage)
        forward += _Counted.rows
        z.sum().backward()
        both += _Counted.rows
        with torch.no_grad():
            failed += int(((z - y - block(0.0, z)).flatten(1).norm(dim=1) > 1.05e-3 * scale.flatten()).sum())
    return forward, both, failed


def large_states(device, smoke):
    """One implicit Euler step as the unknowns grow, beside the dense Broyden of torchdiffeq's git version."""
    torch.manual_seed(0)
    small, large = ((1, 32, 8, 8), (2, 32, 8, 8)) if smoke else ((1, 32, 8, 8), (128, 16, 32, 32))
    calls = []
    for shape in (small, large):
        y = torch.randn(shape, device=device)
        block = odenets.fields.Block(odenets.fields.basic_layers, shape[1]).to(device)
        stage = odenets.ODEStage([block], "implicit")
        calls.append((f"N = {y.numel():,}", lambda stage=stage, y=y: stage(y), 5))
        if shape == small:
            calls.append((f"N = {y.numel():,}, torchdiffeq", peers.torchdiffeq_implicit_euler(block, y), 1))
    for name, call, repeats in calls:
        if call is None:
            yield "torchdiffeq is installed without implicit_euler (its git version has it): skipped", None, None
            continue
        with torch.no_grad():
            yield f"one implicit Euler step, {name}: seconds", fastest([call], 1 if smoke else repeats, device)[0], None


def peak_memory(device, smoke):
    """Peak memory of a training step and of a single implicit step, allocations and saved tensors counted."""
    images, labels = _mnist_shapes(device, smoke)
    peaks = {}
    for scheme in ("explicit", "implicit(tol=1e-2)", "implicit"):
        torch.manual_seed(0)
        net = odenets.ode_resnet18(in_channels=1, scheme=scheme).to(device)
        known = [*net.parameters(), images, labels]
        peaks[scheme] = peak_bytes(lambda net=net: F.cross_entropy(net(images), labels).backward(), known, device)
        if scheme != "explicit":
            yield f"training step of resnet18, {scheme}: peak memory / explicit", peaks[scheme] / peaks["explicit"], 1.3
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    y = torch.rand(len(images), 16, 28, 28, device=device, requires_grad=True)
    for tol in (0.3, 1e-3, 1e-6):
        stage = odenets.ODEStage([block], f"implicit(tol={tol},max_iterations=100)")
        peak = peak_bytes(lambda f=stage: f(y).sum().backward(), [*block.parameters(), y], device) / y.nbytes
        iterations, memory = int(stage.stats.iterations.max()), Broyden.memory
        yield f"one implicit step, {iterations} iterations, memory {memory}: peak in states", peak, 2 * memory + 10


def _mnist_shapes(device, smoke):
    """A batch of digits enlarged to MNIST's 28x28, and labels."""
    train = data.load("digits", None).train.first(2 if smoke else 64).to(device)
    return F.interpolate(train.images, (28, 28), mode="bilinear"), train.labels


def training_step(device, smoke):
    """Forward and backward on MNIST shapes against explicit Euler's: at initialisation, and after some training."""
    images, labels = _mnist_shapes(device, smoke)
    for model in ("small", "resnet18"):
        for trained in (0, 1 if smoke else 20):
            steps = []
            for scheme in ("explicit", "implicit(tol=1e-2)", "implicit"):
                torch.manual_seed(0)
                net = odenets.MODELS[model](in_channels=1, scheme=scheme).to(device)
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

                def step(net=net):
                    net.zero_grad()
                    F.cross_entropy(net(images), labels).backward()

                for _ in range(trained):
                    step()
                    optimizer.step()
                steps.append(step)  # without the optimizer: the weights stay while it is timed
            explicit, *implicit = fastest(steps, 1 if smoke else 5, device)
            for scheme, seconds, target in (("implicit(tol=1e-2)", implicit[0], 6.0), ("implicit", implicit[1], None)):
                yield f"{model} after {trained} steps, {scheme}: time / explicit", seconds / explicit, target


def compiled(device, smoke):
    """The fixed-iteration mode through torch.compile(fullgraph=True) against itself without: no gradient, unrolled."""
    y = torch.rand(2 if smoke else 64, 16, 8, 8, device=device)
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    stage = odenets.ODEStage([block], "implicit(max_iterations=8,fixed=true)")
    odenets.set_gradient(stage, "unrolled")
    expected = stage(y).detach()
    fast = torch.compile(stage, fullgraph=True, backend="aot_eager" if smoke else "inductor")
    for label, run in (("no gradient", torch.no_grad()(lambda f: f(y))), ("backward", lambda f: f(y).sum().backward())):
        run(fast)
        seconds = fastest([lambda run=run: run(fast), lambda run=run: run(stage)], 1 if smoke else 25, device)
        yield f"fixed iterations, {label}: time compiled / not compiled", seconds[0] / seconds[1], 1.0
    difference = (fast(y).detach() - expected).norm() / expected.norm()
    yield "fixed iterations: relative difference compiled", float(difference), None
