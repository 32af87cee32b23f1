"""The page of the benchmarks: rows as lines of text, their verdicts, the file they are kept in, two runs compared."""

import hashlib
import json
import math
import subprocess
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import Row
from experiments.harness.run.folder import write_atomically
from experiments.harness.words import count, duration
from odenets.errors import InputError

NAME, SHOWN = 72, 12  # columns of a figure's name; rows of a kind that the summary names
ALIKE = 0.03  # figures of two runs that are no further apart do not differ, whatever their spreads
ROOT = Path(__file__).parents[2]


@dataclass
class Bench:
    """What a run of the page found, and under what circumstances (JSON).

    parts: {part: its rows}, of those that ended without a failure. seconds: {part: seconds of processor time}.
    """

    made: dict[str, Any]
    parts: dict[str, list[Row]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """All rows, part by part."""
        return [row for rows in self.parts.values() for row in rows]

    def write(self, path: str | Path) -> None:
        """Write or replace the file, whole or not at all."""
        figures = [{"part": part, **row._asdict()} for part, rows in self.parts.items() for row in rows]
        content = {**self.made, "figures": figures, "seconds": self.seconds}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> "Bench":
        """What `write` wrote; earlier versions' files too, whose figures do not say their part or spread."""
        try:
            content = json.loads(Path(path).read_text())
            figures, seconds = content.pop("figures"), content.pop("seconds", {})
            parts = dict[str, list[Row]]()
            for values in figures:
                parts.setdefault(values.pop("part", ""), []).append(Row(**values))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is no file that run.py --out wrote") from None
        return cls(content, parts, seconds)


def code() -> dict[str, str | None]:
    """Which code runs: {"code": a digest of its files, "commit": what git calls it, None without git}."""
    digest = hashlib.sha256()
    for folder in ("odenets", "stability", "experiments"):
        for file in sorted(ROOT.glob(f"{folder}/**/*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    try:
        told = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return {"code": digest.hexdigest()[:16], "commit": None}
    return {"code": digest.hexdigest()[:16], "commit": told.stdout.strip() or None}


def verdict(row: Row) -> str:
    """Whether the target was met; with a question mark where the spread reaches to the other side of it."""
    if row.target is None or row.measured is None:
        return ""
    reaches = row.low is not None and row.high is not None and row.low <= row.target < row.high
    return ("met" if row.measured <= row.target else "MISSED") + "?" * reaches


def differs(now: Row, then: Row) -> bool:
    """Whether the spreads of a figure in two runs do not meet, and the figures are further apart than 3 %."""
    if now.measured is None or then.measured is None:
        return False
    a, b = sorted(((row.measured, row.low, row.high) for row in (now, then)), key=lambda values: values[0] or 0.0)
    apart = _first(a[2], a[0]) < _first(b[1], b[0])
    return apart and not math.isclose(now.measured, then.measured, rel_tol=ALIKE)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def header(compared: bool) -> str:
    """The line above the rows."""
    cells = [f"{'figure':<{NAME}}", f"{'measured':>9}", f"{'spread':>19}", f"{'target':>10}", f"{'':<8}"]
    return ("  " + " ".join([*cells, *([f"{'before':>9}", "now / before"] if compared else [])])).rstrip()


def lines(rows: Iterable[Row], before: Mapping[str, Row] | None = None) -> list[str]:
    """Rows as text: what is long in a name breaks, numbers stand in columns, a note below its row."""
    found = []
    for row in rows:
        first, *rest = textwrap.wrap(row.figure, NAME, subsequent_indent="  ") or [""]
        target = "" if row.target is None else f"<= {row.target:.4g}"
        spread = "" if row.low is None or row.high is None else f"[{_shown(row.low)}, {_shown(row.high)}]"
        cells = [f"{first:<{NAME}}", f"{_shown(row.measured):>9}", f"{spread:>19}", f"{target:>10}", f"{verdict(row):<8}"]
        then = before.get(row.figure) if before else None
        if then and then.measured is not None and row.measured is not None:
            ratio = row.measured / then.measured if then.measured else math.nan
            cells += [f"{_shown(then.measured):>9}", f"{ratio:.3g}" + " *" * differs(row, then)]
        found += ["  " + " ".join(cells).rstrip(), *("  " + part for part in rest)]
        found += textwrap.wrap(row.note, NAME + 40, initial_indent="      ", subsequent_indent="      ")
    return found


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def summary(
    bench: Bench, failed: Sequence[Row], before: Bench | None, clock: float, left_out: Mapping[str, float]
) -> list[str]:
    """One screen: how many targets were met, which were missed, what could not be measured, what another run had.

    Args:
        bench: All that is there. failed: Rows that say which parts are not, and why.
        before: The other run.
        clock: Seconds that this took.
        left_out: {part: seconds expected} of what is too long for the page.
    """
    rows, verdicts = bench.rows, [verdict(row) for row in bench.rows]
    promised, met = sum(map(bool, verdicts)), sum(told.startswith("met") for told in verdicts)
    spent = duration(sum(bench.seconds.values()))
    told = [
        f"{met} of {count(promised, 'target')} met, {promised - met} missed; {count(len(bench.parts), 'part')}, "
        f"{spent} of processor time, {duration(clock)} now."
    ]
    told += [row.figure for row in failed]
    told += _named("Missed:", [row for row, word in zip(rows, verdicts) if word.startswith("MISSED")])
    told += _named(
        "Met, though the spread reaches beyond the target:", [r for r, word in zip(rows, verdicts) if word == "met?"]
    )
    absent = [row.figure for row in rows if row.measured is None]
    told += [f"Not measured: {'; '.join(dict.fromkeys(absent))}."] if absent else []
    if before is not None:
        now, then = by_name(bench), by_name(before)
        common = [name for name in now if name in then]
        changed = [now[name] for name in common if differs(now[name], then[name])]
        gone = f"; {len(then) - len(common)} of its figures are not among these" if len(then) > len(common) else ""
        other = before.made.get("settings", {}).get("commit") or "the other"
        title = f"Of {count(len(common), 'figure')} in both, {len(changed)} differ from {other}"
        told += _named(f"{title} by more than their spreads{gone}{':' if changed else '.'}", changed, then, empty=True)
    if left_out:
        parts = ", ".join(f"{name} (about {duration(60 * max(1, round(time / 60)))})" for name, time in left_out.items())
        told.append(f"Too long for this page: {parts}; --only NAME measures one, --long all of them beside the page.")
    return told


def by_name(bench: Bench) -> dict[str, Row]:
    """{figure: row} of what was measured."""
    return {row.figure: row for row in bench.rows if row.measured is not None}


def _named(title: str, rows: Sequence[Row], before: Mapping[str, Row] | None = None, empty: bool = False) -> list[str]:
    if not rows:
        return [title] if empty else []
    bare = [row._replace(note="") for row in rows[:SHOWN]]
    return [title, *lines(bare, before), *([f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])]
