"""Do digits' splits move a difference of schemes? What stands behind `--splits fixed`, the default: docs/statistics.md.

    python experiments/benchmarks/splits.py [--splits 12] [--seeds 0,1,2] [--out runs/splits]

Each split of the data is a run of compare_schemes.py in a folder of its own under --out (12 epochs, PGD-10 at 0.1, midpoint
against explicit Euler), all with the same seeds; what was cut off goes on when the line is given again. At the end a nested
analysis of variance of the paired differences, splits and seeds within them, and how wide the correction for splits would make
an interval. 72 nets: about 20 minutes on 2 cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from scipy import stats

from experiments.compare_schemes import cases_of
from experiments.harness.command import Parser, parse_numbers, parse_one, run_cli
from experiments.harness.conduct import conduct
from experiments.harness.options import add_arguments, make_config
from experiments.harness.report.arms import comparison
from experiments.harness.run.folder import read_run
from experiments.harness.words import count
from odenets.errors import InputError

PROTOCOL = ["--epochs", "12", "--attacks", "pgd10", "--epsilons", "0.1", "--audit", "none"]


@dataclass(frozen=True)
class Nested:
    """Differences by split and seed. split, seed: mean squares; degrees: of each; p: of F = split / seed, one-sided."""

    mean: float
    split: float
    seed: float
    degrees: tuple[int, int]
    p: float

    @property
    def component(self) -> float:
        """The variance between splits beside that of seeds, no less than nought."""
        seeds = self.degrees[1] / (self.degrees[0] + 1) + 1
        return max(0.0, (self.split - self.seed) / seeds)


def nested(values: ArrayLike) -> Nested:
    """Nested analysis of variance of (splits, seeds), at least two of each.

    Source: Searle, Casella, McCulloch (1992), Variance Components, section 3.6.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise InputError(f"splits and seeds within them are a table with two of each at least, got shape {table.shape}")
    splits, seeds = table.shape
    of_splits, of_seeds = seeds * table.mean(1).var(ddof=1), table.var(1, ddof=1).mean()
    degrees = splits - 1, splits * (seeds - 1)
    p = float(stats.f.sf(of_splits / of_seeds, *degrees)) if of_seeds else float("nan")
    return Nested(float(table.mean()), float(of_splits), float(of_seeds), degrees, p)


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser(prog="splits.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--splits", default="12", help="how many splits of the data")
    parser.add_argument("--seeds", default="0,1,2", help="initial weights and order of batches, the same for every split")
    parser.add_argument("--schemes", default="explicit,midpoint", help="two: the second against the first")
    parser.add_argument("--out", default="runs/splits", help="folder of the runs")
    parser.add_argument("--workers", default=None, help="processes; default: as many as fit")
    parser.add_argument("--smoke", action="store_true", help="every path in seconds; the numbers mean nothing")
    args = parser.parse_args(argv)
    splits = parse_one(args.splits, "--splits", int, 2)
    seeds = parse_numbers(args.seeds, "--seeds", int, 0)
    if len(seeds) < 2:
        raise InputError(f"--seeds names one seed ({seeds[0]}), and two at least tell what a split adds")
    line, options = ["--schemes", args.schemes, "--seeds", args.seeds, *PROTOCOL, "--resume"], Parser(prog="splits.py")
    line += (["--workers", args.workers] if args.workers else []) + ["--smoke"] * args.smoke
    add_arguments(options)
    folders, code = [Path(args.out, f"split-{split}") for split in range(splits)], 0
    for split, folder in enumerate(folders):
        own = options.parse_args([*line, "--out", str(folder)])
        config = replace(make_config(own, "compare_schemes", (1,)), split_seed=split)
        if len(config.schemes) != 2:
            raise InputError(f"--schemes takes two, got {args.schemes!r}")
        code = max(code, conduct(config, cases_of, own))
    differences = []
    for folder in folders:
        found = comparison(*read_run(folder))
        first, other = (arm.masks(found.middle) for arm in found.arms)
        differences.append([100 * (other[seed].mean() - first[seed].mean()) for seed in seeds])
    result, size = nested(differences), found.config.data
    ratio = size["test"] / size["train"]
    wider = ", ".join(f"{sqrt(1 + n * ratio):.1f} times at {n} seeds" for n in (3, 12))
    Console(width=120).print(
        f"{count(splits, 'split')} x {count(len(seeds), 'seed')}: {found.arms[1].name} against {found.arms[0].name} "
        f"{result.mean:+.1f} points; F = {result.split / result.seed:.2f} on {result.degrees[0]} and {result.degrees[1]} "
        f"degrees of freedom (p = {result.p:.2f}); deviation between the seeds of a split {sqrt(result.seed):.1f} points, of "
        f"splits beside that {sqrt(result.component):.1f}. The correction for splits would make an interval wider: {wider}.",
        markup=False,
        highlight=False,
    )
    return code


if __name__ == "__main__":
    raise SystemExit(main())
