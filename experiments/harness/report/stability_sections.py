"""The report's sections on stability: scheme by field, and which measure goes with robustness."""

from math import factorial
from pathlib import Path

from experiments.harness.report import measures
from experiments.harness.report.arms import Comparison
from experiments.harness.report.measures import by_field
from experiments.harness.report.page import Section, Table, Text
from experiments.harness.report.sentences import interval, percent, points
from experiments.harness.statistics.association import FEWEST


def fields_section(found: Comparison, folder: Path) -> Section | None:
    """Scheme by field, with the difference of the schemes on each; nothing where the run has one field."""
    rows = by_field(found)
    if not rows:
        return None
    cells: list[tuple[str, ...]] = [
        (
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
    ]
    for row in rows:
        gap, arm = row.gap, row.arm
        compared = (points(gap.estimate.value), interval(gap.estimate, "+"), gap.verdict) if gap else ("", "", "reference")
        cells.append(
            (
                arm.field,
                arm.label.replace(arm.name, arm.scheme),
                percent(row.clean.value),
                percent(row.robust.value),
                interval(row.robust),
                *compared,
                *("" if row.shown[metric] is None else f"{row.shown[metric]:.3g}" for metric in measures.SHOWN),
            )
        )
    note = (
        f"Robust: {found.attack_at(found.middle)}. Differences are paired, to the first scheme on the "
        "same field, and their intervals hold together. "
        "\u03bc\u2082(hJ) \u2264 0: two solutions of the flow never part, and an algebraically stable scheme keeps that at "
        "any step; above 0 the flow itself spreads perturbations, and no scheme has to stop it. Measures are means over "
        "blocks, images and nets."
    )
    return Section(
        "Scheme and field: where does the scheme's stability matter?",
        (Table(cells, (2, 3, 4, 5, 6, 8, 9, 10)), Text(note, note=True)),
    )


def measures_section(found: Comparison, folder: Path) -> Section | None:
    """Rank correlations of the measures with robust accuracy; where a run has too few groups for any, why there are none."""
    eps, title = found.middle, "Which measure goes with robustness?"
    if not eps or not any(record.stability for record in found.records):
        return None
    (what, groups), correlations = measures.grouping(found), measures.correlations(found, eps)
    if len(groups) < FEWEST:
        counted = f"{len(groups)} {what if len(groups) > 1 else what.removesuffix('s')}"
        told = (
            "This run cannot tell. Nets that differ in their seed alone are alike, so that its "
            f"{len(found.records)} nets are {counted}, and {_orders(len(groups))} From {FEWEST} on the question can be asked."
        )
        return Section(title, (Text(told),))
    if not correlations:
        return None
    words = {"higher": "more robust", "lower": "less robust", "cannot tell": "cannot tell"}
    rows = [("measure", "what it is", "rank correlation", "95 % interval", what, "a larger value goes with")]
    rows += [
        (
            name.replace("_", " "),
            measures.meaning(name),
            f"{r.value:+.2f}",
            f"[{r.low:+.2f}, {r.high:+.2f}]",
            str(r.n),
            words[r.verdict],
        )
        for name, r in sorted(correlations.items(), key=lambda pair: -abs(pair[1].value))
    ]
    note = (
        f"Spearman's correlation of a measure with robust accuracy ({found.attack_at(eps)}), {len(correlations)} measures "
        f"without correction for their number. Nets that differ in their seed alone are alike: the {what} are the sample, "
        "each with the mean over its nets, and a claim needs the exact permutation test of these means as well as an "
        "interval without zero. Variants of one scheme are alike too and still count as several. What differs between "
        "schemes and fields besides stability differs along: no correlation here is a cause. Means, percentiles and shares "
        "of |R| stem from all eigenvalues of the stages that are small enough, the extreme ones from Ritz values of all."
    )
    return Section(title, (Table(rows, (2, 3, 4)), Text(note, note=True)))


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
