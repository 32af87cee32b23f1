"""What the stability measures of a run say: field by field, and against robustness across its nets."""
import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

import stability
from experiments.harness.report import statistics
from experiments.harness.report.statistics import LEVEL, Estimate

FEWEST = 5  # nets below which a rank correlation is not worth an interval
SHOWN = ("log_norm", "max_abs_R", "step_norm")  # of a field, in the table of scheme and field
EXTRA = {"lyapunov": "leading Lyapunov exponent of a stage's steps, mean over stages",
         "lyapunov_end_to_end": "leading Lyapunov exponent of the net, from input to output",
         "lipschitz_bound": "local Lipschitz bound of a stage: the product of its steps' norms",
         "kreiss": "Kreiss constant of a step"}


def meaning(metric):
    """A measure in words, for tables."""
    known = stability.PREDICTORS.get(metric)
    return known.meaning if known else EXTRA.get(metric, metric)


def mean_of(record, metric):
    """Mean of a measure over the blocks (or stages) of a net; None where it was not measured or is not finite."""
    values = [row["value"] for row in record["stability"] if row["metric"] == metric]
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def rank_correlation(x, y, level=LEVEL):
    """Spearman's correlation with an interval by Fisher's transform, whose variance takes ranks into account.

    Args:
        x, y: As many numbers each, at least `FEWEST`; neither constant.

    Source: Bonett & Wright (2000), Psychometrika 65, 23-28: variance (1 + r^2/2)/(n - 3).
    """
    n, r = len(x), float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    half = ndtri((1 + level) / 2) * np.sqrt((1 + r * r / 2) / (n - 3))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return Estimate(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n, "nets", level)


def correlations(records, epsilon):
    """{metric: Estimate} of its rank correlation with robust accuracy at a radius, across the nets of a run.

    Only where at least `FEWEST` nets have the measure and neither side is constant.
    """
    found, metrics = {}, dict.fromkeys(row["metric"] for record in records for row in record["stability"])
    for metric in metrics:
        pairs = []
        for record in records:
            masks, value = statistics.masks_of([record], record["scheme"], epsilon), mean_of(record, metric)
            if masks and value is not None:
                pairs.append((value, masks[record["seed"]].mean()))
        x, y = np.array(pairs).reshape(-1, 2).T
        if len(x) >= FEWEST and np.ptp(x) > 0 and np.ptp(y) > 0:
            found[metric] = rank_correlation(x, y)
    return found


def by_field(config, records):
    """For each field and each scheme on it: what a table of scheme and field shows, at the middle radius.

    Args:
        config, records: With the arms of `findings.arms`, each of one scheme and one field.

    Returns:
        A list of dicts: field, arm, scheme, clean and robust (`Estimate`), gap (paired difference of robust accuracy to the
        first scheme on the same field; None for that one), and a mean for each of `SHOWN`. Empty where there is one field.
    """
    if len(config.get("fields", ())) < 2:
        return []
    found, epsilon = [], statistics.middle(statistics.radii(records)) or 0.0
    for arm in config["schemes"]:
        own = [record for record in records if record["scheme"] == arm]
        field, scheme = own[0].get("field", "residual"), own[0].get("spec", arm)
        first = next(a for a in config["schemes"] if any(
            r["scheme"] == a and r.get("field", "residual") == field for r in records))
        masks, reference = (statistics.masks_of(records, name, epsilon) for name in (arm, first))
        if masks:
            values = {metric: [v for record in own if (v := mean_of(record, metric)) is not None] for metric in SHOWN}
            found.append({"field": field, "arm": arm, "scheme": scheme,
                          "clean": statistics.accuracy(statistics.masks_of(records, arm, 0.0)),
                          "robust": statistics.accuracy(masks),
                          "gap": None if arm == first else statistics.difference(masks, reference),
                          **{metric: float(np.mean(v)) if v else None for metric, v in values.items()}})
    return found


def field_sentences(config, records):
    """Where the scheme matters, in words; nothing where the run has one field."""
    rows = by_field(config, records)
    words = {"higher": "more", "lower": "less"}
    for field in dict.fromkeys(row["field"] for row in rows):
        own = [row for row in rows if row["field"] == field]
        moves = [f"{row['scheme']} is {words[row['gap'].verdict]} robust than {own[0]['scheme']} by "
                 f"{100 * abs(row['gap'].value):.1f} points" for row in own if row["gap"] and row["gap"].verdict in words]
        unclear = [row["scheme"] for row in own if row["gap"] and row["gap"].verdict == "cannot tell"]
        norms = [row["log_norm"] for row in own if row["log_norm"] is not None]
        known = f" (mean \u03bc\u2082(hJ) {min(norms):.2g} to {max(norms):.2g})" if norms else ""
        if unclear:
            moves.append(f"{', '.join(unclear)} against {own[0]['scheme']}: cannot tell")
        if moves:
            yield f"On {field}{known}: {'; '.join(moves)}."
