"""Every ratio with its target on one page, measured side by side in this run; absolute times mean nothing here.

    python experiments/benchmarks/run.py [--only NAME,...] [--out FILE.json] [--against FILE.json] [--data-dir DIR]

At most 20 minutes on 2 cores: parts run beside each other, one thread each, timed in processor seconds. `--against` puts the
figures of another run, of another commit say, beside these. With `--data-dir` the row of CIFAR-10 is measured on its images.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.benchmarks import attacks, audit, cluster, cost, peers, spectra, work
from experiments.benchmarks.timing import Part, Row
from experiments.harness.command import Parser, parse_device, run_cli, show_table, split_top_level
from experiments.harness.experiment import provenance
from experiments.harness.run.folder import write_atomically
from experiments.harness.run.machine import available_cores
from experiments.harness.run.places import WORKER_ENVIRONMENT
from odenets.errors import InputError

# {group: {part: function}}; `--only` takes both. The long ones first, so that no core idles at the end.
GROUPS: dict[str, dict[str, Part]] = {
    "spectra": {
        "images": spectra.images,
        "dense_4096": spectra.dense_4096,
        "dense_1024": spectra.dense_1024,
        "batches": spectra.batches,
    },
    "attacks": {"reference": attacks.reference, "pgd": attacks.pgd},
    "audit": {"masks": audit.masks, "schemes": audit.schemes, "honest": audit.honest},
    "work": {"phases": work.phases, "cifar": work.cifar_step, "accelerator": work.accelerator},
    "peers": {
        "torchdeq": peers.against_torchdeq,
        "fixed_grid": peers.fixed_grid,
        "step": peers.training_step,
        "memory": peers.peak_memory,
        "large": peers.large_states,
        "compiled": peers.compiled,
    },
    "cost": {"training": cost.training_cost, "explicit": cost.explicit_overhead, "backward": cost.backward_memory},
    "places": {"cluster": cluster.overhead},
}
ON_DATA = {"cifar"}  # parts that take the folder of the images
# Asked for by name alone: too long for one page.
LONG: dict[str, dict[str, Part]] = {
    "audit_all": {"masks_all": partial(audit.masks, whole=True), "honest_all": partial(audit.honest, whole=True)},
    "default_run": {"compare": cost.default_run},
}
PARTS = {name: part for group in (*GROUPS.values(), *LONG.values()) for name, part in group.items()}


def parse_parts(text: str | None) -> list[str]:
    """Names of parts from a list of parts and groups; by default all that fit on the page."""
    groups = {name: list(parts) for name, parts in {**GROUPS, **LONG}.items()}
    chosen = list(GROUPS) if text is None else split_top_level(text)
    for name in chosen:
        if name not in PARTS and name not in groups:
            raise InputError(f"unknown benchmark {name!r}; choose from {', '.join([*groups, *PARTS])}")
    return list(dict.fromkeys(part for name in chosen for part in groups.get(name, [name])))


def measured(name: str, device: torch.device, smoke: bool, data_dir: str | None = None) -> list[Row]:
    """The rows of one part, in a process of its own, whose allocator and thread pools are those of a run's workers."""
    command = [sys.executable, __file__, "--part", name, "--device", str(device), *["--smoke"] * smoke]
    command += ["--data-dir", data_dir] if data_dir else []
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, **WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return [Row(f"{name} FAILED: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", None, None)]
    return [Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def verdict(row: Row) -> str:
    """Whether the target was met."""
    if row.target is None or row.measured is None:
        return ""
    return "met" if row.measured <= row.target else "MISSED"


def page(rows: Sequence[Row], before: dict[str, float | None] | None = None) -> list[list[str]]:
    """Cells of the one table, the header first; `before`: figures of another run, by name."""
    cells = [["figure", "measured", "target", "", "before", "now / before"]]
    for row in rows:
        then = None if before is None else before.get(row.figure)
        ratio = row.measured / then if then and row.measured is not None else None
        target = "" if row.target is None else f"<= {row.target:g}"
        cells.append([row.figure, _shown(row.measured), target, verdict(row), _shown(then), _shown(ratio)])
    return cells


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def read_figures(path: str | None) -> dict[str, float | None] | None:
    """{figure: measured} of a file that `--out` wrote; None for None."""
    if path is None:
        return None
    try:
        return {row["figure"]: row["measured"] for row in json.loads(Path(path).read_text())["figures"]}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no file that run.py --out wrote") from None


def _measure_all(
    names: list[str], device: torch.device, smoke: bool, data_dir: str | None, console: Console
) -> tuple[list[Row], dict[str, float]]:
    """The rows of all parts, in their order, and {part: seconds that it took}."""
    workers, left, rows, seconds = 1 if device.type == "cuda" else available_cores(), set(names), {}, {}

    def run(name: str) -> None:
        start = time.monotonic()
        rows[name] = measured(name, device, smoke, data_dir)
        seconds[name] = round(time.monotonic() - start, 1)
        left.discard(name)
        status.update(f"left: {', '.join(part for part in names if part in left)}")

    with console.status(", ".join(names)) as status, ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, names))
    return [row for name in names for row in rows[name]], {name: seconds[name] for name in names}


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; exit code 1 where a part failed, 0 whatever the figures are: targets missed are judged by people."""
    parser = Parser(prog="run.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", help=f"parts or groups; by default {', '.join(GROUPS)}; by name alone {', '.join(LONG)}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="write the figures to this JSON file too")
    parser.add_argument("--against", help="compare with the figures of this file, which --out wrote")
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it that row is measured on random images")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args: Any = parser.parse_args(argv)
    device = parse_device(args.device)
    if args.part:
        torch.set_num_threads(1)
        part: Any = PARTS[args.part]
        part = partial(part, data_dir=args.data_dir) if args.part in ON_DATA else part
        print(json.dumps([tuple(row) for row in part(device, args.smoke)]))
        return 0
    before, console, start = read_figures(args.against), Console(), time.monotonic()
    rows, seconds = _measure_all(parse_parts(args.only), device, args.smoke, args.data_dir, console)
    title = f"torch {torch.__version__} on {device}, one thread for each part"
    show_table(console, title, page(rows, before), 1)
    missed, gone = sum(verdict(row) == "MISSED" for row in rows), set(before or ()) - {row.figure for row in rows}
    print(f"{missed} of {sum(row.target is not None for row in rows)} targets missed, in {time.monotonic() - start:.0f} s.")
    if gone:
        print(f"{len(gone)} figures of {args.against} are not among these.")
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        figures = [row._asdict() for row in rows]
        write_atomically(
            args.out, json.dumps({**provenance(str(device)), "figures": figures, "seconds": seconds}, indent=2) + "\n"
        )
    return int(any("FAILED" in row.figure for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
