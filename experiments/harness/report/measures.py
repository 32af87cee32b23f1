"""What the stability measures of a run say: field by field, and against robustness across its nets; words and sections."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial

import numpy as np

import experiments.harness.statistics as statistics
import stability
from experiments.harness.report.arms import Arm, Comparison, mean_of, net_values, standing
from experiments.harness.report.page import Section, Table, Text
from experiments.harness.statistics import Estimate, Gap
from experiments.harness.statistics.association import FEWEST, rank_association
from experiments.harness.words import interval, percent, points

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
        nets = [
            (net.value, net.robust, group)
            for group, arms in groups.items()
            for arm in arms
            for net in net_values(arm, metric, epsilon)
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


def fields_section(found: Comparison) -> Section | None:
    """Scheme by field, with the difference of the schemes on each; nothing where the run has one field."""
    rows = by_field(found)
    if not rows:
        return None
    columns = (
        "field",
        "scheme",
        "clean, %",
        "robust, %",
        "95 % interval",
        "difference, points",
        "95 % interval",
        "verdict",
        "\u03bc\u2082(hJ)",
        "max |R(h\u03bb)|",
        "step norm",
    )
    firsts = {row.arm.field: row.arm for row in reversed(rows)}
    cells = [
        (
            row.arm.field,
            row.arm.label.replace(row.arm.name, row.arm.scheme),
            percent(row.clean.value),
            percent(row.robust.value),
            interval(row.robust),
            *(_gap_cells(row.gap) if row.gap else ("", "", standing(row.arm is firsts[row.arm.field]))),
            *("" if row.shown[metric] is None else f"{row.shown[metric]:.3g}" for metric in SHOWN),
        )
        for row in rows
    ]
    note = (
        f"Robust: {found.attack_at(found.middle)}. Differences are paired, to the first scheme on the "
        "same field, and their intervals hold together. "
        "\u03bc\u2082(hJ) \u2264 0: two solutions of the flow never part, and an algebraically stable scheme keeps that at "
        "any step; above 0 the flow itself spreads perturbations, and no scheme has to stop it. Measures are means over "
        "blocks, images and nets."
    )
    title = "Scheme and field: where does the scheme's stability matter?"
    return Section(title, (Table("fields", columns, cells, note, keys=2),))


def _gap_cells(gap: Gap) -> tuple[str, ...]:
    return points(gap.estimate.value), interval(gap.estimate, "+"), gap.verdict


def measures_section(found: Comparison) -> Section | None:
    """Rank correlations of the measures with robust accuracy; where a run has too few groups for any, why there are none."""
    eps, title = found.middle, "Which measure goes with robustness?"
    if not eps or not any(record.stability for record in found.records):
        return None
    (what, groups), related = grouping(found), correlations(found, eps)
    if len(groups) < FEWEST:
        counted = f"{len(groups)} {what if len(groups) > 1 else what.removesuffix('s')}"
        told = (
            "This run cannot tell. Nets that differ in their seed alone are alike, so that its "
            f"{len(found.nets)} nets are {counted}, and {_orders(len(groups))} From {FEWEST} on the question can be asked."
        )
        return Section(title, (Text(told),))
    if not related:
        return None
    words = {"higher": "more robust", "lower": "less robust", "cannot tell": "cannot tell"}
    columns = ("measure", "what it is", "rank correlation", "95 % interval", what, "a larger value goes with")
    rows = [
        (
            name.replace("_", " "),
            meaning(name),
            f"{r.value:+.2f}",
            f"[{r.low:+.2f}, {r.high:+.2f}]",
            str(r.n),
            words[r.verdict],
        )
        for name, r in sorted(related.items(), key=lambda pair: -abs(pair[1].value))
    ]
    note = (
        f"Spearman's correlation of a measure with robust accuracy ({found.attack_at(eps)}), {len(related)} measures "
        f"without correction for their number. Nets that differ in their seed alone are alike: the {what} are the sample, "
        "each with the mean over its nets, and a claim needs the exact permutation test of these means as well as an "
        "interval without zero. Variants of one scheme are alike too and still count as several. What differs between "
        "schemes and fields besides stability differs along: no correlation here is a cause. Means, percentiles and shares "
        "of |R| stem from all eigenvalues of the stages that are small enough, the extreme ones from Ritz values of all."
    )
    return Section(title, (Table("measures", columns, rows, note),))


def _orders(count: int) -> str:
    """Why so few groups allow no claim."""
    if count == 1:
        return "one has nothing to be compared with."
    return (
        f"{count} stand in one of {factorial(count)} orders: no test of a rank correlation can reach a p-value below "
        f"{2 / factorial(count):.2g}."
        if count > 2
        else "two always stand in the same or in the opposite order."
    )
