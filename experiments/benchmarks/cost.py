"""Cost and memory beside their targets, as ratios measured side by side in this run; absolute times mean nothing here.

    python experiments/benchmarks/cost.py [--device auto] [--only NAME,...] [--out FILE.json]

About 4 minutes on 2 cores, most of it the default comparison. Each ratio is that of the fastest of several interleaved runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import odenets
from experiments.harness.command import Parser, parse_device, run_cli, split_top_level
from experiments.harness.experiment import DEFAULTS
from experiments.harness.run.folder import write_atomically
from experiments.harness.run.runner import WORKER_ENVIRONMENT
from experiments.harness.training import data
from experiments.harness.training import loop as training
from experiments.harness.training.settings import TrainingSettings
from odenets.errors import InputError

TRAINING = TrainingSettings(epochs=DEFAULTS["digits"]["epochs"])


def fastest(functions, repeats, device):
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


def _synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def explicit_overhead(device, smoke):
    """Explicit Euler through ODEStage against a residual loop written by hand, forward and backward, the same blocks."""
    for name, channels, size in (("8x8", 16, 8), ("28x28", 16, 28))[: 1 if smoke else 2]:
        blocks = [odenets.fields.Block(odenets.fields.basic_layers, channels).to(device) for _ in range(4)]
        stage = odenets.ODEStage(blocks, "explicit").to(device)
        y = torch.randn(64, channels, size, size, device=device)

        def by_hand(blocks=blocks, y=y):
            for block in blocks:
                y = y + block.layers(y)
            return y

        calls = 1 if smoke else 20 if size == 8 else 5

        def run(forward, stage=stage, calls=calls):
            for _ in range(calls):
                stage.zero_grad()
                forward().sum().backward()

        mine, theirs = fastest(
            [lambda s=stage, y=y, run=run: run(lambda: s(y)), lambda run=run, f=by_hand: run(f)], 1 if smoke else 25, device
        )
        yield f"explicit stage, {name}: time / hand-written loop", mine / theirs, 1.03


def training_cost(device, smoke):
    """Whole trainings of the default net on digits, against explicit Euler's."""
    digits = data.load("digits", None)
    digits = data.Data("digits", 10, *(split.to(device) for split in (digits.train, digits.held_out, digits.test)))
    settings, unconverged = replace(TRAINING, epochs=1, batch_size=600) if smoke else TRAINING, {}

    def train(scheme, gradient):
        torch.manual_seed(0)
        net = odenets.ode_resnet_small(scheme=scheme).to(device)
        odenets.set_gradient(net, gradient)
        unconverged[scheme] = training.train(net, digits, settings, 0).unsolved["training_unconverged_share"]

    cases = [
        ("explicit", "exact", None),
        ("ie_skip", "detached", 1.5),
        ("ie_skip", "exact", 3.0),
        ("implicit(tol=1e-2)", "exact", 6.0),
        ("implicit", "exact", None),
    ]
    trainings = [lambda s=scheme, g=gradient: train(s, g) for scheme, gradient, _ in cases]
    first, *others = fastest(trainings, 1 if smoke else 3, device)
    for (scheme, gradient, target), seconds in zip(cases[1:], others):
        yield f"training, {scheme}, {gradient} gradient: time / explicit", seconds / first, target
    for scheme in ("implicit(tol=1e-2)", "implicit"):
        yield f"training, {scheme}: share of samples unconverged (counted)", unconverged[scheme], 0.005


def backward_memory(device, smoke):
    """Bytes that autograd keeps for one implicit step of a block, at a tight against a loose tolerance."""
    torch.manual_seed(0)
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    y = torch.rand(64, 16, 8, 8, device=device)

    def saved(tol):
        stage, total = odenets.ODEStage([block], f"implicit(tol={tol},max_iterations=100)"), 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stage(y)
        return total, float(stage.stats.iterations.double().mean())

    (loose, few), (tight, many) = saved(0.3), saved(1e-6)
    yield f"implicit step: saved bytes, {many:.0f} iterations / {few:.0f} iterations", tight / loose, 1.0


def default_run(device, smoke):
    """The default comparison with three seeds, as a newcomer runs it."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).parents[1] / "compare_schemes.py"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, script, "--schemes", "explicit,implicit", "--out", folder, *["--smoke"] * smoke],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        records = [json.loads(line) for line in Path(folder, "records.jsonl").read_text().splitlines()]
    yield "default compare_schemes, three seeds: minutes", seconds / 60, 4.0
    for scheme in ("explicit_euler", "implicit_euler"):
        clean = [
            m["correct"] / m["total"]
            for r in records
            if r["scheme"] == scheme
            for m in r["measurements"]
            if m["attack"] == "clean"
        ]
        yield f"default compare_schemes, {scheme}: clean error, mean of seeds", 1 - sum(clean) / len(clean), 0.03
    solvers = [r["solver"] for r in records if r["solver"]]
    yield "default compare_schemes: share unconverged in training", max(s["training_unconverged_share"] for s in solvers), 0.005
    yield "default compare_schemes: share unconverged on test images", max(s["unconverged_share"] for s in solvers), 0.005


BENCHMARKS = {"explicit": explicit_overhead, "training": training_cost, "memory": backward_memory, "default": default_run}


def run_benchmarks(script, description, benchmarks, argv):
    """Parse a benchmark script's command line, run what it asks for, print and write the table.

    Args:
        script: Path of the script, which is started once more where its environment must differ.
        description: First paragraph of its help.
        benchmarks: {name: function(device, smoke) yielding (figure, measured, target)}; target None reports only,
            measured None says in `figure` why nothing was measured.
        argv: Command line without the script; None for the process's own.

    Returns:
        Exit code 0 whatever the figures are: a target missed is printed, and judged by people.
    """
    parser = Parser(prog=Path(script).name, description=description)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--only", default=",".join(benchmarks), help=f"of {', '.join(benchmarks)}")
    parser.add_argument("--out", help="write the figures to this JSON file too")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = split_top_level(args.only)
    for name in names:
        if name not in benchmarks:
            raise InputError(f"unknown benchmark {name!r}; choose from {', '.join(benchmarks)}")
    device = parse_device(args.device)
    if any(os.environ.get(key) != value for key, value in WORKER_ENVIRONMENT.items()):
        # The allocator and the thread pools read their settings at start-up: the same ones as in a run's workers.
        command = [sys.executable, script, *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(command, env={**os.environ, **WORKER_ENVIRONMENT}).returncode
    torch.set_num_threads(1)
    console, rows = Console(), []
    table = Table("figure", "measured", "target", "", title=f"torch {torch.__version__} on {device}, one thread")
    for name in names:
        with console.status(benchmarks[name].__doc__):
            for label, value, target in benchmarks[name](device, args.smoke):
                rows.append({"figure": label, "measured": value, "target": target})
                verdict = "" if target is None or value is None else "reached" if value <= target else "MISSED"
                measured, wanted = "" if value is None else f"{value:.4g}", "" if target is None else f"<= {target:g}"
                table.add_row(label, measured, wanted, verdict)
    console.print(table)
    if args.out:
        figures = {"torch": torch.__version__, "device": str(device), "figures": rows}
        write_atomically(args.out, json.dumps(figures, indent=2) + "\n")
    return 0


@run_cli
def main(argv=None):
    """The script."""
    return run_benchmarks(__file__, __doc__.split("\n\n")[0], BENCHMARKS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
