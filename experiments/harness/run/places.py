"""Where tasks run: here, one after the other; in processes of this machine; on the nodes of a cluster (cluster.py).

Who has tasks hands them to a `Place` through `drive`, and gets back what each has found, or why it has failed.
"""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from rich.progress import Progress, TaskID

from experiments.harness.command import tell
from experiments.harness.run.failures import Failure, failure_of
from experiments.harness.run.log import TensorBoard
from experiments.harness.run.machine import keep_memory
from experiments.harness.training.epoch import Epoch, Say
from experiments.harness.words import duration
from odenets.solve.precision import float32_products
from stability.types import Progress as Report

# One thread for each process: small convolutions gain nothing from more. glibc's allocator would otherwise return each
# activation to the system and fault it in again: 10 % of a training step, 9 to 25 % of an attack.
# Huge pages, where the system has them for the asking, take another 5 to 11 % off a training step, explicit or implicit.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
QUIET = 60  # seconds without a line where the output is a file
_updates: Any = None  # the queue to the parent, in a worker

Found = dict[str, Any]
Outcome = tuple[Found, Failure | None]


@runtime_checkable
class Doable(Protocol):
    """What can be done somewhere. name: for bars. whose: for sentences, the name of the net."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def whose(self) -> str: ...  # noqa: D102


Task = TypeVar("Task", bound=Doable)
Work = Callable[[Any, Report, Say], Found]  # (task, progress, say): in another process or on a node it is pickled


@runtime_checkable
class Place(Protocol[Task]):
    """Where tasks run; a context."""

    def free(self) -> bool:
        """Whether it takes another task now."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task."""
        ...

    def ended(self) -> list[tuple[Task, Found, Failure | None]]:
        """What has ended since: waits a moment where nothing has. OSError where no task can go on, the disk being full."""
        ...

    def __enter__(self) -> "Place[Task]": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End what still runs, where an error leaves the context."""
        ...


def drive(
    place: Place[Task], following: Callable[[], Task | None], ended: Callable[[Task, Found, Failure | None], None]
) -> None:
    """Do tasks at a place until there are none.

    Args:
        place: Where they are done; it is entered and left.
        following: The task that comes next; None where there is none for now. Others may be there once one has ended.
        ended: Called with a task, what it has found, and its failure or None.
    """
    with place:
        running = 0
        while True:
            while place.free() and (task := following()):
                place.submit(task)
                running += 1
            if not running:
                return
            for outcome in place.ended():
                running -= 1
                ended(*outcome)


class Screen:
    """The bars of tasks that run, what they say above them, and the log beside them where there is one."""

    def __init__(self, progress: Progress, log: TensorBoard | None = None) -> None:
        self.progress, self.log = progress, log
        self.bars: dict[str, TaskID] = {}
        self.started = self.told = time.monotonic()

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        tell(self.progress.console, sentence)

    def show(self, name: str, *update: Any) -> None:
        """What a task reports: a sentence or an epoch of a net, or how far a task is."""
        if isinstance(update[0], Epoch):
            return self.log.epoch(name, update[0]) if self.log else None
        if len(update) == 1:
            return self.say(f"{name}: {update[0]}")
        done, total = update
        if name not in self.bars:
            if done == total:  # it came late: the task has ended
                return None
            self.bars[name] = self.progress.add_task("", total=total)
        self.progress.update(self.bars[name], description=f"  {name}", completed=done, total=total)
        return self._tell()

    def gone(self, name: str) -> None:
        """A task has ended."""
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))

    def _tell(self) -> None:
        """Where there are no bars, say how far all is: after a minute, and each time that a tenth more has passed."""
        now = time.monotonic()
        if not self.progress.console.is_terminal and now - self.told > max(QUIET, 0.1 * (now - self.started)):
            self.told, tasks = now, self.progress.tasks
            far = [f"{task.description.strip()} {task.completed:.0f} of {task.total:.0f}" for task in tasks if task.total]
            self.say(f"After {duration(now - self.started)}: {', '.join(far)}")


class Here:
    """This process: one task at a time. threads: of torch meanwhile; None: as many as there are."""

    def __init__(self, work: Work, screen: Screen, threads: int | None = None) -> None:
        self.work, self.screen, self.threads = work, screen, threads
        self.task: Any = None

    def __enter__(self) -> "Here":
        keep_memory()
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads or self.before)
        return self

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.before)

    def free(self) -> bool:
        """See `Place`."""
        return self.task is None

    def submit(self, task: Any) -> None:
        """See `Place`."""
        self.task = task

    def ended(self) -> list[tuple[Any, Found, Failure | None]]:
        """See `Place`."""
        task, self.task = self.task, None

        def report(done: int, total: int) -> None:
            self.screen.show(task.name, done, total)

        report(0, 1)
        outcome = attempt(self.work, task, report, lambda sentence: self.screen.show(task.whose, sentence))
        self.screen.gone(task.name)
        return [(task, *outcome)]


class Processes:
    """Single-threaded processes of this machine; each has one of the devices for its own, or shares it where there are more."""

    def __init__(self, work: Work, screen: Screen, workers: int, devices: Sequence[str]) -> None:
        self.work, self.screen, self.workers, self.devices = work, screen, workers, devices
        self.futures: dict[Future, Any] = {}

    def __enter__(self) -> "Processes":
        context = multiprocessing.get_context("spawn")
        self.updates: Any = context.Queue()
        handed: Any = context.Queue()
        for device in handed_out(self.devices, self.workers):
            handed.put(device)
        self.before = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
        os.environ.update(WORKER_ENVIRONMENT)
        self.pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.updates, os.getpid(), handed))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            for process in list(self.pool._processes.values()):
                process.terminate()
        self.pool.shutdown()
        self._show()
        for key, value in self.before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})

    def free(self) -> bool:
        """See `Place`."""
        return len(self.futures) < self.workers

    def submit(self, task: Any) -> None:
        """See `Place`."""
        self.futures[self.pool.submit(_work, self.work, task)] = task

    def ended(self) -> list[tuple[Any, Found, Failure | None]]:
        """See `Place`; ChildProcessError where a worker was killed and nothing else has ended."""
        done, _ = wait(self.futures, timeout=0.2, return_when=FIRST_COMPLETED)
        self._show()
        # What ended well comes first: a broken pool ends all other futures at once.
        well = [future for future in done if future.exception() is None]
        outcomes = []
        for future in well or done:
            task = self.futures.pop(future)
            self.screen.gone(task.name)
            outcomes.append((task, *_result(future)))
        return outcomes

    def _show(self) -> None:
        while True:
            try:
                self.screen.show(*self.updates.get_nowait())
            except queue.Empty:
                return


def attempt(work: Work, task: Any, report: Report, say: Say) -> Outcome:
    """What a task found, and its `Failure` or None: text, since not every exception survives the way between processes.

    float32 is float32 here too, as in `run_cli`: a worker is another process.
    """
    try:
        with float32_products("ieee"):
            return work(task, report, say), None
    except OSError:  # a full disk is no matter of one task
        raise
    except Exception as error:  # of any kind: the others go on, and nothing of this one is lost
        return {}, failure_of(error)


def _result(future: Future) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise ChildProcessError("a worker was killed (out of memory?); --resume goes on") from None
    except OSError:
        raise
    except Exception as error:  # of the way back
        return {}, failure_of(error)


def _start_worker(updates: Any, parent: int, devices: Any = None) -> None:
    global _updates
    _updates = updates
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if devices is not None:
        take_device(devices.get())


def handed_out(devices: Sequence[str], workers: int) -> list[str]:
    """The device of each worker: every one is used before any is shared."""
    return [devices[worker % len(devices)] for worker in range(workers)]


def take_device(name: str) -> None:
    """Make a GPU that of this process: "cuda" means it from now on."""
    if name.startswith("cuda"):
        torch.cuda.set_device(name)


def _end_with(parent: int) -> None:
    """End this process once `parent` is gone: a killed parent cannot end its workers itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(work: Work, task: Any) -> Outcome:
    def report(*update: Any) -> None:
        _updates.put((task.name, *update))

    report(0, 1)
    return attempt(work, task, report, lambda sentence: _updates.put((task.whose, sentence)))
