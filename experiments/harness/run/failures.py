"""What went wrong, in one line: expected errors as the sentence they are, others with their type and their traceback kept."""

import re
import site
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.harness.run.folder import saving, write_atomically
from odenets.errors import InputError, Unsolved

EXPECTED = (InputError, Unsolved)
FOLDER = "failures"  # of a run, with a traceback for each case
ROOT = Path(__file__).parents[3]
SHOWN = 3  # keys of a state dict
# Prefixes that wrappers of torch put before the keys of a state dict, and the wrappers.
PREFIXES = {"module.": "DataParallel and DistributedDataParallel", "_orig_mod.": "torch.compile"}


@dataclass(frozen=True)
class Failure:
    """An exception that can cross processes, whatever its class: the sentence, and the traceback of what was not expected."""

    sentence: str
    trace: str | None


def failure_of(error: BaseException) -> Failure:
    """The `Failure` that an exception is."""
    trace = None if isinstance(error, EXPECTED) else "".join(traceback.format_exception(error))
    return Failure(sentence(error), trace)


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


def sentence(error: BaseException) -> str:
    """An error in one line: the message alone where it was written for that, else after the type and the user's line."""
    message = _keys(str(error)) or (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, EXPECTED):
        return message or type(error).__name__
    at = place(error)
    name = type(error).__name__ + (f" at {at}" if at else "")
    return f"{name}: {message}" if message else name


def place(error: BaseException) -> str | None:
    """FILE:LINE, the innermost one that is the user's: not of this project, of Python or of an installed package; else None."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    # A virtual environment may lie in the project's folder, or the user's file: the folders of the code itself are named.
    others = [str(ROOT / name) for name in ("odenets", "stability", "experiments")]
    others += [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    others += [*site.getsitepackages(), "<"]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(tuple(others))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _keys(message: str) -> str | None:
    """What `load_state_dict` complains of, with the first keys of each kind and a hint; None for other messages."""
    head, *lines = message.strip().splitlines()[:1] + [line.strip() for line in message.strip().splitlines()[1:]] or [""]
    if not head.startswith("Error(s) in loading state_dict"):
        return None
    found, misfits = {}, [line for line in lines if line.startswith("size mismatch")]
    for kind in ("Missing", "Unexpected"):
        found[kind] = [key for line in lines if line.startswith(f"{kind} key(s)") for key in re.findall(r'"([^"]*)"', line)]
    parts = [f"{kind.lower()} {_first(keys)}" for kind, keys in found.items() if keys]
    parts += [_first([line.rstrip(".") for line in misfits], "; ")] if misfits else []
    return f"{head} {'; '.join(parts)}{_hint(found['Missing'], found['Unexpected'])}"


def _first(keys: Sequence[str], between: str = ", ") -> str:
    rest = len(keys) - SHOWN
    return between.join(keys[:SHOWN]) + (f"{between}and {rest} more" if rest > 0 else "")


def _hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for prefix, wrapper in PREFIXES.items():
        if unexpected and all(key.startswith(prefix) for key in unexpected):
            return (
                f"; {wrapper} put {prefix!r} before the keys: load {{key.removeprefix({prefix!r}): value for key, value in "
                "state.items()}"
            )
        if missing and all(key.startswith(prefix) for key in missing):
            return f"; the network is wrapped by {wrapper}, the state dict is not: load it into the network within"
    return ""
