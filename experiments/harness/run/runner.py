"""Running the cases of a run: a single-threaded process for each core, or one after the other on a GPU; progress; resuming."""

import multiprocessing
import os
import queue
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import odenets
from experiments.harness.run import partials
from experiments.harness.run.case import run_case
from experiments.harness.run.failures import failure_of, forget, keep
from experiments.harness.words import radius

# One thread for each process: small convolutions gain nothing from more. glibc's allocator would otherwise return each
# activation to the system and fault it in again, 12 to 26 % of the time of a training step.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
_updates = None  # the queue to the parent, in a worker


def available_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_cases(run, config, cases, console, workers=None):
    """Run the cases that lack records and append their records to `run`.

    Args:
        run: The `Run`.
        config: Its `RunConfig`.
        cases: All cases, in the order of the report.
        console: rich Console for bars and lines.
        workers: Processes; by default one for each core, one in all where a GPU does the work.

    Returns:
        {case name: sentence} of the cases that failed, whatever by; the others are kept. What was not expected leaves its
        traceback in the run's folder, and its sentence says where.

    Raises:
        OSError: What is found cannot be written.
        ChildProcessError: A worker was killed; what had ended by then is kept.
    """
    todo = run.missing(cases)
    for case in cases:
        if case not in todo:
            partials.remove(run.path("checkpoints"), case.name)  # of a run that was killed in between
    if len(todo) < len(cases):
        console.print(f"{len(cases) - len(todo)} of {len(cases)} cases are already there.")
    if not todo:
        return {}
    workers = workers or (1 if config.device.startswith("cuda") else available_cores())
    # The expensive cases first, so that no core idles at the end.
    todo.sort(key=lambda case: (-odenets.get_scheme(case.scheme).cost * case.substeps, case.seed))
    with progress_bars(console) as progress:
        overall = progress.add_task("cases", total=len(todo))
        failures = {}

        def finished(case, records, failure):
            if failure:
                failures[case.name] = keep(failure, run.folder, case.name)
                console.print(f"{case.name}: failed: {failures[case.name]}", markup=False, highlight=False, soft_wrap=True)
            if records:
                run.append(records)
                partials.remove(run.path("checkpoints"), case.name)
                forget(run.folder, case.name)
                console.print(_line(case, records[0]), markup=False, highlight=False, soft_wrap=True)
            progress.advance(overall)

        execute = _in_processes if workers > 1 and len(todo) > 1 else _in_turn
        execute(run, config, todo, min(workers, len(todo)), progress, finished)
    return failures


def progress_bars(console):
    """Bars with counts and the time left, gone when they have ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _in_turn(run, config, todo, workers, progress, finished):
    task, threads = progress.add_task("", total=None), torch.get_num_threads()
    if config.device == "cpu":
        torch.set_num_threads(1)  # as in a worker: sums in another order would give other bits
    try:
        for case in todo:

            def report(phase, done, total, case=case):
                progress.update(task, description=f"  {case.name}: {phase}", completed=done, total=total)

            def say(sentence, case=case):
                _say(progress, case.name, sentence)

            finished(case, *_attempt(config, run.folder, case, report, say))
    finally:
        torch.set_num_threads(threads)


def _in_processes(run, config, todo, workers, progress, finished):
    context = multiprocessing.get_context("spawn")
    updates, bars = context.Queue(), {}
    previous = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (updates, os.getpid())) as pool:
            futures = {pool.submit(_work, config, run.folder, case): case for case in todo}
            try:
                while futures:
                    done, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                    _show(updates, bars, progress)
                    # What ended well is written first: a broken pool ends all other futures at once.
                    for future in sorted(done, key=lambda future: future.exception() is not None):
                        case = futures.pop(future)
                        if case.name in bars:
                            progress.remove_task(bars.pop(case.name))
                        try:
                            found = future.result()
                        except BrokenProcessPool:
                            raise ChildProcessError("a worker was killed (out of memory?); --resume goes on") from None
                        except OSError:
                            raise
                        except Exception as error:  # of the way back
                            found = [], failure_of(error)
                        finished(case, *found)
                _show(updates, bars, progress)
            except BaseException:
                for process in list(pool._processes.values()):
                    process.terminate()
                raise
    finally:
        for key, value in previous.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _start_worker(updates, parent):
    global _updates
    _updates = updates
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End this process once `parent` is gone: a killed parent cannot end its workers itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(config, folder, case):
    return _attempt(
        config,
        folder,
        case,
        lambda *update: _updates.put((case.name, *update)),
        lambda sentence: _updates.put((case.name, sentence)),
    )


def _attempt(config, folder, case, report, say):
    """(records, `Failure` or None) of a case. A failure is text: not every exception survives the way between processes."""
    try:
        return run_case(config, folder, case, report, say), None
    except OSError:  # a full disk is no matter of one case
        raise
    except Exception as error:  # of any kind: the other cases go on, and nothing of this one is lost
        return [], failure_of(error)


def _show(updates, bars, progress):
    while True:
        try:
            name, *update = updates.get_nowait()
        except queue.Empty:
            return
        if len(update) == 1:
            _say(progress, name, *update)
            continue
        phase, done, total = update
        if name not in bars:
            bars[name] = progress.add_task("", total=total)
        progress.update(bars[name], description=f"  {name}: {phase}", completed=done, total=total)


def _say(progress, name, sentence):
    progress.console.print(f"{name}: {sentence}", markup=False, highlight=False, soft_wrap=True)


def _line(case, record):
    shown = []
    for m in record.measurements:
        if m.gradient == "exact":
            name = f"{m.attack} at {radius(m.epsilon)}" if m.epsilon else m.attack
            shown.append(f"{name} {m.accuracy:.3f}")
    mark = " \u2020 failed its audit" if record.verdict == "failed" else ""
    return f"{case.name}{mark}: {', '.join(shown)} ({sum(record.seconds.values()):.0f} s)"
