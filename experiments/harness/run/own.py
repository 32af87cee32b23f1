"""The code of a user's own parts: what it is, by SHA-256, and how it travels to a machine that does not have it.

A part comes from a file, or a module, and from what that imports from beside itself. Installed packages are not looked into:
the environment that a run notes has their versions.
"""

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from odenets.errors import ROOT, InputError
from odenets.own import MOVED, is_own, path_of

OURS = ("odenets", "stability", "experiments")


@dataclass(frozen=True)
class Code:
    """The source of a place, as it is named: FILE.py or package.module.

    files: {path below the folder that Python imports it from: source}; the file of the place comes first.
    """

    place: str
    files: Mapping[str, bytes]

    @property
    def digests(self) -> dict[str, str]:
        """{file, as the user would name it: SHA-256 of its source}."""
        folder = Path(self.place).parent if self.place.endswith(".py") else Path()
        return {(folder / name).as_posix(): hashlib.sha256(source).hexdigest() for name, source in self.files.items()}


def codes_of(specs: Iterable[str]) -> tuple[Code, ...]:
    """The `Code` of the parts that are a user's own among some specs, each place once; their modules can be imported."""
    places = dict.fromkeys(spec.partition("(")[0].rpartition(":")[0] for spec in specs if is_own(spec))
    return tuple(_code(place) for place in places)


def digests(codes: Iterable[Code]) -> dict[str, str]:
    """{file: SHA-256} of all of them."""
    return {name: digest for code in codes for name, digest in code.digests.items()}


def unpack(codes: Iterable[Code], folder: str | Path) -> None:
    """Write code that was carried here into a folder, and let it be found by this process under the names it was given by."""
    for number, code in enumerate(codes):
        root = Path(folder, str(number))
        for name, source in code.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(source)
        if code.place.endswith(".py"):
            MOVED[code.place] = root / next(iter(code.files))
        elif code.files:
            sys.path.insert(0, str(root))


def refuse_changes(known: Mapping[str, str], specs: Iterable[str], whose: str) -> None:
    """InputError that names the file where the code of some specs is no longer what `known` {file: SHA-256} says."""
    for name, digest in digests(codes_of(specs)).items():
        if known.get(name, digest) != digest:
            raise InputError(
                f"{name} has changed since {whose}: its SHA-256 was {known[name][:12]}... and is now {digest[:12]}...; "
                "bring the file back, or start anew"
            )


def _code(place: str) -> Code:
    if place.endswith(".py"):
        path = path_of(place).resolve()
        root = path.parent
    else:
        spec = importlib.util.find_spec(place) if place in sys.modules else _found(place)
        if spec is None or not spec.origin or not spec.origin.endswith(".py") or installed(Path(spec.origin)):
            return Code(place, {})
        path = Path(spec.origin).resolve()
        root = path.parents[place.count(".") + (path.name == "__init__.py")]
    files: dict[str, bytes] = {}
    todo = [*(folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root) and folder != root), path]
    while todo:
        name = (path := todo.pop()).relative_to(root).as_posix()
        if name not in files and path.is_file():
            files[name] = path.read_bytes()
            todo += _imported(path, root)
    return Code(place, files)


def _found(place: str) -> importlib.machinery.ModuleSpec | None:
    sys.path.insert(0, str(Path().resolve()))
    try:
        return importlib.util.find_spec(place)
    finally:
        sys.path.pop(0)


def installed(path: Path) -> bool:
    """Whether a file is Python's, of an installed package, or ours: what every machine has."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return any(path.is_relative_to(library) for library in libraries + [str(ROOT / name) for name in OURS])


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """The files below `root` that a file imports."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before = [*package[: len(package) - node.level + 1]] if node.level else []
            base = before + (node.module.split(".") if node.module else [])
            names = [base, *([*base, alias.name] for alias in node.names)]
        for name in names:
            for length in range(1, len(name) + 1):
                for found in (root.joinpath(*name[:length], "__init__.py"), root.joinpath(*name[:length]).with_suffix(".py")):
                    if found.is_file() and not installed(found):
                        yield found
