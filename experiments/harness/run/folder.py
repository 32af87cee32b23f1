"""A run's folder: config.json, records.jsonl (one case a line, append-only) and the tables derived from it."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock

from experiments.harness.run.config import INCIDENTAL, RunConfig
from experiments.harness.run.schema import WORST, Measurement, Record, uncollected, worst_over
from odenets.errors import InputError

OWN_FILES = (
    "config.json",
    "records.jsonl",
    "accuracy.csv",
    "stability.csv",
    "audit.csv",
    "report.html",
    "figures",
    "checkpoints",
)
LARGE = 2**25  # bytes of records, beyond which it takes seconds to read them
_held: dict[Path, filelock.BaseFileLock] = {}  # of the folders that this process works in, until it ends


class Run:
    """The folder of one run, new or resumed.

    Args:
        folder: Created where missing.
        config: Everything that determines the results, and the incidental rest, as JSON has it.
        resume: Go on where the folder holds this very run, or this run with fewer of its seeds.
        kind: What a line of records.jsonl is: has to_json() and from_json(entry).

    Attributes:
        records: What is on the disk, a list of `Record`s, or of `kind`.
        environment_changes: Sentences such as "torch was 2.10.0 and is now 2.11.0", of a resumed run.

    Raises:
        ValueError: The folder holds something else, another run, or this one and `resume` is not set; a file in it is damaged;
            another process is at work in it.
        OSError: It cannot be written.
    """

    def __init__(self, folder: str | Path, config: dict[str, Any], resume: bool = False, kind: Any = Record) -> None:
        self.folder, self._kind = Path(folder), kind
        _make_folder(self.folder)
        present = [name for name in OWN_FILES if _holds_something(self.folder / name)]
        self.config = config = json.loads(json.dumps(config))
        self.environment_changes = []
        if present:
            if not (self.folder / "config.json").is_file():
                raise InputError(
                    f"{folder} holds {', '.join(present)} but no config.json, so that it is no run to go on with; "
                    f"choose another --out"
                )
            before = _comparable(read_config(self.folder / "config.json"))
            if before.get("experiment") != config.get("experiment"):
                whose = f"a run of {before['experiment']}" if "experiment" in before else "the config.json of something else"
                raise InputError(f"{folder} holds {whose}, and this is {config.get('experiment')}; choose another --out")
            if not resume:
                raise InputError(
                    f"{folder} already holds a run ({', '.join(present)}); choose another --out, or add --resume "
                    f"to go on with it"
                )
            _refuse_changes(folder, before, _comparable(config))
            self.environment_changes = _changes(before.get("environment") or {}, config.get("environment") or {})
        _hold(self.folder)
        if not present or any(before.get(key) != config.get(key) for key in ("seeds", "audit")):
            # The configuration comes first: whatever else a killed run leaves behind, it can be resumed.
            self._write_config()
        with saving(self.folder / "checkpoints"):
            (self.folder / "checkpoints").mkdir(exist_ok=True)
        self._texts, self._index = self._read_lines(), dict[tuple, Any]()
        if sum(map(len, self._texts)) < LARGE or kind is not Record:
            _ = self.records  # damage is found at once, and not when the first case ends

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def append(self, records: list[Any]) -> None:
        """Add all records of a case at once and make sure that they are on the disk."""
        with saving(self.path("records.jsonl")), open(self.path("records.jsonl"), "ab") as file:
            file.write(_lines(records).encode())
            file.flush()
            os.fsync(file.fileno())
        self.records += records

    @cached_property
    def records(self) -> list[Any]:
        """Of a large run they are read when somebody asks what they say; whose they are stands first in their lines."""
        texts, self._texts = self._texts, []
        with uncollected():
            return [self._record(number, text) for number, text in enumerate(texts, start=1)]

    def record_of(self, case: Any) -> Record | None:
        """The record of a case's own net, without the reruns; None where there is none."""
        if len(self._index) != len(self.records):
            self._index = {(r.key, r.walk): r for r in self.records}
        return self._index.get((case.key, case.walks[0]))

    def replace(self, record: Record) -> None:
        """Put a record in the place of that of the same net: more is known of it."""
        same = (record.key, record.walk)
        self._rewrite([record if (old.key, old.walk) == same else old for old in self.records])

    def take_seed(self, seed: int) -> None:
        """Note in the configuration that the run has this seed too."""
        if seed not in self.config.get("seeds", [seed]):
            self.config["seeds"].append(seed)
            self._write_config()

    def note_report(self, seeds: int) -> None:
        """Note on the disk that so many seeds have been reported on; what else stands there stays as it was."""
        config = read_config(self.path("config.json"))
        if seeds not in config.setdefault("reported", []):
            config["reported"].append(seeds)
            write_atomically(self.path("config.json"), json.dumps(config, indent=2) + "\n")

    def missing(self, cases: Sequence[Any]) -> list[Any]:
        """The cases that lack a record; what there is of them is dropped, here and on the disk, for they run again."""
        found: dict[tuple, list[tuple[str, int]]] = {}
        for record in self._heads():
            found.setdefault(record.key, []).append(record.walk)
        missing = [case for case in cases if sorted(found.get(case.key, ())) != sorted(case.walks)]
        keys = {case.key for case in missing}
        if keys & found.keys():
            self._rewrite([record for record in self.records if record.key not in keys])
        return missing

    def _rewrite(self, records: list[Record]) -> None:
        write_atomically(self.path("records.jsonl"), _lines(records))
        self.records, self._index = records, {}

    def _write_config(self) -> None:
        write_atomically(self.folder / "config.json", json.dumps(self.config, indent=2) + "\n")

    def sort(self, cases: Sequence[Any]) -> None:
        """Bring the records, which came in as cases ended, into the order of the cases."""
        position = {(case.key, walk): index for index, (case, walk) in enumerate((c, w) for c in cases for w in c.walks)}
        self.records.sort(key=lambda record: position[record.key, record.walk])

    def write_tables(self) -> None:
        """accuracy.csv, stability.csv and audit.csv, derived from the records."""
        for name, (header, *rows) in tables_of(self.records).items():
            self.write_csv(name, header, rows)

    def write_csv(self, name: str, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
        """A table in the folder, whole or as it was."""
        write_csv(self.path(name), header, rows)

    def _heads(self) -> Iterator[Any]:
        """Whose the records are; what they say is left out where nobody has read it yet."""
        if "records" in vars(self):
            yield from self.records
            return
        for number, text in enumerate(self._texts, start=1):
            yield Record.head(text) or self._record(number, text)

    def _record(self, number: int, text: bytes) -> Any:
        try:
            return self._kind.from_json(json.loads(text.decode()))
        except ValueError as error:
            path = self.path("records.jsonl")
            raise InputError(f"{path} is damaged (line {number}); remove that line to run its case again") from error

    def _read_lines(self) -> list[bytes]:
        path = self.path("records.jsonl")
        if not path.exists():
            return []
        *lines, rest = path.read_bytes().split(b"\n")
        if rest:
            # A line without its end was being written when the process died: that case is run again.
            os.truncate(path, path.stat().st_size - len(rest))
        return lines


def tables_of(records: Sequence[Record]) -> dict[str, list[Sequence[object]]]:
    """{CSV file: its rows, the header first}; each row says what the audit of its net said."""
    shared = ("dataset", "model", "scheme", "substeps", "training", "seed")
    measured = ("attack", "epsilon", "gradient", "correct", "total")
    further = ("trained_substeps", "verdict", "field", "trained_with")
    accuracy: list[Sequence[object]] = [
        (*shared, *measured, "accuracy", "untrusted", "trained_substeps", "audit", "field", "trained_with")
    ]
    stability: list[Sequence[object]] = [
        ("scheme", "seed", "stage", "block", "metric", "value", "substeps", "audit", "field"),
    ]
    audit: list[Sequence[object]] = [
        ("scheme", "seed", "check", "passed", "reason", "figures", "thresholds", "substeps", "field", "extent"),
    ]
    words = {True: "yes", False: "no", None: "not applicable"}
    for r in records:
        own = [getattr(r, key) for key in shared]
        for m in _with_the_worst(r.measurements):
            counted = (getattr(m, key) for key in measured)
            accuracy.append([*own, *counted, round(m.accuracy, 6), m.untrusted, *(getattr(r, key) for key in further)])
        for row in r.stability:
            stability.append([r.scheme, r.seed, row.stage, row.block, row.metric, row.value, r.substeps, r.verdict, r.field])
        for c in r.audit.checks if r.audit else ():
            figures, thresholds = json.dumps(c.figures), json.dumps(c.thresholds)
            told = [r.scheme, r.seed, c.name, words[c.passed], c.reason, figures, thresholds]
            audit.append([*told, r.substeps, r.field, r.audit and r.audit.extent])
    return {"accuracy.csv": accuracy, "stability.csv": stability, "audit.csv": audit}


def write_csv(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """A table, whole or as it was."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _with_the_worst(measurements: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
    """Measurements, and the worst of several attacks where it is not among them."""
    attacks = {measurement.attack for measurement in measurements} - {"clean"}
    return measurements if len(attacks) < 2 or WORST in attacks else measurements + worst_over(measurements)


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """Within the context an OSError becomes one that says, in a sentence, what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}); what was saved before is intact") from error


def write_atomically(path: str | Path, text: str) -> None:
    """Write a text file so that it is never seen half written."""
    temporary = Path(f"{path}.tmp")
    with saving(path):
        try:
            temporary.write_bytes(text.encode())
            os.replace(temporary, path)
        except OSError:
            if temporary.is_file():
                temporary.unlink()  # on a full disk its room is needed
            raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is a file, or lies in one, and a run needs a folder; choose another --out") from None
    except OSError as error:
        raise OSError(f"cannot make the folder {folder} ({error.strerror or error}); choose another --out") from error


def _hold(folder: Path) -> None:
    """Keep other processes out of a folder until this one ends, be it by kill -9; ValueError where another is in it."""
    place = folder.resolve()
    if place in _held:
        return
    lock = filelock.FileLock(place / ".lock")
    with saving(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise InputError(f"another process is at work in {folder}; let it end, or choose another --out") from None
        except NotImplementedError:  # a file system without locks
            return
    _held[place] = lock


def _lines(records: Iterable[Any]) -> str:
    return "".join(json.dumps(record.to_json()) + "\n" for record in records)


def _holds_something(path: Path) -> bool:
    """Whether a file or folder of a run tells of one: an empty folder, or one of files cut off in the writing, does not."""
    return any(entry.suffix != ".tmp" for entry in path.iterdir()) if path.is_dir() else path.exists()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run; InputError where it is damaged."""
    try:
        config = json.loads(path.read_bytes().decode())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give another folder") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object); give another folder")
    return config


def read_run(folder: str | Path) -> tuple[RunConfig, list[Record]]:
    """A run of cases, written by any version, that is not worked at here.

    Raises:
        ValueError: There is no such run in the folder, or a line of it is damaged or of a later version; names it.
    """
    folder = Path(folder)
    for name in ("config.json", "records.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no run: it has no {name}")
    config, records = read_config(folder / "config.json"), []
    if "schemes" not in config:
        raise InputError(f"{folder} holds no run of cases, as compare_schemes.py and sweep_steps.py write them")
    with uncollected():
        for number, line in enumerate((folder / "records.jsonl").read_bytes().splitlines(), 1):
            try:
                records.append(Record.from_json(json.loads(line)))
            except ValueError as error:
                raise InputError(f"{folder / 'records.jsonl'}, line {number}: {error}") from error
    if not records:
        raise InputError(f"{folder} holds no finished case yet")
    return RunConfig.from_json(config), records


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of any version as today's, where it is that of a run of cases."""
    return RunConfig.from_json(config).to_json() if "schemes" in config and "epochs" in config else config


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Iterable[str] = ()) -> list[str]:
    keys = [key for key in sorted({*before, *now} - {*ignored}) if before.get(key) != now.get(key)]
    words = {key: f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in keys}
    return [text if len(text) < 300 else f"{key} differ" for key, text in words.items()]  # hashes of weights are named only


def _refuse_changes(folder: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    seeds, ignored = before.get("seeds") or [], list(INCIDENTAL)
    if seeds:
        ignored.append("audit")  # of a run of cases: what a net was audited by stands in its record
        if (now.get("seeds") or [])[: len(seeds)] == seeds:
            ignored.append("seeds")  # what a net is does not depend on other seeds
    before, now = ({**config, **(config.get("own") or {}), "own": None} for config in (before, now))  # code: file by file
    changes = _changes(before, now, ignored)
    if changes:
        raise InputError(f"{folder} holds a run with another configuration ({'; '.join(changes)}); choose another --out")
