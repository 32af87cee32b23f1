"""The report's sections on stability: scheme by field, and which measure goes with robustness."""
from experiments.harness.report import figures, measures, statistics
from experiments.harness.report.measures import by_field
from experiments.harness.report.page import escape, table
from experiments.harness.report.sentences import attack_name, interval, percent, points


def fields_section(config, records, folder):
    """Scheme by field, with the difference of the schemes on each; empty where the run has one field."""
    rows = by_field(config, records)
    if not rows:
        return ""
    cells = [("field", "scheme", "clean, %", "robust, %", "95 % interval", "difference, points", "95 % interval",
              "verdict", "\u03bc\u2082(hJ)", "max |R(h\u03bb)|", "step norm")]
    for row in rows:
        gap = row["gap"]
        compared = (points(gap.value), interval(gap, "+"), gap.verdict) if gap else ("", "", "reference")
        cells.append((row["field"], figures.label(row["arm"], records).replace(row["arm"], row["scheme"]),
                      percent(row["clean"].value), percent(row["robust"].value), interval(row["robust"]), *compared,
                      *("" if row[metric] is None else f"{row[metric]:.3g}" for metric in measures.SHOWN)))
    eps = statistics.middle(statistics.radii(records)) or 0.0
    return ("<h2>Scheme and field: where does the scheme's stability matter?</h2>"
            f"{table(cells, numbers=(2, 3, 4, 5, 6, 8, 9, 10))}"
            f"<p class=note>Robust: {escape(attack_name(records, eps))}. Differences are paired, to the first scheme on "
            "the same field. \u03bc\u2082(hJ) \u2264 0: two solutions of the flow never part, and an algebraically "
            "stable scheme keeps that at any step; above 0 the flow itself spreads perturbations, and no scheme has to "
            "stop it. Measures are means over blocks, images and nets.</p>")


def measures_section(config, records, folder):
    """Rank correlations of the measures with robust accuracy; empty where the run has too few nets."""
    eps = statistics.middle(statistics.radii(records))
    found = measures.correlations(records, eps) if eps else {}
    if not found:
        return ""
    words = {"higher": "more robust", "lower": "less robust", "cannot tell": "cannot tell"}
    rows = [("measure", "what it is", "rank correlation", "95 % interval", "nets", "a larger value goes with")]
    rows += [(name.replace("_", " "), measures.meaning(name), f"{r.value:+.2f}", f"[{r.low:+.2f}, {r.high:+.2f}]", str(r.n),
              words[r.verdict]) for name, r in sorted(found.items(), key=lambda pair: -abs(pair[1].value))]
    attack = escape(attack_name(records, eps))
    return (f"<h2>Which measure goes with robustness?</h2>{table(rows, numbers=(2, 3, 4))}"
            f"<p class=note>Spearman's correlation of a measure with robust accuracy ({attack}) across the nets of this "
            f"run, {len(found)} measures without correction for their number. Nets that differ in their seed alone are "
            "alike, so the intervals are too narrow; what differs between schemes and fields besides stability "
            "differs along: no correlation here is a cause. Means, percentiles and shares of |R| stem from all eigenvalues of "
            "the stages that are small enough, the extreme ones from Ritz values of all.</p>")
