"""A set of runs on one page: accuracies, differences with the verdict of each run's own family, and where all of it is from."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

import experiments.harness.statistics as statistics
from experiments.harness.report.arms import Arm, Comparison, comparison, standing
from experiments.harness.report.comparison import SMOKE, answer, differences
from experiments.harness.report.drawing import FAINT, PALETTE, SMALL, STYLE
from experiments.harness.report.environment import departures, elsewhere, made_with, unlike
from experiments.harness.report.page import Code, Figure, Folded, Page, Section, Table, Terms, Text
from experiments.harness.report.readings import readings
from experiments.harness.run.config import RunConfig, TrainingSettings
from experiments.harness.run.schema import Record
from experiments.harness.words import count, interval, listed, percent, points
from odenets.errors import InputError

DATA = ("dataset", "train_limit", "test_limit", "splits", "split_seed")
ATTACKED = ("attacks", "epsilons", "threat")
DRAWN = 60  # differences, beyond which a figure is no longer read


@dataclass(frozen=True)
class Collection:
    """Runs by their folders, and which of these an earlier version wrote."""

    runs: Mapping[Path, Comparison]
    older: Sequence[Path] = ()

    def arms(self) -> list[tuple[Comparison, Arm]]:
        """What has nets, by data set and training."""
        pairs = [(found, arm) for found in self.runs.values() for arm in found.arms if arm.records]
        datasets = list(dict.fromkeys(found.config.dataset for found in self.runs.values()))
        return sorted(pairs, key=lambda pair: (datasets.index(pair[0].config.dataset), pair[0].config.settings.training))


def refuse_unlike(configs: Sequence[RunConfig | TrainingSettings], keys: Sequence[str], advice: str = "") -> None:
    """InputError where configurations differ in one of the keys; says in which, and how."""
    first = configs[0]
    for config in configs[1:]:
        different = [key for key in keys if getattr(config, key) != getattr(first, key)]
        if different:
            told = "; ".join(f"{key} {getattr(first, key)!r} and {getattr(config, key)!r}" for key in different)
            raise InputError(f"these runs cannot be compared: {told}{advice if 'dataset' in different else ''}")


def collection(
    runs: Mapping[Path, tuple[RunConfig, list[Record]]], *, across: bool = False, older: Sequence[Path] = ()
) -> Collection:
    """Runs that may stand on one page.

    Args:
        runs: By folder.
        across: Whether data sets may differ; then only runs on the same one have to be alike.
        older: Folders that an earlier version wrote.

    Raises:
        ValueError: They differ in their test images, attacks, threat or radii; names what differs.
    """
    configs = [config for config, _ in runs.values()]
    for dataset in dict.fromkeys(config.dataset for config in configs):
        alike = [c for c in configs if c.dataset == dataset or not across]
        refuse_unlike(alike, DATA + ATTACKED, "; --across sets several data sets one below the other")
    return Collection({folder: comparison(config, records) for folder, (config, records) in runs.items()}, older)


def grid(found: Collection) -> Table:
    """A row for each data set, training and scheme, at the middle radius."""
    last = [folder.name for folder in found.runs]
    names = {id(run): folder.name if last.count(folder.name) == 1 else str(folder) for folder, run in found.runs.items()}
    columns = (
        "data, training",
        "scheme",
        "clean, %",
        "robust, %",
        "95 % interval",
        "difference, points",
        "interval",
        "verdict",
        "seeds",
        "run",
    )
    rows, known = [], {id(run): differences(run) for run in found.runs.values()}
    others = {id(run): {r.arm.name: r.against for r in readings(run)} if run.rerun else {} for run in found.runs.values()}
    for run, arm in found.arms():
        clean, robust = run.measured(arm, 0.0), run.accuracy(arm, run.middle)
        _, gap = known[id(run)].get(arm.name, (None, None))
        compared = (
            (points(gap.estimate.value), interval(gap.estimate, "+"), gap.verdict)
            if gap
            else ("", "", standing(arm is others[id(run)].get(arm.name, run.reference)))
        )
        cells = (percent(robust.value), interval(robust), *compared) if robust else ("",) * 5
        what = f"{run.config.dataset}, {run.config.settings.training}"
        rows.append((what, arm.label, percent(clean.value), *cells, str(len(arm.records)), names[id(run)]))
    note = (
        f"Robust: {listed(dict.fromkeys(run.attack_at(run.middle) for run in found.runs.values()))}. Differences are paired, "
        "to the first scheme of the same run, in a sweep of steps to the same weights as trained or to the fewest steps; "
        "intervals and verdicts are those of the run's own page, and hold together there. \u2020 failed its audit."
    )
    return Table("collected", columns, rows, note, keys=2)


def sentences(found: Collection) -> list[str]:
    """What each run says, and what keeps the runs apart."""
    told = [f"{folder}: {answer(run)[bool(run.config.smoke)]}" for folder, run in found.runs.items()]
    told += unlike([run.config for run in found.runs.values()])
    models = list(dict.fromkeys(run.config.model for run in found.runs.values()))
    if len(models) > 1:
        told.append(f"Networks differ ({' and '.join(models)}): compare across these runs with care.")
    read = [str(folder) for folder in found.runs if folder in found.older]
    return [*told, *([f"Written by an earlier version, and read as today's: {listed(read)}."] if read else [])]


def write_collection(found: Collection, folder: Path) -> None:
    """collected.html in a folder, figure and table beside it."""
    configs = [run.config for run in found.runs.values()]
    drawing = _forest(found)
    caption = (
        "Paired difference at the middle radius, to the first scheme of the run, in a sweep to the same weights as trained "
        "or to the fewest steps; intervals as on the run's own page. Grey: the margin of equivalence, the widest where they "
        "differ. Filled: more or less robust; hollow: no verdict, or equivalent."
    )
    figures = (Section("Figure", (Figure("differences", drawing, caption),)),) if drawing else ()
    Page(
        "Runs side by side",
        f"{count(len(configs), 'run')}: {listed(dict.fromkeys(c.dataset for c in configs))}, "
        f"{listed(dict.fromkeys(c.settings.training for c in configs))} training",
        sentences(found),
        [Section("Accuracy and verdicts", (grid(found),)), *figures, Section("The runs", _sources(found, folder))],
        SMOKE if any(config.smoke for config in configs) else "",
        [
            *departures((str(place), run.config) for place, run in found.runs.items()),
            *elsewhere((str(place), run.config, run.records) for place, run in found.runs.items()),
        ],
    ).write(folder / "collected.html")


def _sources(found: Collection, folder: Path) -> tuple:
    """Of each run its page, its command, what it was made with, and all of its answer."""
    parts: list = []
    for place, run in found.runs.items():
        page = place / "report.html"
        link = Markup('<a href="{}">its page</a>').format(Path(os.path.relpath(page, folder)).as_posix())
        terms = Terms({"seeds": listed(run.config.seeds), **made_with(run.config)})
        parts += [
            Text(Markup("<b>{}</b>: {}").format(place, link if page.exists() else "it has no page")),
            Code(run.config.command),
            Folded("Its answer, seeds and environment", (*map(Text, answer(run)), terms)),
        ]
    return tuple(parts)


@matplotlib.rc_context(STYLE)
def _forest(found: Collection) -> Drawing | None:
    """The differences of all runs at their middle radius, a row each; None where there is none, or too many to read."""
    known = {id(run): differences(run) for run in found.runs.values()}
    compared = [(run, arm, known[id(run)][arm.name][1]) for run, arm in found.arms() if arm.name in known[id(run)]]
    if not compared or len(compared) > DRAWN:
        return None
    drawing = Drawing(figsize=(8, 1 + 0.28 * len(compared)))
    axes, trainings = drawing.subplots(), list(dict.fromkeys(run.config.settings.training for run, _, _ in compared))
    for row, (run, _, gap) in enumerate(compared):
        low, value, high = (100 * x for x in (gap.estimate.low, gap.estimate.value, gap.estimate.high))
        colour = PALETTE[trainings.index(run.config.settings.training) % 7]
        axes.hlines(row, low, high, color=colour)
        axes.plot(value, row, "o", color=colour, mfc="white" if gap.verdict in statistics.UNMOVED else colour)
    margin = 100 * max(run.config.margin for run, _, _ in compared)
    axes.axvspan(-margin, margin, color=FAINT, alpha=0.12, lw=0)
    axes.axvline(0, color=FAINT, lw=1)
    names = [f"{arm.label} ({run.config.dataset}, {run.config.settings.training})" for run, arm, _ in compared]
    axes.set_yticks(np.arange(len(compared)), names, fontsize=SMALL)
    axes.set(xlabel="difference of robust accuracy, points", ylim=(len(compared) - 0.5, -0.5))
    return drawing
