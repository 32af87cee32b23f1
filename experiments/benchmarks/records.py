"""The tables of docs/results.md from docs/records: CSV files rebuilt from records.jsonl, figures by the present statistics.

    python experiments/benchmarks/records.py docs/records/cifar10-standard
    python experiments/benchmarks/records.py --index docs/results.md

Rewrites the CSV files that a folder holds and prints, as Markdown, the nets of all folders given together: means over seeds in
per cent, 95 % intervals over seeds and images, after a stroke those along the detached gradient; differences to the first
scheme, one family for the table; environment, command and seeds of each folder. Of more than six schemes each has a row, with
its seeds, and a difference whose interval holds by itself. With --index it writes nothing but what a
page says of all records beside it, between the lines <!-- records --> and <!-- end of records -->. Seconds.
"""

import csv
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import experiments.harness.statistics as statistics
from experiments.harness.command import Parser, run_cli, tell
from experiments.harness.report.arms import Arm
from experiments.harness.report.evaluation import merged
from experiments.harness.run.folder import read_config, tables_of, write_csv
from experiments.harness.run.schema import WORST, Record
from experiments.harness.words import interval, listed, percent, points, radius
from odenets.errors import InputError

WIDE = 6  # columns that a page has room for
START, END = "<!-- records -->", "<!-- end of records -->"


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser(prog="records.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="*", help="finished runs of the same images")
    parser.add_argument("--index", metavar="PAGE", help="write environment, command and seeds of all records into this page")
    args, console = parser.parse_args(argv), Console(width=400)
    if args.index:
        page = Path(args.index)
        page.write_text(indexed(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
        return 0
    if not args.folders:
        raise InputError("name the folders of finished runs, or --index PAGE")
    records: list[Record] = []
    for folder in map(Path, args.folders):
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        own = _in_order(folder, [Record.from_json(json.loads(line)) for line in lines if line])
        for name, (header, *rows) in tables_of(own).items():
            if (folder / name).exists():
                write_csv(folder / name, header, rows)
        records += own
        for line in _provenance(folder, own):
            tell(console, line)
    sizes = {m.total for record in records for m in record.measurements}
    if len(sizes) != 1:
        raise InputError(f"these runs are of different test images: {listed(sorted(sizes))} of them")
    for row in (tall if len(_schemes(records)) > WIDE else markdown)(records):
        tell(console, f"| {' | '.join(row)} |")
    return 0


def indexed(text: str, folder: Path) -> str:
    """The text of a page in a folder with what it says of records/ there, as it should be now."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise InputError(f"the page must hold the lines {START} and {END} once each")
    before, rest = text.split(START)
    entries = "\n".join(_entry(path) for path in sorted((folder / "records").glob("*/config.json")))
    return f"{before}{START}\n{entries}{END}{rest.split(END)[1]}"


def _entry(path: Path) -> str:
    """Of a record: its seeds, its environment, its command as it was given, over several lines where it is long."""
    config, name = read_config(path), path.parent.name
    made = ", ".join(f"{key} {value}" for key, value in config["environment"].items() if value is not None)
    lines = textwrap.wrap(config["command"], 124, break_long_words=False, break_on_hyphens=False)
    command = " \\\n    ".join(lines)
    return f"**[{name}](records/{name}/config.json)**: {_seeds_of(path.parent, config)}; {made}\n```\n{command}\n```\n"


def _seeds_of(folder: Path, config: Mapping[str, Any]) -> str:
    """Of an evaluation, which has no seeds of its own, those of the nets that it evaluated."""
    seeds = config.get("seeds")
    if seeds is None:
        with open(folder / "accuracy.csv", encoding="utf-8", newline="") as file:
            seeds = sorted({int(row["seed"]) for row in csv.DictReader(file)})
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"


def _in_order(folder: Path, records: list[Record]) -> list[Record]:
    """As the report has them, not as they ended; of an evaluation, which writes one for each attack, one a network."""
    schemes = read_config(folder / "config.json").get("schemes")
    if schemes:
        return sorted(records, key=lambda record: (schemes.index(record.scheme), record.seed))
    return merged(records, dict.fromkeys(record.network for record in records))


def _provenance(folder: Path, records: Sequence[Record]) -> Iterator[str]:
    config = read_config(folder / "config.json")
    known = {scheme: sorted({r.seed for r in records if r.scheme == scheme}) for scheme in _schemes(records)}
    seeds = "; ".join(f"{scheme} {listed(seeds)}" for scheme, seeds in known.items())
    yield f"{folder}: seeds {seeds}"
    yield f"    {config['command']}"
    yield "    " + ", ".join(f"{key} {value}" for key, value in config["environment"].items() if value is not None)


def _schemes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record.scheme for record in records))


def markdown(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """The rows of a table of Markdown."""
    arms = [_arm(scheme, [r for r in records if r.scheme == scheme]) for scheme in _schemes(records)]
    yield ("", *(arm.name for arm in arms))
    yield ("---", *("---:" for _ in arms))
    attacks = dict.fromkeys(m.attack for r in records for m in r.measurements if m.epsilon and m.attack != WORST)
    radii = sorted({m.epsilon for r in records for m in r.measurements})
    shared = [eps for eps in radii if all(arm.masks(eps) for arm in arms)]
    for eps in shared:
        for attack in [*attacks] if eps and len(attacks) > 1 else ():
            yield (f"{attack} at {radius(eps)}", *(_mean(arm, eps, attack) for arm in arms))
        what = "no attack" if not eps else f"{'all of them' if len(attacks) > 1 else next(iter(attacks))} at {radius(eps)}"
        yield (what, *(_interval(arm, eps) for arm in arms))
        if eps and any(arm.masks(eps, "detached") for arm in arms):
            yield ("detached less exact gradient, points", *(_detached(arm, eps) for arm in arms))
    pairs = {(arm.name, eps): (arm.masks(eps), arms[0].masks(eps)) for eps in shared for arm in arms[1:]}
    gaps = statistics.gaps(pairs)
    for eps in shared if gaps else ():
        where = f"at {radius(eps)}" if eps else "without attack"
        cells = [gaps.get((arm.name, eps)) for arm in arms]
        said = (f"{points(g.estimate.value)} {interval(g.estimate, '+')}: {g.verdict}" if g else "" for g in cells)
        yield (f"difference {where}, points", *said)


def tall(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """The rows of a table of Markdown, a scheme each, the most robust at the largest radius first."""
    arms = [_arm(scheme, [r for r in records if r.scheme == scheme]) for scheme in _schemes(records)]
    every = sorted({m.epsilon for r in records for m in r.measurements})
    first, *radii = [eps for eps in every if all(arm.masks(eps) for arm in arms)]
    if not radii:
        raise InputError("the schemes have no radius in common")
    yield ("scheme", "no attack", *(f"at {radius(eps)}" for eps in radii), "its seeds", f"less {arms[0].name}")
    yield ("---", "---:", *("---:" for _ in radii), "---", "---")
    for arm in sorted(arms, key=lambda arm: -np.mean([*_by_seed(arm, radii[-1])])):
        shares = [percent(float(np.mean([*_by_seed(arm, eps)]))) for eps in (first, *radii)]
        gap = None if arm is arms[0] else statistics.difference(arm.masks(radii[-1]), arms[0].masks(radii[-1]))
        seeds = ", ".join(percent(share) for share in _by_seed(arm, radii[-1]))
        yield (arm.name, *shares, seeds, f"{points(gap.value)} {interval(gap, '+')}" if gap else "")


def _by_seed(arm: Arm, eps: float) -> Iterator[float]:
    return (float(mask.mean()) for _, mask in sorted(arm.masks(eps).items()))


def _arm(scheme: str, records: Sequence[Record]) -> Arm:
    """The worst case that an evaluation has among its measurements is made anew, along each gradient."""
    own = [replace(record, measurements=tuple(m for m in record.measurements if m.attack != WORST)) for record in records]
    return Arm(scheme, scheme, "residual", 1, 1, tuple(sorted(own, key=lambda record: record.seed)))


def _mean(arm: Arm, eps: float, attack: str) -> str:
    ways = (arm.masks(eps, way, attack) for way in ("exact", "detached"))
    return " / ".join(percent(float(np.mean([mask.mean() for mask in masks.values()]))) for masks in ways if masks)


def _interval(arm: Arm, eps: float) -> str:
    found = statistics.accuracy(arm.masks(eps))
    other = arm.masks(eps, "detached")
    beside = f" / {percent(statistics.accuracy(other).value)}" if other else ""
    return f"{percent(found.value)} {interval(found)}{beside}"


def _detached(arm: Arm, eps: float) -> str:
    other = arm.masks(eps, "detached")
    gap = statistics.difference(other, arm.masks(eps)) if other else None
    return f"{points(gap.value)} {interval(gap, '+')}" if gap else ""


if __name__ == "__main__":
    raise SystemExit(main())
