"""A run's folder: config.json, records.jsonl (one case a line, append-only) and the tables derived from it."""
import csv
import json
import os
from pathlib import Path

OWN_FILES = ("config.json", "records.jsonl", "accuracy.csv", "stability.csv", "audit.csv", "report.html", "figures",
             "checkpoints")
# What may change between the start of a run and its resumption: nothing here moves a result.
INCIDENTAL = ("command", "environment", "data_dir", "workers")


class Run:
    """The folder of one run, new or resumed.

    Args:
        folder: Created where missing.
        config: Everything that determines the results, JSON-ready, and the incidental rest.
        resume: Go on where the folder holds this very run.

    Raises:
        ValueError: The folder holds another run, or this one and `resume` is not set; a record is damaged.
        OSError: It cannot be written.
    """

    def __init__(self, folder, config, resume=False):
        self.folder = Path(folder)
        present = [name for name in OWN_FILES if (self.folder / name).exists()]
        if present and not resume:
            raise ValueError(f"{folder} already holds a run ({', '.join(present)}); choose another --out, or add --resume to "
                             f"go on with it")
        if present and not (self.folder / "config.json").exists():
            raise ValueError(f"{folder} holds {', '.join(present)} but no config.json, so it cannot be resumed; choose "
                             f"another --out")
        config = json.loads(json.dumps(config))
        if present:
            _refuse_changes(folder, _read_json(self.folder / "config.json"), config)
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.config = config
        self.records = self._read_records()
        if not present:
            write_atomically(self.folder / "config.json", json.dumps(config, indent=2) + "\n")

    def path(self, *parts):
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def append(self, record):
        """Add a case and make sure that it is on the disk."""
        with open(self.path("records.jsonl"), "a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)

    def sort(self, cases):
        """Bring the records, which came in as cases ended, into the order of the cases."""
        position = {(case.scheme, case.substeps, case.seed): index for index, case in enumerate(cases)}
        self.records.sort(key=lambda r: (position[r["scheme"], r["trained_substeps"], r["seed"]], r["substeps"]))

    def write_tables(self):
        """accuracy.csv, stability.csv and audit.csv, derived from the records."""
        shared = ("dataset", "model", "scheme", "substeps", "training", "seed")
        measured = ("attack", "epsilon", "gradient", "correct", "total")
        self._write_csv("accuracy.csv", (*shared, *measured, "accuracy", "untrusted", "trained_substeps"), (
            [*(r[key] for key in shared), *(m[key] for key in measured), round(m["correct"] / m["total"], 6), m["untrusted"],
             r["trained_substeps"]]
            for r in self.records for m in r["measurements"]))
        columns = ("scheme", "seed", "stage", "block", "metric", "value")
        self._write_csv("stability.csv", (*columns, "substeps"), (
            [r["scheme"], r["seed"], *(row[key] for key in columns[2:]), r["substeps"]]
            for r in self.records for row in r["stability"]))
        self._write_csv("audit.csv", ("scheme", "seed", "check", "passed", "reason", "figures", "thresholds"), (
            [r["scheme"], r["seed"], c["name"], {True: "yes", False: "no", None: "not applicable"}[c["passed"]], c["reason"],
             json.dumps(c["figures"]), json.dumps(c["thresholds"])]
            for r in self.records if r["audit"] for c in r["audit"]["checks"]))

    def _write_csv(self, name, header, rows):
        temporary = self.path(name + ".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        os.replace(temporary, self.path(name))

    def _read_records(self):
        path = self.path("records.jsonl")
        if not path.exists():
            return []
        lines = path.read_text().split("\n")
        if lines[-1]:
            # A line without its end was being written when the process died: that case is run again.
            write_atomically(path, "".join(line + "\n" for line in lines[:-1]))
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged (line {error.lineno}); remove that line to run its case again") from None


def write_atomically(path, text):
    """Write a text file so that it is never seen half written."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out") from None


def _refuse_changes(folder, before, now):
    changed = [key for key in sorted({*before, *now} - {*INCIDENTAL}) if before.get(key) != now.get(key)]
    if changed:
        detail = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed)
        raise ValueError(f"{folder} holds a run with another configuration ({detail}); choose another --out")
