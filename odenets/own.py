"""Parts of a user's own by one grammar, package.module:NAME or path/to/file.py:NAME, parameters in parentheses.

Schemes, fields, models, attacks, predictors and data sets are named so wherever one of ours is. Whatever goes wrong in a user's
code is an `InputError` with the user's file and line.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from odenets.errors import InputError, sentence
from odenets.specs import read_arguments

EMPTY = inspect.Parameter.empty
_SPEC = re.compile(r"\s*(?P<place>.*):(?P<name>[^:()]*?)\s*(?:\((?P<arguments>[^()]*)\))?\s*")
_loaded: dict[Path, tuple[bytes, ModuleType]] = {}  # what was imported from files, and its text
# Files that lie elsewhere than where they are named, {place: path}: on a machine to which code was carried.
MOVED: dict[str, Path] = {}


@dataclass(frozen=True)
class Own:
    """A part of a user's own: what was found at PLACE:NAME, and the text of its parentheses, None without."""

    kind: str
    place: str
    name: str
    found: Any
    arguments: str | None

    @property
    def spec(self) -> str:
        """PLACE:NAME."""
        return f"{self.place}:{self.name}"

    @property
    def takes(self) -> dict[str, Any]:
        """{parameter: default} of a callable, `EMPTY` where there is none."""
        if not callable(self.found):
            raise InputError(f"{self.spec} cannot be had: TypeError: {type(self.found).__name__!r} object is not callable")
        try:
            signature = inspect.signature(self.found).parameters.values()
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.spec} cannot be had: {sentence(error)}") from None
        return {p.name: p.default for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def declared(self, filled: Iterable[str] = (), optional: Iterable[str] = ()) -> dict[str, Any]:
        """{parameter: default} that the parentheses may set, of a callable that is called by the names `filled`.

        Raises:
            InputError: It does not take one of them, beside the `optional` ones, or needs something else.
        """
        takes, filled = self.takes, tuple(filled)
        lacking = [name for name in filled if name not in takes and name not in optional]
        needed = [name for name, default in takes.items() if default is EMPTY and name not in filled]
        if lacking or needed:
            wrong = f"does not take {', '.join(lacking)}" if lacking else f"needs {', '.join(needed)}"
            called = f"called with {', '.join(filled)}" if filled else "called without arguments"
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise InputError(
                f"{self.spec} {wrong}: {article} {self.kind} is {called}, and what else it takes must have a default"
            )
        return {name: default for name, default in takes.items() if name not in filled}

    def settings(self, declared: dict[str, Any]) -> dict[str, Any]:
        """{parameter: value} that the parentheses set."""
        return read_arguments(self.spec, self.kind, self.arguments, declared)

    def call(self, **filled: Any) -> Any:
        """What the callable answers."""
        with _told(self.spec, self.place):
            return self.found(**filled)


def is_own(spec: object) -> bool:
    """Whether a spec names a part of a user's own: it has a colon before any parenthesis."""
    return isinstance(spec, str) and _SPEC.fullmatch(spec) is not None


def find_own(spec: str, kind: str) -> Own:
    """The part that a spec names, its module imported.

    Args:
        spec: PLACE:NAME or PLACE:NAME(parameter=value,...), for which `is_own` holds.
        kind: "scheme", "field", ...: for messages.

    Raises:
        InputError: Nothing there, or an import that fails, with the user's file and line.
    """
    match = _SPEC.fullmatch(spec)
    if not match:
        raise InputError(f"cannot read the {kind} {spec!r}; write package.module:NAME or path/to/file.py:NAME")
    place, name = match["place"].strip(), match["name"]
    with _told(f"{place}:{name}", place):
        found = getattr(_from_file(place) if place.endswith(".py") else importlib.import_module(place), name)
    return Own(kind, place, name, found, match["arguments"])


def path_of(place: str) -> Path:
    """Where the file of a place that ends in .py lies on this machine."""
    return MOVED.get(place, Path(place))


@contextmanager
def _told(spec: str, place: str) -> Iterator[None]:
    """Within the context Python imports from the folder of a place too, as beside a script; errors become sentences."""
    folder = str((path_of(place).parent if place.endswith(".py") else Path()).resolve())
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:  # the user's code may raise whatever it likes
        raise InputError(f"{spec} cannot be had: {sentence(error)}") from error
    finally:
        sys.path.remove(folder)


def _from_file(place: str) -> ModuleType:
    path = path_of(place)
    if not path.is_file():
        raise FileNotFoundError(f"no file {place}")
    path, text = path.resolve(), path.read_bytes()
    if path not in _loaded or _loaded[path][0] != text:
        # Under a name that is nobody else's; known by it meanwhile and afterwards, as dataclasses and pickle want it.
        spec = importlib.util.spec_from_file_location(f"own_{path.stem}_{abs(hash(path)):x}", path)
        assert spec and spec.loader  # of a file that is there
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded[path] = text, module
    return _loaded[path][1]
