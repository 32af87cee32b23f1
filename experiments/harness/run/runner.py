"""Running the cases of a run: their phases in single-threaded processes, or one after the other; progress; resuming."""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.harness.run import partials
from experiments.harness.run.budget import Budget, Planner
from experiments.harness.run.case import PHASES, Case, Task, by_cost, checkpoint_of, phases_had, records_of, run_task
from experiments.harness.run.config import RunConfig
from experiments.harness.run.failures import Failure, failure_of, forget, keep
from experiments.harness.run.folder import Run
from experiments.harness.run.machine import default_workers, keep_memory
from experiments.harness.run.schedule import Level, Schedule
from experiments.harness.run.schema import Record
from experiments.harness.words import radius

# One thread for each process: small convolutions gain nothing from more. glibc's allocator would otherwise return each
# activation to the system and fault it in again: 10 % of a training step, 9 to 25 % of an attack.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
CLOCK = time.monotonic
Plan = Schedule | Planner
Outcome = tuple[dict[str, Any], Failure | None]  # of a task
_updates: Any = None  # the queue to the parent, in a worker


def run_cases(
    run: Run,
    config: RunConfig,
    cases: list[Case],
    console: Console,
    workers: int | None = None,
    budget: Budget | None = None,
    audits: tuple[str, ...] = (),
) -> dict[str, str]:
    """Run what the cases lack, and append their records to `run`.

    Args:
        run: The `Run`.
        config: Its `RunConfig`.
        cases: All cases, in the order of the report.
        console: rich Console for bars and lines.
        workers: Processes; by default as many as fit, see `default_workers`.
        budget: What time there is; further seeds are taken while they fit, and stand in `run.config` then.
        audits: With a budget, the audits to choose from.

    Returns:
        {case name: sentence} of the cases that failed, whatever by; the others are kept. What was not expected leaves its
        traceback in the run's folder, and its sentence says where.

    Raises:
        OSError: What is found cannot be written.
        ChildProcessError: A worker was killed; what had ended by then is kept.
    """
    missing = run.missing(cases)
    workers = workers or default_workers(torch.device(config.device), config.model)
    schedule = Schedule(Level(config.audit, config.seeds[0]), CLOCK)
    # The expensive cases first, so that no core idles at the end; with a budget seed by seed, so that it may end after any.
    order = by_cost(cases)
    order = sorted(order, key=lambda case: config.seeds.index(case.seed)) if budget else order
    schedule.add(order, lambda case: set() if case in missing else _had(run, case))
    begun = [case for case in cases if schedule.left(case)]
    for case in cases:
        if case not in missing:
            partials.remove(run.path("checkpoints"), case.name)  # of a run that was killed in between
    if len(begun) < len(cases):
        console.print(f"{len(cases) - len(begun)} of {len(cases)} cases are already there.")
    plan: Plan = schedule

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    if budget:
        plan = Planner(schedule, budget, config.seeds, workers, audits or (config.audit,), say)
        for case in cases:
            record = None if case in missing or run.environment_changes else run.record_of(case)
            if record:
                plan.learn(case, record)
    elif not begun:
        return {}
    with progress_bars(console) as progress:
        ledger = Ledger(run, config, plan, begun, progress)
        execute = _in_processes if workers > 1 and (budget or len(cases) > 1) else _in_turn
        execute(run, config, plan, workers, progress, ledger.ended)
        ledger.settle()
    return ledger.failures


def _had(run: Run, case: Case) -> set[str]:
    """The phases of a case that has a record; all where its net is not there to be looked at again."""
    record = run.record_of(case)
    return phases_had(record) if record and checkpoint_of(run.folder, case).is_file() else set(PHASES)


class Ledger:
    """What the tasks of a run have found: the records of a case are written once nothing of it is left."""

    def __init__(self, run: Run, config: RunConfig, plan: Plan, begun: list[Case], progress: Progress) -> None:
        self.run, self.config, self.plan, self.progress = run, config, plan, progress
        self.found: dict[Case, dict[str, Any]] = {case: {} for case in begun}
        self.failures: dict[str, str] = {}
        self.settled: set[Case] = {case for case in plan.had if case not in begun}
        self.overall = progress.add_task("nets", total=len(begun))

    def ended(self, task: Task, found: dict[str, Any], failure: Failure | None) -> None:
        """A task has ended."""
        case = task.case
        self.plan.ended(task, found.get("seconds", 0.0))
        self.found.setdefault(case, {})[task.phase] = found
        if failure:
            self.plan.failed(case)
            self.failures[case.name] = keep(failure, self.run.folder, case.name)
            self._say(f"{case.name}: failed: {self.failures[case.name]}")
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
            partials.remove(self.run.path("checkpoints"), case.name)
            forget(self.run.folder, case.name)
            self._say(_line(case, records[0]))

    def _say(self, sentence: str) -> None:
        self.progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def progress_bars(console: Console) -> Progress:
    """Bars with counts and the time left, gone when they have ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


Ended = Callable[[Task, dict[str, Any], Failure | None], None]


def _in_turn(run: Run, config: RunConfig, plan: Plan, workers: int, progress: Progress, ended: Ended) -> None:
    keep_memory()
    bar, threads = progress.add_task("", total=None), torch.get_num_threads()
    if config.device == "cpu":
        torch.set_num_threads(1)  # as in a worker: sums in another order would give other bits
    try:
        while task := plan.next():

            def report(done: int, total: int, name: str = task.name) -> None:
                progress.update(bar, description=f"  {name}", completed=done, total=total)

            def say(sentence: str, name: str = task.case.name) -> None:
                progress.console.print(f"{name}: {sentence}", markup=False, highlight=False, soft_wrap=True)

            report(0, 1)
            ended(task, *_attempt(config, run.folder, task, report, say))
    finally:
        torch.set_num_threads(threads)


def _in_processes(run: Run, config: RunConfig, plan: Plan, workers: int, progress: Progress, ended: Ended) -> None:
    context = multiprocessing.get_context("spawn")
    updates: Any = context.Queue()
    bars: dict[str, TaskID] = {}
    futures: dict[Future, Task] = {}
    previous = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (updates, os.getpid())) as pool:
            try:
                while True:
                    while len(futures) < workers and (task := plan.next()):
                        futures[pool.submit(_work, config, run.folder, task)] = task
                    if not futures:
                        break
                    done, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                    _show(updates, bars, progress)
                    # What ended well is written first: a broken pool ends all other futures at once.
                    for future in sorted(done, key=lambda future: future.exception() is not None):
                        task = futures.pop(future)
                        if task.name in bars:
                            progress.remove_task(bars.pop(task.name))
                        ended(task, *_result(future))
                _show(updates, bars, progress)
            except BaseException:
                for process in list(pool._processes.values()):
                    process.terminate()
                raise
    finally:
        for key, value in previous.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _result(future: Future) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker was killed (out of memory?); --resume goes on") from None
    except OSError:
        raise
    except Exception as error:  # of the way back
        return {}, failure_of(error)


def _start_worker(updates: Any, parent: int) -> None:
    global _updates
    _updates = updates
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once `parent` is gone: a killed parent cannot end its workers itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(config: RunConfig, folder: Path, task: Task) -> Outcome:
    def report(*update: Any) -> None:
        _updates.put((task.name, *update))

    report(0, 1)
    return _attempt(config, folder, task, report, lambda sentence: _updates.put((task.case.name, sentence)))


def _attempt(config: RunConfig, folder: Path, task: Task, report: Callable, say: Callable[[str], None]) -> Outcome:
    """What a task found, and its `Failure` or None: text, since not every exception survives the way between processes."""
    try:
        return run_task(config, folder, task, report, say), None
    except OSError:  # a full disk is no matter of one case
        raise
    except Exception as error:  # of any kind: the other cases go on, and nothing of this one is lost
        return {}, failure_of(error)


def _show(updates: Any, bars: dict[str, TaskID], progress: Progress) -> None:
    while True:
        try:
            name, *update = updates.get_nowait()
        except queue.Empty:
            return
        if len(update) == 1:
            progress.console.print(f"{name}: {update[0]}", markup=False, highlight=False, soft_wrap=True)
            continue
        done, total = update
        if name not in bars:
            if done == total:  # it came late: the task has ended
                continue
            bars[name] = progress.add_task("", total=total)
        progress.update(bars[name], description=f"  {name}", completed=done, total=total)


def _line(case: Case, record: Record) -> str:
    shown = []
    for m in record.measurements:
        if m.gradient == "exact":
            name = f"{m.attack} at {radius(m.epsilon)}" if m.epsilon else m.attack
            shown.append(f"{name} {m.accuracy:.3f}")
    mark = " \u2020 failed its audit" if record.verdict == "failed" else ""
    return f"{case.name}{mark}: {', '.join(shown)} ({sum(record.seconds.values()):.0f} s)"
