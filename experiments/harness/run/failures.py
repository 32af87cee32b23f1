"""What went wrong, in one line: expected errors as the sentence they are, others with their type and their traceback kept."""

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.harness.run.folder import saving, write_atomically
from odenets.errors import EXPECTED, sentence

FOLDER = "failures"  # of a run, with a traceback for each case
REMEDY = "take fewer --workers (on a cluster a larger --gpus-per-case), a smaller --batch-size or a smaller --model"


@dataclass(frozen=True)
class Failure:
    """An exception that can cross processes, whatever its class: the sentence, and the traceback of what was not expected."""

    sentence: str
    trace: str | None


def failure_of(error: BaseException) -> Failure:
    """The `Failure` that an exception is."""
    trace = None if isinstance(error, EXPECTED) else "".join(traceback.format_exception(error))
    told = sentence(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in told:
        told = f"{told.split('. ')[0]}; {REMEDY}"
    return Failure(told, trace)


def keep(failure: Failure, folder: str | Path, name: str) -> str:
    """The sentence; where there is a traceback it goes to FOLDER/NAME.txt in a run's folder, which the sentence then names."""
    if failure.trace is None:
        return failure.sentence
    path = Path(folder, FOLDER, f"{name}.txt")
    with saving(path):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, failure.trace)
    return f"{failure.sentence} (traceback: {path})"


def forget(folder: str | Path, name: str) -> None:
    """Remove the traceback of a case that has succeeded since."""
    path = Path(folder, FOLDER, f"{name}.txt")
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
