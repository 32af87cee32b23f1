"""Where the nets and the partial checkpoints of a run lie, as bytes: its checkpoints/, or what a node sees of it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from experiments.harness.run import checkpoints

KEPT = 2  # partial checkpoints of a case


class Found(NamedTuple):
    """The newest partial checkpoint of a case. path: where it lies. data: None where there is none. damaged: sentences on
    those that were stepped over and set aside."""

    path: str
    data: bytes | None
    damaged: list[str]


@runtime_checkable
class Shelf(Protocol):
    """What a task asks of it; names are those of cases."""

    def net(self, name: str) -> tuple[str, bytes]:
        """Where a trained net lies, and its bytes."""
        ...

    def put_net(self, name: str, data: bytes) -> None:
        """Keep a trained net."""
        ...

    def newest(self, name: str) -> Found:
        """The newest partial checkpoint that is whole."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Keep a partial checkpoint, and drop all but the last two; OSError, what is there being intact, on a full disk."""
        ...


@dataclass(frozen=True)
class Disk:
    """A `Shelf` that is a folder of this machine: NAME.pt, NAME.00000012.partial and the like."""

    folder: Path

    def net(self, name: str) -> tuple[str, bytes]:
        """See `Shelf`."""
        path = self.folder / f"{name}.pt"
        return str(path), path.read_bytes()

    def put_net(self, name: str, data: bytes) -> None:
        """See `Shelf`."""
        checkpoints.write(self.folder / f"{name}.pt", data)

    def newest(self, name: str) -> Found:
        """See `Shelf`."""
        damaged: list[str] = []
        for _, path in sorted(numbered(self.folder, name).items(), reverse=True):
            data = path.read_bytes()
            try:
                checkpoints.verified(data, path)
                return Found(str(path), data, damaged)
            except checkpoints.Damaged as error:
                aside = path.replace(path.with_suffix(".damaged"))
                damaged.append(f"{error}; set aside as {aside.name}, going on from the checkpoint before, if any")
        return Found(str(self.folder), None, damaged)

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf`."""
        present = numbered(self.folder, name)
        checkpoints.write(self.folder / f"{name}.{max(present, default=0) + 1:08d}.partial", data)
        for old in sorted(present)[: -(KEPT - 1)]:
            present[old].unlink()


def numbered(folder: str | Path, name: str) -> dict[int, Path]:
    """{number: path} of the partial checkpoints of a case."""
    pattern = re.compile(re.escape(name) + r"\.(\d{8})\.partial")
    return {int(match[1]): path for path in Path(folder).iterdir() if (match := pattern.fullmatch(path.name))}


def remove(folder: str | Path, name: str) -> None:
    """Drop the partial checkpoints of a case, once it is recorded; what was set aside stays."""
    for path in numbered(folder, name).values():
        path.unlink()
    for path in Path(folder).glob("*.partial.tmp"):
        if path.name.startswith(f"{name}."):
            path.unlink(missing_ok=True)
