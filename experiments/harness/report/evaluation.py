"""What evaluate.py shows: its records merged by network, a table and sentences in the terminal, a page."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup
from rich.console import Console

import experiments.harness.statistics as statistics
from experiments.harness.command import conclude
from experiments.harness.report import figures
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.report.audits import audit_section
from experiments.harness.report.environment import departures, made_with
from experiments.harness.report.page import Code, Figure, Page, Section, Table, Terms
from experiments.harness.run.config import EvaluationConfig
from experiments.harness.run.schema import WORST, Record, worst_over
from experiments.harness.words import interval, percent, points, radius

NOTE = Markup(
    "Every image was classified again by a cold solve at tolerance 10\u207b\u2076; <b>untrusted</b> ones, whose "
    "equations did not converge there or led to another root than the one connected to the state, count as wrong. Attacks "
    "follow the exact gradient of the function computed; "
    "<b>detached</b> is what the gradient of the explicit predictor would have let one believe. <b>Worst of all</b>: "
    "right under every attack, along every gradient. Wilson's intervals, over another draw of test images. Robust "
    "accuracy is an upper bound: another attack may break more. \u2020 failed its audit."
)


def key(record: Record) -> tuple[str, str, float, str]:
    """(network, attack, epsilon, gradient) of the one thing that a record measured."""
    if record.audit:
        return record.network, "audit", record.audit.epsilon, "exact"
    (measurement,) = record.measurements
    return record.network, measurement.attack, measurement.epsilon, measurement.gradient


def merged(records: Sequence[Record], names: Iterable[str]) -> list[Record]:
    """One record a network, in the order of `names`, its measurements followed by the worst case at each radius."""
    result = []
    for name in names:
        own = [record for record in records if record.network == name]
        measurements = tuple(measurement for record in own for measurement in record.measurements)
        audit = next((record.audit for record in own if record.audit), None)
        result.append(replace(own[0], audit=audit, measurements=measurements + worst_over(measurements)))
    return result


def table(records: Sequence[Record]) -> Table:
    """Exact and detached gradient side by side, a network that fails marked."""
    rows = []
    for record in records:
        by = {(m.epsilon, m.attack, m.gradient): m for m in record.measurements}
        shown = sorted((at for at in by if at[2] != "detached"), key=lambda at: (at[0], at[1] == WORST))
        for epsilon, attack, gradient in shown:
            own, detached = by[epsilon, attack, gradient], by.get((epsilon, attack, "detached"))
            estimate = statistics.wilson(own.correct, own.total)
            rows.append(
                (
                    marked(record),
                    {"clean": "no attack", WORST: "worst of all"}.get(attack, attack),
                    radius(epsilon) if epsilon else "",
                    percent(estimate.value),
                    interval(estimate),
                    percent(detached.correct / own.total) if detached else "",
                    points((detached.correct - own.correct) / own.total) if detached else "",
                    percent(own.untrusted / own.total),
                )
            )
    columns = (
        "network",
        "attack",
        "\u03b5",
        "right, %",
        "95 % interval",
        "detached, %",
        "detached \u2212 exact, points",
        "untrusted, %",
    )
    return Table("accuracy", columns, rows, NOTE, keys=2)


def marked(record: Record) -> str:
    """The name of a network, with a dagger where it failed its audit."""
    return f"{record.network} \u2020" if record.verdict == "failed" else record.network


def sentences(records: Sequence[Record]) -> list[str]:
    """For each network what it withstands at the middle radius, and whether that can be believed."""
    found = []
    for record in records:
        measured = {
            epsilon: [m.mask for m in record.measurements if m.epsilon == epsilon]
            for epsilon in sorted({m.epsilon for m in record.measurements})
        }
        clean, radii = np.logical_and.reduce(measured[0.0]), [e for e in measured if e]
        text = f"{marked(record)}: {percent(clean.mean())} % of {len(clean)} images right without an attack"
        if radii:
            eps = statistics.middle(radii)
            mask = np.logical_and.reduce(measured[eps])
            text += (
                f", {percent(mask.mean())} % under every attack at \u03b5 = {radius(eps)} (95 % interval "
                f"{interval(statistics.wilson(int(mask.sum()), len(mask)))})"
            )
        hanging = max((m.path_dependent for m in record.measurements), default=0)
        if hanging:
            text += (
                f"; up to {hanging} of them count as broken because their answer hangs on the path of the solver, which "
                "converges to one of several roots"
            )
        failed = [check.name for check in (record.audit.checks if record.audit else ()) if check.passed is False]
        told = {
            "passed": "It passed its audit.",
            "not audited": "It was not audited: gradients may hide more.",
            "failed": f"It failed its audit ({', '.join(failed)}): its robustness may be an artefact.",
        }
        found.append(f"{text}. {told[record.verdict]}")
    return found


def show(config: EvaluationConfig, records: Sequence[Record], console: Console, path: Path) -> None:
    """The table, the sentences, and where the report lies, in the terminal; wide enough for a pipe."""
    wide = table(records).show(console, f"Accuracy, {config.threat} ball, intervals over images")
    conclude(wide, sentences(records), "Report", path)


def write(config: EvaluationConfig, records: Sequence[Record], path: Path) -> None:
    """The page, its figure and tables beside it."""
    shown = {
        "Data": f"{config.dataset}, {config.data['test']} test images",
        "Attacks": ", ".join(config.attacks),
        "Radii": ", ".join(map(radius, config.epsilons)),
        "Audit": config.audit,
        **{name: f"SHA-256 of the weights {digest[:16]}" for name, digest in config.weights.items()},
        **made_with(config),
    }
    Page(
        "How robust is this network?",
        f"{config.network} on {config.dataset}, {config.threat} ball",
        sentences(records),
        [
            Section("Accuracy", (table(records),)),
            _figure(config, records),
            audit_section((marked(record), record) for record in records),
            Section("Protocol", (Terms(shown), Code(config.command))),
        ],
        notices=departures([("this evaluation", config)]),
    ).write(path)


def _figure(config: EvaluationConfig, records: Sequence[Record]) -> Section | None:
    if not config.epsilons:
        return None
    # To the figure a network is what a scheme is in a comparison.
    arms = tuple(Arm(r.network, r.scheme, r.field, r.trained_substeps, r.substeps, (r,)) for r in records)
    caption = (
        "Accuracy against the radius of the attack, under the worst of the attacks. Bands are 95 % intervals over "
        "images; dashed along the detached gradient."
    )
    return Section("Figure", (Figure("accuracy", figures.accuracy_figure(Comparison(config.as_run(), arms)), caption),))
