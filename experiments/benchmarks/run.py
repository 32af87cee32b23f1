"""Every ratio with its target on one page, measured side by side in this run; absolute times mean nothing here.

    python experiments/benchmarks/run.py [--only NAME,...] [--long] [--out FILE.json [--resume]] [--against FILE.json]
        [--data-dir DIR [--weights FILE.pt]]

Less than 20 minutes on 2 cores: parts run beside each other, one thread each, timed in processor seconds. The rows of a part
are printed and written to --out as it ends; --resume goes on from there, and prints a finished page again. `--against` puts
the figures of another run, of another commit say, beside these. With `--data-dir` CIFAR-10's row is measured on its images.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.benchmarks import attacks, audit, audit_steps, cluster, cost, layout, peers, spectra, work
from experiments.benchmarks.page import Bench, by_name, code, header, lines, summary
from experiments.benchmarks.timing import Part, Row, small_step
from experiments.harness.command import Parser, parse_device, parse_one, run_cli, split_top_level, tell
from experiments.harness.run.machine import available_cores, provenance
from experiments.harness.run.places import WORKER_ENVIRONMENT
from experiments.harness.words import count, duration
from odenets.errors import InputError

# {group: {part: function}}; `--only` takes both.
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
# Asked for by name alone, or with --long: too long for one page.
LONG: dict[str, dict[str, Part]] = {
    "spectra_all": {"images_all": partial(spectra.images, whole=True)},
    "attacks_all": {"reference_all": partial(attacks.reference, whole=True)},
    "audit_all": {
        "masks_all": partial(audit.masks, whole=True),
        "schemes_all": partial(audit.schemes, whole=True),
        "honest_all": partial(audit.honest, whole=True),
    },
    "audit_steps": {"steps_plain": audit_steps.plain, "steps_ours": audit_steps.ours, "steps_masked": audit_steps.masked},
    "trained": {"cifar_trained": work.cifar_trained},
    "layouts": {"layout": layout.ratios},
    "default_run": {"compare": cost.default_run},
}
PARTS = {name: part for group in (*GROUPS.values(), *LONG.values()) for name, part in group.items()}
OPTIONS = {"cifar": ("data_dir", "weights"), "cifar_trained": ("data_dir",)}  # of the parts that take any
ALONE = ("cluster", "compare")  # timed by the clock: nothing runs beside them
# Processor seconds of each part (of those alone: of the clock) on one machine, where a step of training of the explicit small
# net took UNIT: what the forecast begins with.
UNIT = 0.0125
EXPECTED: dict[str, float] = {
    **{"images": 45, "dense_4096": 28, "dense_1024": 6, "batches": 30, "reference": 50, "pgd": 5},
    **{"masks": 26, "schemes": 60, "honest": 97, "phases": 157, "cifar": 30, "accelerator": 46},
    **{"torchdeq": 5, "fixed_grid": 35, "step": 55, "memory": 21, "large": 8, "compiled": 55},
    **{"training": 85, "explicit": 23, "backward": 5, "cluster": 40},
    **{"images_all": 220, "reference_all": 360, "masks_all": 60, "schemes_all": 200, "honest_all": 300},
    **{"steps_plain": 94, "steps_ours": 144, "steps_masked": 160, "cifar_trained": 900},
    **{"layout": 45, "compare": 300},
}
LIMIT = 900  # seconds of the clock after which a part of the page is given up


def parse_parts(text: str | None, long: bool = False) -> list[str]:
    """Names of parts from a list of parts and groups; by default all that fit on the page."""
    groups = {name: list(parts) for name, parts in {**GROUPS, **LONG}.items()}
    chosen = [*GROUPS, *LONG] if long else list(GROUPS) if text is None else split_top_level(text)
    for name in chosen:
        if name not in PARTS and name not in groups:
            raise InputError(f"unknown benchmark {name!r}; choose from {', '.join([*groups, *PARTS])}")
    return list(dict.fromkeys(part for name in chosen for part in groups.get(name, [name])))


def measured(name: str, options: Sequence[str], smoke: bool) -> tuple[list[Row], float | None]:
    """The rows of one part, and its seconds of processor time, None where it failed.

    In a process of its own, whose allocator and thread pools are those of a run's workers.
    """
    command = [sys.executable, __file__, "--part", name, *options, *["--smoke"] * smoke]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, **WORKER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    limit = None if any(name in parts for parts in LONG.values()) else LIMIT
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return [Row(f"{name} FAILED: not done after {duration(LIMIT)}", None)], None
    if done.returncode:
        return [Row(f"{name} FAILED: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", None)], None
    found = json.loads(done.stdout.splitlines()[-1])
    return [Row(*row) for row in found["rows"]], found["seconds"]


def _report(name: str, device: torch.device, args: Any) -> None:
    """Measure one part in this process and print it as JSON."""
    torch.set_num_threads(1)
    part: Any = partial(PARTS[name], **{option: getattr(args, option) for option in OPTIONS.get(name, ())})
    rows = [Row(*row) for row in part(device, args.smoke)]
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    print(json.dumps({"rows": rows, "seconds": round(seconds, 1)}))


class _Clock:
    """Forecasts: the machine's pace by a step of training, then by the parts that have ended."""

    def __init__(self, names: Iterable[str], workers: int, device: torch.device) -> None:
        self.left, self.workers, self.start = set(names), workers, time.monotonic()
        self.unit = small_step("explicit", device)
        self.done, self.expected = 60 * self.unit / UNIT, 60.0

    def ended(self, name: str, seconds: float) -> None:
        """A part took so many seconds of the clock."""
        self.left.discard(name)
        self.done, self.expected = self.done + seconds, self.expected + EXPECTED.get(name, 0.0)

    def remaining(self) -> str:
        """How long the parts that are left will take."""
        alone = sum(EXPECTED[name] for name in self.left if name in ALONE)
        beside = [EXPECTED[name] for name in self.left if name not in ALONE]
        return duration(self.done / self.expected * (alone + max(sum(beside) / self.workers, *beside, 0.0)))


def _measure(bench: Bench, names: list[str], workers: int, args: Any, options: list[str], before: Bench | None) -> list[Row]:
    """Measure parts, print and write each as it ends; returns what failed."""
    console, failed, then = Console(), list[Row](), by_name(before) if before else None
    clock, lock = _Clock(names, workers, parse_device(args.device)), threading.Lock()
    say = partial(tell, console)

    def end(name: str) -> None:
        start = time.monotonic()
        rows, spent = measured(name, options, args.smoke)
        seconds = time.monotonic() - start
        with lock:  # in the thread of the part: what has ended is on the disk, whatever becomes of the others
            clock.ended(name, seconds)
            if spent is None:
                failed.extend(rows)
            else:
                bench.parts[name], bench.seconds[name] = rows, spent
            if args.out:
                bench.write(args.out)
            left = f"; {len(clock.left)} left, about {clock.remaining()}" if clock.left else ""
            say(
                "\n".join([f"{name} ({duration(seconds)}, {duration(spent or 0)} of processor time{left})", *lines(rows, then)])
            )
            status.update(", ".join(part for part in names if part in clock.left))

    beside = sorted(set(names) - set(ALONE), key=lambda name: -EXPECTED[name])
    say(
        f"{count(len(names), 'part')}, {workers} at once: about {clock.remaining()} (an explicit training step takes "
        f"{1e3 * clock.unit:.1f} ms here). Spread: the middle half of the rounds, or a 95 % interval of a share."
    )
    say(header(then is not None))
    for batch, size in ((beside, workers), (sorted(set(names) & set(ALONE)), 1)):
        with console.status(", ".join(names)) as status, ThreadPoolExecutor(size) as pool:
            futures = [pool.submit(end, name) for name in batch]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return failed


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; exit code 1 where a part failed, 0 whatever the figures are: targets missed are judged by people."""
    parser = Parser(prog="run.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", help=f"parts or groups; by default {', '.join(GROUPS)}; by name alone {', '.join(LONG)}")
    parser.add_argument("--long", action="store_true", help="the page and all that is too long for it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="write the figures to this JSON file too, whenever a part has ended")
    parser.add_argument("--resume", action="store_true", help="measure only what the file of --out lacks")
    parser.add_argument("--against", help="compare with the figures of this file, which --out wrote")
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it that row is measured on random images")
    parser.add_argument("--weights", help="checkpoint of a run of small-stride2 with implicit Euler on CIFAR-10: its step")
    parser.add_argument("--workers", help="parts that run at once; by default one for each core")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args: Any = parser.parse_args(argv)
    device = parse_device(args.device)
    if args.part:
        _report(args.part, device, args)
        return 0
    if args.resume and not args.out:
        raise InputError("--resume goes on with the file of --out, and none is named")
    if args.weights and not args.data_dir:
        raise InputError(
            f"--weights {args.weights}: their step is timed on images of CIFAR-10; name their folder by --data-dir"
        )
    start, names, workers = time.monotonic(), parse_parts(args.only, args.long), parse_one(args.workers, "--workers", int, 1)
    before, bench = Bench.read(args.against) if args.against else None, _begun(args, device)
    workers = workers or (1 if device.type == "cuda" else available_cores())
    options = ["--device", str(device)]
    for name in ("data_dir", "weights"):
        options += [f"--{name.replace('_', '-')}", getattr(args, name)] if getattr(args, name) else []
    if bench.parts:
        print("\n".join([header(before is not None), *lines(bench.rows, by_name(before) if before else None)]))
    missing = [name for name in names if name not in bench.parts]
    failed = _measure(bench, missing, workers, args, options, before) if missing else []
    bench.parts = {name: bench.parts[name] for name in PARTS if name in bench.parts}  # in the order of the groups
    long = {name: EXPECTED[name] for parts in LONG.values() for name in parts if name not in bench.parts}
    print("\n" + "\n".join(summary(bench, failed, before, time.monotonic() - start, {} if args.only else long)))
    if args.out:
        bench.write(args.out)
        print(f"Written to {args.out}.")
    return int(bool(failed))


def _begun(args: Any, device: torch.device) -> Bench:
    """An empty `Bench`; with --resume what the file of --out holds, where it is of this code and these settings."""
    settings = {"device": str(device), "smoke": args.smoke, "images": bool(args.data_dir), "weights": args.weights, **code()}
    new = Bench({**provenance(str(device)), "settings": settings})
    if not args.resume or not Path(args.out).exists():
        return new
    found = Bench.read(args.out)
    for name, value in settings.items():
        then = found.made.get("settings", {}).get(name)
        if name != "commit" and then != value:
            raise InputError(f"{args.out} was made with {name} {then}, and this run has {value}: choose another --out")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
