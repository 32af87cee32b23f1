"""Errors that are expected: each says in one sentence what was given and what would be valid.

The command line prints that sentence and exits with 2; any other exception is a fault of the program and keeps its traceback.
"""

import re
import site
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """What was given cannot be worked with: the message shows the value and what would be valid."""


class MissingExtra(InputError):
    """An optional package is not installed: the message names the extra that brings it."""


class NoStatistics(InputError, AttributeError):
    """A stage has not run yet. An AttributeError too: to Python the attribute is not there, for `hasattr` and the like."""


class Divergence(InputError):
    """A training left the finite numbers: the message says why, in terms of the scheme's stability."""


class Unsolved(RuntimeError):
    """An equation was not solved to its tolerance, and `on_failure` is "raise"."""


EXPECTED = (InputError, Unsolved)
ROOT = Path(__file__).parents[1]
SHOWN = 3  # keys of a state dict
# Prefixes that wrappers of torch put before the keys of a state dict, and the wrappers.
PREFIXES = {"module.": "DataParallel and DistributedDataParallel", "_orig_mod.": "torch.compile"}


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
