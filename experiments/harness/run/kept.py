"""What the finished phases of a case found, on the disk until its record is written: a kill loses what was running alone.

NAME.PHASE.found.json beside the trained net NAME.pt, whose digest it holds: of another net it tells nothing.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.harness.run.folder import write_atomically
from experiments.harness.run.schema import VERSION, parts_of
from experiments.harness.words import file_name

DIGEST = 32  # bytes at the end of a checkpoint: its SHA-256


def save(folder: Path, name: str, phase: str, found: Mapping[str, Any]) -> None:
    """Keep what a phase found on the net that lies there; OSError where it cannot be written."""
    if not Path(folder, f"{name}.pt").is_file():
        return
    content = {"version": VERSION, "net": _digest(folder, name), "found": found}
    write_atomically(_path(folder, name, phase), json.dumps(content, default=dataclasses.asdict))


def load(folder: Path, name: str, phases: list[str]) -> dict[str, dict[str, Any]]:
    """{phase: what it found}, in the order of `phases`, of those that have ended on the net that is there now."""
    kept = {}
    for phase in phases:
        try:
            content = json.loads(_path(folder, name, phase).read_bytes())
            if (content["version"], content["net"]) == (VERSION, _digest(folder, name)):
                kept[phase] = _parsed(content["found"])
        except (OSError, ValueError, KeyError, TypeError):  # not there, or no such file: the phase is done again
            continue
    return kept


def remove(folder: Path, name: str, phases: list[str]) -> None:
    """Drop it: the record of the case is written."""
    for phase in phases:
        for path in (_path(folder, name, phase), Path(f"{_path(folder, name, phase)}.tmp")):
            path.unlink(missing_ok=True)


def _path(folder: Path, name: str, phase: str) -> Path:
    return Path(folder, f"{name}.{file_name(phase)}.found.json")


def _digest(folder: Path, name: str) -> str:
    path = Path(folder, f"{name}.pt")
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - DIGEST))
        return file.read().hex()


def _parsed(found: dict[str, Any]) -> dict[str, Any]:
    found.pop("again", None)  # an earlier version kept the reruns of a net together
    where = {"made": found.pop("made")} if "made" in found else {}  # not yet as a record has it
    return {**parts_of(found), **where}
