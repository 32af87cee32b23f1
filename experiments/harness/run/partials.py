"""The checkpoints of a training that is under way: the last two are kept, and a damaged one is stepped over."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.harness.run import checkpoints
from odenets.errors import InputError

KEPT = 2


@dataclass(frozen=True)
class Partials:
    """Where a training saves what it needs to go on, NAME.00000012.partial and the like.

    folder: where they lie. name: of the case. identity: whose they are, a dict; a state is taken up by its own training only.
    say: called with a sentence that the user should read.
    """

    folder: Path
    name: str
    identity: dict
    say: Callable

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state, then drop all but the last two; OSError, what is there being intact, where the disk is full."""
        present = _numbered(self.folder, self.name)
        number = max(present, default=0) + 1
        checkpoints.save(self.folder / f"{self.name}.{number:08d}.partial", {"identity": self.identity, "state": state})
        for old in sorted(present)[: -(KEPT - 1)]:
            present[old].unlink()

    def latest(self) -> Mapping[str, Any] | None:
        """The newest state that is whole, None where there is none. Damaged files are named and set aside.

        Raises:
            ValueError: It belongs to another training, or has another format.
        """
        for _, path in sorted(_numbered(self.folder, self.name).items(), reverse=True):
            try:
                content = checkpoints.read(path)
            except checkpoints.Damaged as error:
                aside = path.replace(path.with_suffix(".damaged"))
                self.say(f"{error}; set aside as {aside.name}, going on from the checkpoint before, if any")
                continue
            theirs = content["identity"]
            changes = [
                f"{key} was {theirs.get(key)!r} and is now {self.identity.get(key)!r}"
                for key in sorted({*theirs, *self.identity})
                if theirs.get(key) != self.identity.get(key)
            ]
            if changes:
                raise InputError(f"{path} belongs to another training ({'; '.join(changes)}); choose another --out")
            return content["state"]
        return None


def remove(folder: str | Path, name: str) -> None:
    """Drop what a training has left, once its case is recorded; what was set aside stays."""
    for path in _numbered(folder, name).values():
        path.unlink()
    for path in Path(folder).glob("*.partial.tmp"):
        if path.name.startswith(f"{name}."):
            path.unlink(missing_ok=True)


def _numbered(folder: str | Path, name: str) -> dict[int, Path]:
    """{number: path} of the partial checkpoints of a case."""
    pattern = re.compile(re.escape(name) + r"\.(\d{8})\.partial")
    return {int(match[1]): path for path in Path(folder).iterdir() if (match := pattern.fullmatch(path.name))}
