"""From a configuration to a finished run: what will be done is said, the cases are run, tables and report written."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.harness.command import conclude
from experiments.harness.report import comparison as report
from experiments.harness.report.arms import Comparison, comparison
from experiments.harness.run.budget import Budget
from experiments.harness.run.case import Case, load_data
from experiments.harness.run.cluster import parse_place
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import Run, saving
from experiments.harness.run.rehearsal import rehearse
from experiments.harness.run.runner import run_cases
from odenets.errors import InputError

CasesOf = Callable[[RunConfig, Sequence[int]], list[Case]]  # the cases of a run with these seeds, in the order of the report


def conduct(config: RunConfig, cases_of: CasesOf, args: Namespace) -> int:
    """Run the cases, write tables and report, print the summary; returns the exit code.

    Args:
        config: Its `RunConfig`.
        cases_of: (config, seeds) -> its cases, in the order of the report.
        args: Parsed options.

    Returns:
        0: all cases are there. 1: some failed and are named; the report shows the others.
    """
    console, started = Console(), time.monotonic()
    _, cluster = parse_place(args)
    images = load_data(config)  # before the folder is made: a missing data set leaves nothing behind
    config = replace(config, data={"train": len(images.train), "held_out": len(images.held_out), "test": len(images.test)})
    if images.digest:
        config = replace(config, own={**config.own, config.dataset: images.digest})
    rehearse(config, cases_of(config, config.seeds), images)
    out = args.out or f"runs/{config.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = Run(out, config.to_json(), args.resume)
    if images.note:
        console.print(images.note, markup=False, highlight=False, soft_wrap=True)
    if run.environment_changes:
        console.print(
            f"Cases already there come from another environment: {'; '.join(run.environment_changes)}.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    failures: dict[str, str] = {}
    further = partial(_cases_of_seed, cases_of, config)
    # A look that the run has passed did not end it.
    looks: list[int | None] = [look for look in config.looks if look >= len(config.seeds)]
    for look in looks or [config.seeds_at_most]:
        budget, audits = None, tuple[str, ...]()
        if config.budget:
            fixed = args.seeds is not None or config.smoke
            budget = Budget(config.budget, started, further, not fixed, look)
            audits = ("first", "cheap") if args.audit is None else ()
        elif config.looks and look:
            _take_seeds(run, look)
            config = replace(config, seeds=tuple(run.config["seeds"]))
        failures |= run_cases(run, config, cases_of(config, config.seeds), console, config.workers, budget, audits, cluster)
        config = replace(config, seeds=tuple(run.config["seeds"]))
        run.sort(cases_of(config, config.seeds))
        if not run.records:
            raise InputError(f"no case of {out} succeeded: {next(iter(failures.values()))}")
        found = comparison(config, run.records)
        if found.clear or len(config.seeds) < (look or 0):
            break
    run.write_tables()
    for name, rows in report.further_files(found).items():
        run.write_csv(name, rows[0], rows[1:])
    with console.status("drawing the report"), saving(run.path("report.html")):
        report.write_report(found, run.path("report.html"))
    run.note_report(len(config.seeds))
    _print_summary(console, found, failures, run.path("report.html"))
    return 1 if failures else 0


def _cases_of_seed(cases_of: CasesOf, config: RunConfig, seed: int) -> list[Case]:
    return cases_of(config, (seed,))


def _take_seeds(run: Run, count: int) -> None:
    """Further seeds for a run, so that it has `count`: the smallest numbers that it does not have."""
    for seed in range(count):
        if len(run.config["seeds"]) < count:
            run.take_seed(seed)


def _print_summary(console: Console, found: Comparison, failures: Mapping[str, str], report_path: Path) -> None:
    """The table of the report without its empty columns, its first sentences, and where the report lies."""
    wide = report.answer_table(found).show(console, _title(found))
    failed = (f"{name} failed: {reason}" for name, reason in failures.items())
    conclude(wide, [*report.answer(found), *_solves(found), *failed], "Report", report_path)


def _title(found: Comparison) -> str:
    """Names what the intervals are over: images for an arm that has one seed."""
    seeds = [len(arm.records) for arm in found.arms if arm.records]
    if max(seeds) == 1:
        return "Accuracy and 95 % interval over images"
    rest = ", over images where one seed is left" if min(seeds) == 1 else ""
    return f"Accuracy, mean and 95 % interval over seeds and images{rest}; differences hold together"


def _solves(found: Comparison) -> Iterator[str]:
    """A sentence for each scheme that solves equations: the largest share over its nets left unconverged."""
    for scheme in dict.fromkeys(record.scheme for record in found.records if record.solver):
        solvers = [record.solver for record in found.records if record.scheme == scheme and record.solver]
        training, test = (
            100 * max(getattr(solver, key) or 0 for solver in solvers)
            for key in ("training_unconverged_share", "unconverged_share")
        )
        yield f"{scheme}: unconverged solves {training:.2g} % in training, {test:.2g} % on test images (worst net)."
