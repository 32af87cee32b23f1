"""Cost and memory of the library beside their targets."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import odenets
from experiments.benchmarks.timing import TRAINING, Row, Rows, Times, both_ways, digits_on, take_turns
from experiments.harness.training import loop as training


def explicit_overhead(device: torch.device, smoke: bool) -> Rows:
    """Explicit Euler through ODEStage against a residual loop written by hand, forward and backward, the same blocks."""
    for name, channels, size in (("8x8", 16, 8), ("28x28", 16, 28))[: 1 if smoke else 2]:
        blocks = [odenets.fields.Block(odenets.fields.basic_layers, channels).to(device) for _ in range(4)]
        stage = odenets.ODEStage(blocks, "explicit").to(device)
        y = torch.randn(64, channels, size, size, device=device)
        calls, loop = 1 if smoke else 10 if size == 8 else 3, partial(_by_hand, blocks, y)
        runs = [both_ways(stage, forward, calls) for forward in (partial(stage, y), loop)]
        times = take_turns(runs, 1 if smoke else 25, device)
        yield times.ratio(f"explicit stage, {name}: time / hand-written loop", 0, 1, 1.03)


def _by_hand(blocks: Iterable[Any], y: Tensor) -> Tensor:
    for block in blocks:
        y = y + block.layers(y)
    return y


def training_cost(device: torch.device, smoke: bool) -> Rows:
    """Whole trainings of the default net on digits, against explicit Euler's; the spread is that of the epochs."""
    digits = digits_on(device)
    settings, unconverged = replace(TRAINING, epochs=1, batch_size=600) if smoke else TRAINING, dict[str, float]()

    def epochs(scheme: str, gradient: str) -> list[float]:
        torch.manual_seed(0)
        net = odenets.ode_resnet_small(scheme=scheme).to(device)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        ends = [clock()]
        trained = training.train(
            net, digits, replace(settings, train_gradient=gradient), 0, say=lambda told: ends.append(clock())
        )
        unconverged[scheme] = trained.unsolved["training_unconverged_share"]
        return np.diff(ends).tolist()

    cases: list[tuple[str, str, float | None]] = [
        ("explicit", "exact", None),
        ("ie_skip", "detached", 1.5),
        ("ie_skip", "exact", 3.0),
        ("implicit(tol=1e-2)", "exact", 4.8),
    ]
    first, *others = (epochs(scheme, gradient) for scheme, gradient, _ in cases)
    for (scheme, gradient, target), seconds in zip(cases[1:], others):
        row = Times(list(zip(seconds, first))).ratio(f"training, {scheme}, {gradient} gradient: time / explicit", 0, 1, target)
        yield row._replace(measured=sum(seconds) / sum(first))
    (scheme, *_) = cases[-1]
    yield f"training, {scheme}: share of samples unconverged (counted)", unconverged[scheme], 0.005


def backward_memory(device: torch.device, smoke: bool) -> Rows:
    """Bytes that autograd keeps for one implicit step of a block, at a tight against a loose tolerance."""
    torch.manual_seed(0)
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device)
    y = torch.rand(64, 16, 8, 8, device=device)

    def saved(tol: float) -> tuple[int, float]:
        stage, total = odenets.ODEStage([block], f"implicit(tol={tol},max_iterations=100)"), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stage(y)
        return total, float(stage.stats.iterations.double().mean())

    (loose, few), (tight, many) = saved(0.3), saved(1e-6)
    note = f"{many:.0f} iterations against {few:.0f}"
    yield Row("implicit step: saved bytes at tol 1e-6 / at 0.3", tight / loose, 1.0, note=note)


def default_run(device: torch.device, smoke: bool) -> Rows:
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
    yield "default compare_schemes, three seeds: minutes", seconds / 60, 5.0
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
