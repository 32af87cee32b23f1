"""From a configuration to a finished run: what will be done is said, the cases are run, tables and report written."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.harness.command import conclude, tell
from experiments.harness.report import comparison as report
from experiments.harness.report.arms import Comparison, comparison
from experiments.harness.run.budget import Budget
from experiments.harness.run.case import Case, load_data
from experiments.harness.run.cluster import parse_place, workers_on
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import Run, saving
from experiments.harness.run.forecast import forecast
from experiments.harness.run.rehearsal import rehearse
from experiments.harness.run.runner import run_cases
from experiments.harness.words import count, duration, listed, radius
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
        tell(console, images.note)
    if run.environment_changes:
        tell(console, f"Cases already there come from another environment: {'; '.join(run.environment_changes)}.")
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
        cases, workers = cases_of(config, config.seeds), workers_on(cluster, config.workers, config.device, config.model)
        _announce(config, run.missing(cases), workers, console)
        failures |= run_cases(run, config, cases, console, workers, budget, audits, cluster)
        config = replace(config, seeds=tuple(run.config["seeds"]))
        run.sort(cases_of(config, config.seeds))
        if not run.records:
            raise InputError(f"no case of {out} succeeded: {next(iter(failures.values()))}")
        found = comparison(config, run.records)
        if report.clear(found) or len(config.seeds) < (look or 0):
            break
    run.write_tables()
    for name, rows in report.further_files(found).items():
        run.write_csv(name, rows[0], rows[1:])
    with console.status("drawing the report"), saving(run.path("report.html")):
        report.write_report(found, run.path("report.html"))
    run.note_report(len(config.seeds))
    _print_summary(console, found, failures, run.path("report.html"))
    return 1 if failures else 0


def _announce(config: RunConfig, cases: Sequence[Case], workers: int, console: Console) -> None:
    """Say what is to be done, and about how long it takes where nobody has said how long it may."""
    if not cases:
        return
    which = []
    for word, key in (("", "scheme"), ("fields ", "field"), ("steps ", "substeps"), ("seeds ", "seed")):
        values = list(dict.fromkeys(getattr(case, key) for case in cases))
        which += [] if values in (["residual"], [1]) and key != "seed" else [word + listed(values)]
    attacked, images = sum(len(case.walks) for case in cases), config.data
    again = f", {attacked} to attack" if attacked > len(cases) else ""
    tell(
        console,
        f"{count(len(cases), 'net')} to train{again} ({'; '.join(which)}): {config.model} on {config.dataset}, "
        f"{images['train']} training and {images['test']} test images; {', '.join(config.attacks)} at "
        f"{', '.join(map(radius, config.epsilons))}; {count(workers, 'worker')} of one thread",
    )
    if not (config.budget or config.smoke):
        with console.status("timing a step of each scheme"):
            seconds = forecast(config, cases).seconds(workers)
        tell(console, f"About {duration(seconds)} in all, by a step of each scheme")


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
