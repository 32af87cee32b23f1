"""Running the cases of a run: their phases in single-threaded processes, or one after the other; progress; resuming."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.harness.command import tell
from experiments.harness.run import kept, own, shelf
from experiments.harness.run.budget import Budget, Planner
from experiments.harness.run.case import Case, Task, checkpoint_of, every_phase, load_data, phases_had, records_of, run_task
from experiments.harness.run.cluster import Cluster, Nodes, workers_on
from experiments.harness.run.config import RunConfig
from experiments.harness.run.failures import Failure, forget, keep
from experiments.harness.run.folder import Run
from experiments.harness.run.log import TensorBoard
from experiments.harness.run.machine import devices_of
from experiments.harness.run.places import QUIET, Found, Here, Place, Processes, Screen, drive
from experiments.harness.run.schedule import Level, Schedule, in_order
from experiments.harness.run.schema import Record
from experiments.harness.training.data import Data
from experiments.harness.training.epoch import Say
from experiments.harness.words import duration, radius
from stability.types import Progress as Report

CLOCK = time.monotonic
Plan = Schedule | Planner


def run_cases(
    run: Run,
    config: RunConfig,
    cases: list[Case],
    console: Console,
    workers: int | None = None,
    budget: Budget | None = None,
    audits: tuple[str, ...] = (),
    cluster: Cluster | None = None,
) -> dict[str, str]:
    """Run what the cases lack, and append their records to `run`.

    Args:
        run: The `Run`.
        config: Its `RunConfig`.
        cases: All cases, in the order of the report.
        console: rich Console for bars and lines.
        workers: Processes; by default as many as fit, see `default_workers`. On a cluster, tasks at once at most.
        budget: What time there is; further seeds are taken while they fit, and stand in `run.config` then.
        audits: With a budget, the audits to choose from.
        cluster: On whose nodes the tasks run; None: on this machine.

    Returns:
        {case name: sentence} of the cases that failed, whatever by; the others are kept. What was not expected leaves its
        traceback in the run's folder, and its sentence says where.

    Raises:
        OSError: What is found cannot be written.
        ChildProcessError: A worker was killed; what had ended by then is kept.
    """
    missing = run.missing(cases)
    workers = workers_on(cluster, workers, config.device, config.model)
    schedule = Schedule(Level(config.audit, config.seeds[0]), CLOCK)
    order = in_order(cases, config.seeds, 0 if budget else workers)  # with a budget it may end after any seed
    checkpoints, recorded = run.path("checkpoints"), {case: _had(run, case) for case in cases if case not in missing}
    for case, had in recorded.items():  # of a run that was killed in between
        shelf.remove(checkpoints, case.name)
        kept.remove(checkpoints, case.name, list(had))
    ended = {case: kept.load(checkpoints, case.name, every_phase(case)) for case in cases}
    schedule.add(order, lambda case: {*recorded.get(case, ()), *ended[case]})
    begun = [case for case in cases if schedule.left(case) or ended[case] or case in missing]
    if len(begun) < len(cases):
        console.print(f"{len(cases) - len(begun)} of {len(cases)} cases are already there.")
    plan: Plan = schedule
    if budget:
        plan = Planner(schedule, budget, config.seeds, workers, audits or (config.audit,), partial(tell, console))
        for case in cases if not run.environment_changes else []:
            record = None if case in missing else run.record_of(case)
            if record:
                plan.learn(case, record)
            for phase, found in ended[case].items():
                plan.note(case, phase, found["seconds"])
    elif not begun:
        return {}
    with progress_bars(console) as progress:
        log = TensorBoard(run.path(config.log)) if config.log else None
        ledger = Ledger(run, config, plan, {case: ended[case] for case in begun}, progress, log)
        place: Place[Task]
        disk, screen = shelf.Disk(run.path("checkpoints")), Screen(progress, log)
        if cluster:
            place = Nodes(
                partial(do_on_node, config),
                screen,
                cluster,
                disk.folder,
                partial(supply_of, config),
                own.codes_of(config.parts),
                config.workers,
            )
        elif workers == 1 or not (budget or len(cases) > 1):
            # One thread, as in a worker: sums in another order would give other bits.
            place = Here(partial(run_task, config, disk), screen, 1 if config.device == "cpu" else None)
        else:
            place = Processes(partial(run_task, config, disk), screen, workers, devices_of(torch.device(config.device)))
        drive(place, plan.next, ledger.ended)
        ledger.settle()
        if log:
            log.close()
    return ledger.failures


def supply_of(config: RunConfig, task: Task) -> tuple[int, Callable[[], Data]]:
    """The images that a task needs: of its seed's split."""
    return config.split_of(task.case.seed), partial(load_data, config, task.case.seed)


def do_on_node(config: RunConfig, disk: shelf.Shelf, task: Task, report: Report, say: Say, images: Data) -> Found:
    """A task, on a node that was sent the images."""
    return run_task(config, disk, task, report, say, images)


def _had(run: Run, case: Case) -> set[str]:
    """The phases of a case that has a record; all where its net is not there to be looked at again."""
    record = run.record_of(case)
    return phases_had(case, record) if record and checkpoint_of(run.folder, case).is_file() else {*every_phase(case)}


class Ledger:
    """What the tasks of a run have found: the records of a case are written once nothing of it is left."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        plan: Plan,
        begun: dict[Case, dict[str, dict[str, Any]]],
        progress: Progress,
        log: TensorBoard | None = None,
    ) -> None:
        self.run, self.config, self.plan, self.progress, self.log = run, config, plan, progress, log
        self.found = begun  # {case: {phase: what it found}}
        self.failures: dict[str, str] = {}
        self.settled: set[Case] = {case for case in plan.had if case not in begun}
        self.before = len(self.settled)
        self.overall = progress.add_task("nets", total=len(begun))

    def ended(self, task: Task, found: dict[str, Any], failure: Failure | None) -> None:
        """A task has ended."""
        case, console = task.case, self.progress.console
        self.plan.ended(task, found.get("seconds", 0.0))
        self.found.setdefault(case, {})[task.phase] = found
        if not failure:
            kept.save(self.run.path("checkpoints"), case.name, task.phase, found)
            if not console.is_terminal and found.get("seconds", 0.0) > QUIET:
                tell(console, f"{task.name} took {duration(found['seconds'])}")
        else:
            self.plan.failed(case)
            self.failures[case.name] = keep(failure, self.run.folder, case.name)
            tell(console, f"{case.name}: failed: {self.failures[case.name]}")
        self.settle()

    def settle(self) -> None:
        """Write what is complete."""
        for case in [case for case in self.plan.had if case not in self.settled and self.plan.complete(case)]:
            self.settled.add(case)
            found = self.found.pop(case, {})
            self.progress.update(self.overall, advance=1, total=len(self.settled) + len(self.found))
            if case.name in self.failures or not found:
                continue
            before = self.run.record_of(case)
            records = records_of(self.config, case, found, before)
            if before:
                self.run.replace(records[0])
            else:
                self.run.take_seed(case.seed)
                self.run.append(records)
            shelf.remove(self.run.path("checkpoints"), case.name)
            kept.remove(self.run.path("checkpoints"), case.name, list(found))
            forget(self.run.folder, case.name)
            if self.log:
                self.log.measured(case.name, records[0])
            ended = len(self.settled) - self.before
            tell(self.progress.console, f"{_line(case, records[0])}, {ended} of {ended + len(self.found)}")


def progress_bars(console: Console) -> Progress:
    """Bars with counts and the time left, gone when they have ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _line(case: Case, record: Record) -> str:
    shown = []
    for m in record.measurements:
        if m.gradient == "exact":
            name = f"{m.attack} at {radius(m.epsilon)}" if m.epsilon else m.attack
            shown.append(f"{name} {m.accuracy:.3f}")
    mark = " \u2020 failed its audit" if record.verdict == "failed" else ""
    return f"{case.name}{mark}: {', '.join(shown)} ({sum(record.seconds.values()):.0f} s)"
