"""What the stability measures of a run say: field by field, and against robustness across its nets."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import experiments.harness.statistics as statistics
import stability
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.run.schema import Record
from experiments.harness.statistics import Estimate, Gap
from experiments.harness.statistics.association import FEWEST, rank_association

SHOWN = ("log_norm", "max_abs_R", "step_norm")  # of a field, in the table of scheme and field
EXTRA = {
    "lyapunov": "leading Lyapunov exponent of a stage's steps, mean over stages",
    "lyapunov_end_to_end": "leading Lyapunov exponent of the net, from input to output",
    "lipschitz_bound": "local Lipschitz bound of a stage: the product of its steps' norms",
    "kreiss": "Kreiss constant of a step",
}


def meaning(metric: str) -> str:
    """A measure in words, for tables."""
    known = stability.PREDICTORS.get(metric)
    return known.meaning if known else EXTRA.get(metric, metric)


def mean_of(record: Record, metric: str) -> float | None:
    """Mean of a measure over the blocks (or stages) of a net; None where it was not measured or is not finite."""
    values = record.values(metric)
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def grouping(found: Comparison) -> tuple[str, dict[object, list[Arm]]]:
    """What nets are grouped by where measures are compared across them: (what, in the plural, {group: its arms}).

    Of scheme, field and steps the one with the most values: decided by the design of a run, not by its outcome. The others are
    averaged over, as seeds are; what they change is common to all groups where no case is missing.
    """
    factors = {
        "schemes": lambda arm: arm.scheme,
        "fields": lambda arm: arm.field,
        "numbers of steps": lambda arm: (arm.trained_substeps, arm.substeps),
    }
    groups: dict[str, dict[object, list[Arm]]] = {what: {} for what in factors}
    for arm in found.arms:
        for what, of in factors.items():
            if arm.records:
                groups[what].setdefault(of(arm), []).append(arm)
    what = max(groups, key=lambda name: len(groups[name]))
    return what, groups[what]


def correlations(found: Comparison, epsilon: float) -> dict[str, Estimate]:
    """{metric: its rank correlation with robust accuracy at a radius, across the groups of a run's nets}.

    Only where at least `FEWEST` groups have the measure and neither side is constant: see `rank_association`.
    """
    result: dict[str, Estimate] = {}
    metrics = dict.fromkeys(row.metric for record in found.records for row in record.stability)
    what, groups = grouping(found)
    for metric in metrics:
        nets = []
        for group, arms in groups.items():
            for arm in arms:
                masks = arm.masks(epsilon)
                nets += [
                    (value, masks[record.seed].mean(), group)
                    for record in arm.records
                    if record.seed in masks and (value := mean_of(record, metric)) is not None
                ]
        x, y, names = zip(*nets) if nets else ((), (), ())
        if len(set(names)) >= FEWEST:
            estimate = rank_association(x, y, names, over=what)
            result |= {metric: estimate} if estimate else {}
    return result


@dataclass(frozen=True)
class FieldRow:
    """A scheme on a field, at the middle radius. gap: paired difference of robust accuracy to the first scheme on the same
    field, None for that one; all are one family. shown: {measure of `SHOWN`: its mean, None where it was not measured}."""

    arm: Arm
    clean: Estimate
    robust: Estimate
    gap: Gap | None
    shown: dict[str, float | None]


def by_field(found: Comparison) -> list[FieldRow]:
    """For each field and each scheme on it what a table of scheme and field shows; empty where there is one field."""
    if len(found.config.fields) < 2:
        return []
    rows, epsilon = [], found.middle
    firsts = {arm.field: arm for arm in reversed(found.arms) if arm.records}
    compared = [arm for arm in found.arms if arm.masks(epsilon) and arm is not firsts[arm.field]]
    pairs = {arm.name: (arm.masks(epsilon), firsts[arm.field].masks(epsilon)) for arm in compared}
    gaps = statistics.gaps(pairs, margin=found.config.margin, looks=found.config.looks, train=found.config.resplit)
    for arm in (arm for arm in found.arms if arm.masks(epsilon)):
        values = {metric: [v for record in arm.records if (v := mean_of(record, metric)) is not None] for metric in SHOWN}
        rows.append(
            FieldRow(
                arm,
                found.measured(arm, 0.0),
                found.measured(arm, epsilon),
                gaps.get(arm.name),
                {metric: float(np.mean(v)) if v else None for metric, v in values.items()},
            )
        )
    return rows


def field_sentences(found: Comparison) -> Iterator[str]:
    """Where the scheme matters, in words; nothing where the run has one field."""
    rows = by_field(found)
    for field in dict.fromkeys(row.arm.field for row in rows):
        own = [row for row in rows if row.arm.field == field]
        first = own[0].arm.scheme
        moves = [
            f"{row.arm.scheme} is {row.gap.verdict} than {first} by {100 * abs(row.gap.estimate.value):.1f} points"
            for row in own
            if row.gap and row.gap.verdict in (statistics.MORE, statistics.LESS)
        ]
        others = {said: [row.arm.scheme for row in own if row.gap and row.gap.verdict == said] for said in statistics.UNMOVED}
        norms = [row.shown["log_norm"] for row in own if row.shown["log_norm"] is not None]
        known = f" (mean \u03bc\u2082(hJ) {min(norms):.2g} to {max(norms):.2g})" if norms else ""
        moves += [f"{', '.join(names)} against {first}: {said}" for said, names in others.items() if names]
        if moves:
            yield f"On {field}{known}: {'; '.join(moves)}."
