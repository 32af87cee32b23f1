"""What a run found, in words: the summary table, the headline and the caveats, all made from the records."""
import numpy as np

import odenets
from experiments.harness.report import figures, measures, regions, statistics
from experiments.harness.report.words import norm_symbol, radius

MANY = 6  # comparisons beyond which the headline counts verdicts instead of listing them


def arms(config, records):
    """The same run with each scheme, field and number of substeps as a scheme of its own, where a run has several of these."""
    fields = config.get("fields", ["residual"])

    def steps(record):
        return record.get("trained_substeps", record["substeps"]), record["substeps"]

    swept = len({steps(record) for record in records}) > 1
    if not (swept or len(fields) > 1) or any("spec" in record for record in records):
        return config, records

    def name(record):
        trained, run = steps(record)
        suffix = f" (trained with {trained})" if trained != run else ""
        walked = f", {run} step{'s' * (run > 1)}{suffix}" if swept else ""
        return f"{record['scheme']}{' on ' + record['field'] if len(fields) > 1 else ''}{walked}"

    def order(record):
        return fields.index(record.get("field", "residual")), config["schemes"].index(record["scheme"]), *steps(record)

    ordered = sorted(records, key=order)
    named = [{**record, "spec": record["scheme"], "scheme": name(record)} for record in ordered]
    return {**config, "schemes": list(dict.fromkeys(record["scheme"] for record in named))}, named


def summary_table(config, records):
    """Accuracies and paired differences to the first scheme as rows of strings, the first row being the header."""
    config, records = arms(config, records)
    rows = [("attack", "scheme", "accuracy, %", "95 % interval", "difference, points", "95 % interval", "verdict",
             "untrusted, %")]
    for eps in [0.0, *statistics.radii(records)]:
        for scheme in config["schemes"]:
            masks = statistics.masks_of(records, scheme, eps)
            if masks:
                mean, gap = statistics.accuracy(masks), gap_to_first(config, records, scheme, eps)
                compared = (points(gap.value), interval(gap, "+"), gap.verdict) if gap else ("", "", "reference")
                rows.append((attack_name(records, eps), figures.label(scheme, records), percent(mean.value),
                             interval(mean), *compared, percent(_untrusted(records, scheme, eps))))
    return rows


def headline(config, records):
    """The answer in plain sentences, at the middle radius: what differs, what cannot be told, and what to distrust."""
    config, records = arms(config, records)
    first, *others = [scheme for scheme in config["schemes"] if any(record["scheme"] == scheme for record in records)]
    eps = statistics.middle(statistics.radii(records)) or 0.0
    reference = statistics.accuracy(statistics.masks_of(records, first, eps))
    where = f"On {config['dataset']}, {count(config['seeds'], 'seed')}, {attack_name(records, eps)}"
    sentences = ["A smoke run: it exercises the program, and its numbers mean nothing."] if config.get("smoke") else []
    gaps = {scheme: gap for scheme in others if (gap := gap_to_first(config, records, scheme, eps))}
    words = {"higher": "more robust", "lower": "less robust", "cannot tell": "cannot tell"}
    named = {verdict: [s for s, gap in gaps.items() if gap.verdict == verdict] for verdict in words}
    if len(gaps) > MANY:
        named = {verdict: [f"{len(found)} of {len(gaps)} schemes"] if found else [] for verdict, found in named.items()}
    parts = [f"{', '.join(named[verdict])} {'is' if len(named[verdict]) == 1 else 'are'} {word} robust than {first}"
             for verdict, word in (("higher", "more"), ("lower", "less")) if named[verdict]]
    if named["cannot tell"]:
        parts.append(f"{', '.join(named['cannot tell'])} against {first}: cannot tell which is more robust")
    fragile = any(gap.over == "images" and gap.verdict != "cannot tell" for gap in gaps.values())
    sentences.append(f"{where}: {'; '.join(parts)}{'; another seed may turn this round' * fragile}." if gaps else
                     f"{where}: {first} classifies {percent(reference.value)} % rightly, 95 % interval "
                     f"{interval(reference)}. One scheme alone compares with nothing.")
    for scheme, gap in list(gaps.items()) * (len(gaps) <= MANY):
        own = statistics.accuracy(statistics.masks_of(records, scheme, eps))
        sentences.append(f"{scheme} {percent(own.value)} %, {first} {percent(reference.value)} %: difference "
                         f"{points(gap.value)} points, 95 % interval {interval(gap, '+')} over {gap.n} {gap.over}"
                         f"{' of one seed' * (gap.over == 'images')}: {words[gap.verdict]}.")
    sentences += measures.field_sentences(config, records)
    detached = [(scheme, gap) for scheme in config["schemes"] if (gap := statistics.difference(
        statistics.masks_of(records, scheme, eps, "detached"), statistics.masks_of(records, scheme, eps)))]
    masked = [(scheme, gap) for scheme, gap in detached if gap.verdict == "higher"]
    if masked:
        sizes = [gap.value for _, gap in masked]
        listed = (", ".join(f"{s} by {points(gap.value)[1:]} points" for s, gap in masked) if len(masked) <= MANY else
                  f"{len(masked)} schemes by {points(min(sizes))[1:]} to {points(max(sizes))[1:]} points")
        sentences.append("Attacked along the detached gradient, nets would seem more robust than they are (gradient "
                         f"masking): {listed}.")
    missed = [scheme for scheme, gap in detached if gap.verdict == "lower"]
    if missed:
        sentences.append(f"The detached gradient breaks more images of {', '.join(missed)} than the exact one: the "
                         "exact attack is too weak there, and the accuracy shown too high.")
    audits = [r["audit"]["passed"] for r in records if r.get("audit")]
    if all(audits):
        known = f"{len(audits)} of {len(records)} nets were audited, and"
        if len(audits) == len(records):
            known = f"All {len(audits)} nets" if len(audits) > 1 else "The net"
        sentences.append(f"{known} passed the audit." if audits else "No net was audited: gradients may be masked.")
    failed = [scheme for scheme in config["schemes"] if figures.label(scheme, records) != scheme]
    if failed:
        sentences.append(f"Not to be trusted: {', '.join(failed)} failed the audit (marked \u2020), so the robustness "
                         "shown may be an artefact.")
    return sentences


def gap_to_first(config, records, scheme, eps):
    """The paired difference of a scheme to the first, None for the first itself or where no seed is common."""
    first = config["schemes"][0]
    masks = (statistics.masks_of(records, name, eps) for name in (scheme, first))
    return None if scheme == first else statistics.difference(*masks)


def attack_name(records, eps):
    """The attack behind the accuracies at a radius, for tables and sentences."""
    names = sorted({m["attack"] for record in records for m in record["measurements"] if m["epsilon"] == eps})
    strongest = names[0] if len(names) == 1 else f"worst of {len(names)} attacks"
    return f"{strongest} at \u03b5 = {radius(eps)}" if eps else "no attack"


def _untrusted(records, scheme, eps):
    return np.mean([m["untrusted"] / m["total"] for record in records if record["scheme"] == scheme
                    for m in record["measurements"] if m["epsilon"] == eps and m["gradient"] == "exact"])


def caveats(config, records):
    """Sentences on what the figures of this run do not show; each only where it applies."""
    first, n = config["schemes"][0], len(config["seeds"])
    attacks = sorted({m["attack"] for record in records for m in record["measurements"]} - {"clean"})
    eps = statistics.middle(statistics.radii(records)) or 0.0
    one = next(iter(statistics.masks_of(records, records[0]["scheme"], eps).values()))
    image_interval = statistics.wilson(int(one.sum()), len(one))
    comparisons = sum(row[6] not in ("verdict", "reference") for row in summary_table(config, records))
    missing = [f"{s}, seed {seed}" for s in config["schemes"] for seed in config["seeds"]
               if not any((r["scheme"], r["seed"]) == (s, seed) for r in records)]
    overfitted = [f"{r['scheme']}, seed {r['seed']}" for r in records if any(e.get("overfitting") for e in r["history"])]
    clouds = [values for scheme in config["schemes"] for values in regions.cloud_of(records, scheme).values()]
    rightmost = max((values[:, 0].max(initial=-np.inf) for values in clouds), default=-np.inf)
    no_region = [s for s in config["schemes"] if not odenets.get_scheme(figures.spec(records, s)).has_R]
    not_normal = without_spectrum(config, records)
    found = [
        (missing, f"Cases are missing ({'; '.join(missing)}): means may rest on fewer nets, differences use the seeds "
                  "that both schemes have."),
        (True, f"Robust accuracy is an upper bound: only {', '.join(attacks) or 'no attack'} in the "
               f"{norm_symbol(config)} ball was run on every image. A longer attack, another loss, a black-box attack or "
               "another norm can break more."),
        (config["training"] == "standard", "The nets were trained without attacks. Adversarial training can change "
                                           "which scheme is ahead."),
        (overfitted, f"Catastrophic overfitting in training ({'; '.join(overfitted)}): at some epoch PGD broke held-out images "
                     "that FGSM did not; the epoch chosen may come from before."),
        (config["dataset"] == "digits", "Digits are 1,797 grey scans of 8\u00d78 pixels. Nothing here speaks of "
                                        "natural images."),
        (n == 1, "One seed: another draw of weights and batches may reverse a difference, however narrow its interval over "
                 "images."),
        (1 < n < 6, f"{count(config['seeds'], 'seed')}: the interval is {statistics.stdtrit(n - 1, 0.975):.1f} "
                    "standard errors to either side, so that differences of some points can hide in it. \u201cCannot "
                    "tell\u201d is not \u201cequal\u201d."),
        (n > 1, f"Intervals over seeds leave the sampling of test images out: {len(one)} images alone give one net's "
                f"accuracy an interval of {points(image_interval.low - image_interval.value)} to "
                f"{points(image_interval.high - image_interval.value)} points."),
        (comparisons > 1, f"The table makes {comparisons} comparisons, each at 95 %, without correction: about one in "
                          "twenty would be clear by chance alone."),
        (len(config["schemes"]) > 1, "Schemes share weights at the start, batches and hyperparameters, which were "
                                     "tuned for none of them; they do not share their cost."),
        (rightmost > 0, "A-stability speaks of the left half-plane. The rightmost h\u03bb measured is "
                        f"{rightmost:.2g} > 0: there the flow itself grows, and no A-stable scheme has to damp it."),
        (rightmost > -np.inf, "The clouds are Ritz values at a few clean test images. Only the outermost approximate "
                              "eigenvalues; how many lie where means nothing. Eigenvalues do not bound the transient "
                              "growth of non-normal Jacobians; the norm of a step does."),
        (not_normal, f"R(h\u03bb) of {', '.join(not_normal)} is a step's spectrum for normal Jacobians only."),
        (no_region, f"{', '.join(no_region)}: the steps depend on the data, so there is no R(z), no region and no "
                    "place in those figures; attack gradients may be masked."),
        (True, f"A relation between a stability measure and robustness across {len(records)} nets is no cause: "
               "whatever else differs between schemes differs with it."),
        (not all(r.get("audit") for r in records), "Only the nets in the audit table were audited."),
        (figures.label(first, records) != first, f"{first}, with which all others are compared, failed its own audit."),
    ]
    return [sentence for applies, sentence in found if applies]


def without_spectrum(config, records):
    """Schemes for which R(h lambda) is not a step's spectrum unless the Jacobian is normal."""
    specs = {scheme: figures.spec(records, scheme) for scheme in config["schemes"]}
    return [scheme for scheme, s in specs.items() if not odenets.get_scheme(s).analytic]


def count(values, noun):
    """3 seeds, 1 seed."""
    return f"{len(values)} {noun}{'s' * (len(values) != 1)}"


def percent(share):
    """A share in percent, one decimal."""
    return f"{100 * share:.1f}"


def points(difference):
    """A difference in percentage points with its sign; no minus sign on a rounded zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "\u2212") if difference else "0.0"


def interval(estimate, sign=""):
    """An interval in percent or, with sign="+", in points."""
    show = points if sign else percent
    return f"[{show(estimate.low)}, {show(estimate.high)}]"
