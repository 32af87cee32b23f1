"""report.html: one file that opens anywhere. Its sentences are made from the numbers and claim no more than the intervals do."""
import html
import string
from pathlib import Path

import numpy as np

import odenets
from experiments.harness import figures, regions, statistics

MANY = 6  # comparisons beyond which the headline counts verdicts instead of listing them


def write_report(config, records, path):
    """Write the report of a run to `path`, and the figures as PNG into figures/ beside it.

    Args:
        config: The run's configuration, as in config.json.
        records: One dict a case, as in records.jsonl.
        path: The HTML file.
    """
    config, records = arms(config, records)
    path = Path(path)
    sections = [_results, _plots, _detached, _solver, _audit, _caveats, _protocol]
    page = string.Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        subtitle=_escape(_subtitle(config, records)), banner=_banner(config),
        answer="".join(f"<p>{_escape(sentence)}</p>" for sentence in headline(config, records)),
        body="\n".join(section(config, records, path.parent / "figures") for section in sections))
    path.write_text(page, encoding="utf-8")


def arms(config, records):
    """The same run with each pair of scheme and substeps as a scheme of its own, where a run has several substeps."""
    def steps(record):
        return record.get("trained_substeps", record["substeps"]), record["substeps"]

    if len({steps(record) for record in records}) < 2 or any("spec" in record for record in records):
        return config, records

    def name(record):
        trained, run = steps(record)
        return f"{record['scheme']}, {run} step{'s' * (run > 1)}" + (f" (trained with {trained})" if trained != run else "")

    named = [{**record, "spec": record["scheme"], "scheme": name(record)} for record in records]
    return {**config, "schemes": list(dict.fromkeys(record["scheme"] for record in named))}, named


def summary_table(config, records):
    """Accuracies and paired differences to the first scheme as rows of strings, the first row being the header."""
    config, records = arms(config, records)
    rows = [("attack", "scheme", "accuracy, %", "95 % interval", "difference, points", "95 % interval", "verdict", "untrusted, %")]
    for eps in [0.0, *statistics.radii(records)]:
        for scheme in config["schemes"]:
            masks = statistics.masks_of(records, scheme, eps)
            if masks:
                mean, gap = statistics.accuracy(masks), _gap(config, records, scheme, eps)
                rows.append((_attack(records, eps), figures.label(scheme, records), _percent(mean.value), _interval(mean),
                             *((_points(gap.value), _interval(gap, "+"), gap.verdict) if gap else ("", "", "reference")),
                             _percent(_untrusted(records, scheme, eps))))
    return rows


def headline(config, records):
    """The answer in plain sentences, at the middle radius: what differs, what cannot be told, and what to distrust."""
    config, records = arms(config, records)
    first, *others = [scheme for scheme in config["schemes"] if any(record["scheme"] == scheme for record in records)]
    eps = statistics.middle(statistics.radii(records)) or 0.0
    reference = statistics.accuracy(statistics.masks_of(records, first, eps))
    where = f"On {config['dataset']}, {_count(config['seeds'], 'seed')}, {_attack(records, eps)}"
    sentences = ["A smoke run: it exercises the program, and its numbers mean nothing."] if config.get("smoke") else []
    gaps = {scheme: gap for scheme in others if (gap := _gap(config, records, scheme, eps))}
    verdicts = [gap.verdict for gap in gaps.values()]
    if not gaps:
        sentences.append(f"{where}: {first} classifies {_percent(reference.value)} % rightly, 95 % interval {_interval(reference)}. "
                         "One scheme alone compares with nothing.")
    elif set(verdicts) == {"cannot tell"}:
        sentences.append(f"{where}: cannot tell. No scheme is clearly more or less robust than {first}.")
    else:
        sentences.append(f"{where}: compared with {first}, {verdicts.count('higher')} of {len(gaps)} more robust, "
                         f"{verdicts.count('lower')} less robust, for {verdicts.count('cannot tell')} this run cannot tell.")
    words = {"higher": "more robust", "lower": "less robust", "cannot tell": "cannot tell"}
    for scheme, gap in list(gaps.items()) * (len(gaps) <= MANY):
        own = statistics.accuracy(statistics.masks_of(records, scheme, eps))
        sentences.append(f"{scheme} {_percent(own.value)} %, {first} {_percent(reference.value)} %: difference {_points(gap.value)} points, "
                         f"95 % interval {_interval(gap, '+')} over {gap.n} {gap.over}: {words[gap.verdict]}.")
    failed = [scheme for scheme in config["schemes"] if figures.label(scheme, records) != scheme]
    if failed:
        sentences.append(f"Not to be trusted: {', '.join(failed)} failed the audit (marked \u2020), so the robustness shown may be an artefact.")
    return sentences


def _gap(config, records, scheme, eps):
    """The paired difference of a scheme to the first, None for the first itself or where no seed is common."""
    first = config["schemes"][0]
    masks = (statistics.masks_of(records, name, eps) for name in (scheme, first))
    return None if scheme == first else statistics.difference(*masks)


def _attack(records, eps):
    names = sorted({m["attack"] for record in records for m in record["measurements"] if m["epsilon"] == eps})
    return "no attack" if not eps else f"{names[0] if len(names) == 1 else 'worst of ' + ', '.join(names)} at \u03b5 = {eps:.3g}"


def _untrusted(records, scheme, eps):
    return np.mean([m["untrusted"] / m["total"] for record in records if record["scheme"] == scheme
                    for m in record["measurements"] if m["epsilon"] == eps and m["gradient"] == "exact"])


def _results(config, records, folder):
    several = len(config["seeds"]) > 1
    meaning = (
        f"Intervals are Student's t over {_count(config['seeds'], 'seed')} ({len(config['seeds']) - 1} degrees of freedom), accuracies cut to "
        "[0, 100]. Differences are paired: same initial weights, same batches, same images. They cover what another seed would change, "
        "not another set of test images." if several else
        "One seed: accuracies carry Wilson intervals, differences an interval from the images on which the two nets disagree (Agresti and Min). "
        "They cover another draw of test images and say nothing of another seed.")
    return (f"<h2>Accuracy</h2>{_table(summary_table(config, records), numbers=(2, 3, 4, 5, 7))}<p class=note>{meaning} <b>Cannot tell</b> means "
            "that the interval of the difference covers zero. <b>Untrusted</b>: images counted as broken because a cold re-solve at "
            f"tolerance 10<sup>\u22126</sup> did not converge. All comparisons are with {_escape(config['schemes'][0])}.</p>")


def _plots(config, records, folder):
    swept = any("spec" in record for record in records)
    drawn = [("sweep", figures.sweep_figure, CAPTIONS["sweep"])] if swept else [("accuracy", figures.accuracy_figure, CAPTIONS["accuracy"])]
    not_normal = [s for s in config["schemes"] if regions.has_region(_spec(records, s)) and not regions.analytic(_spec(records, s))]
    drawn.append(("regions", regions.clouds_figure, CAPTIONS["regions"] + (
        f" For {', '.join(not_normal)}, R is not analytic: where the Jacobian is not normal, R(h\u03bb) is not the spectrum of the step, "
        "and the dots are a guide only." if not_normal else "")))
    if not swept:
        drawn += [("measure", figures.measure_figure, CAPTIONS["measure"]), ("training", figures.training_figure, CAPTIONS["training"])]
    parts = []
    for name, draw, caption in drawn:
        figure = draw(config, records)
        if figure:
            parts.append(f'<figure><img src="{figures.save(figure, folder, name)}" alt="{_escape(caption.split(".")[0])}">'
                         f"<figcaption><b>Figure {len(parts) + 1}.</b> {_escape(caption)}</figcaption></figure>")
    return "<h2>Figures</h2>" + "\n".join(parts)


def _detached(config, records, folder):
    rows = [("attack", "scheme", "exact, %", "detached, %", "detached \u2212 exact, points", "95 % interval", "verdict")]
    for eps in statistics.radii(records):
        for scheme in config["schemes"]:
            exact, detached = (statistics.masks_of(records, scheme, eps, gradient) for gradient in ("exact", "detached"))
            gap = statistics.difference(detached, exact)
            if gap:
                verdict = {"higher": "masks", "lower": "stronger attack", "cannot tell": "cannot tell"}[gap.verdict]
                values = (_percent(statistics.accuracy(masks).value) for masks in (exact, detached))
                rows.append((_attack(records, eps), figures.label(scheme, records), *values, _points(gap.value), _interval(gap, "+"), verdict))
    if len(rows) == 1:
        return ""
    return ("<h2>Exact against detached gradient</h2><p>The detached gradient keeps a scheme's value but differentiates its explicit predictor "
            "x + h f(x) instead. An attack that follows it follows a wrong slope: where accuracy comes out higher, the difference is "
            f"<b>gradient masking</b>, not robustness. Only the exact column counts.</p>{_table(rows, numbers=(2, 3, 4, 5))}")


def _solver(config, records, folder):
    rows = [("scheme", "tolerance", "trained at", "unconverged, %", "in training, %", "iterations, mean", "max", "evaluations, mean",
             "untrusted, max %", "training, s", "attacks, s")]
    for scheme in config["schemes"]:
        own = [record for record in records if record["scheme"] == scheme]
        spec = odenets.get_scheme(_spec(records, scheme))
        trained = sorted({str(odenets.get_scheme(r["trained_as"]).parameters.get("tol", ("",))[0]) for r in own})
        worst = max((m["untrusted"] / m["total"] for r in own for m in r["measurements"]), default=np.nan)

        def mean(group, key, scale=1, combine=np.mean, own=own):
            values = [scale * r[group][key] for r in own if r.get(group) and r[group].get(key) is not None]
            return f"{combine(values):.3g}" if values else ""
        rows.append((figures.label(scheme, records), str(spec.parameters.get("tol", ("",))[0]), ", ".join(trained),
                     mean("solver", "unconverged_share", 100), mean("solver", "training_unconverged_share", 100),
                     mean("solver", "iterations_mean"), mean("solver", "iterations_max", combine=np.max), mean("solver", "evaluations_mean"),
                     _percent(worst), mean("seconds", "training"), mean("seconds", "attacks")))
    return ("<h2>Solver and cost</h2>" + _table(rows, numbers=range(1, 11)) + "<p class=note>Means over the nets of a scheme. A tolerance bounds the "
            "residual of each sample relative to \u2016h f(x)\u2016; empty where nothing is solved. Unconverged: test images with an equation "
            "unsolved at that tolerance. Seconds are of one net on this machine: schemes are compared at equal weights, not at equal cost.</p>")


def _audit(config, records, folder):
    words = {True: "passes", False: "fails", None: "not applicable"}
    rows = [("scheme", "seed", "check", "verdict", "reason", "figures", "thresholds")]
    rows += [(figures.label(r["scheme"], records), str(r["seed"]), check["name"].replace("_", " "), words[check["passed"]], check["reason"],
              *(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in check[key].items())
                for key in ("figures", "thresholds"))) for r in records if r.get("audit") for check in r["audit"]["checks"]]
    if len(rows) == 1:
        return "<h2>Audit</h2><p>No net of this run was audited: whether gradients are masked is open.</p>"
    verdicts = "; ".join(f"{r['scheme']}, seed {r['seed']}: {'passes' if r['audit']['passed'] else 'fails'}" for r in records if r.get("audit"))
    return ("<h2>Audit: is the robustness real?</h2><p>An audit tries to expose gradients that hide adversarial images instead of removing them. "
            f"{_escape(verdicts)}. A scheme with a net that fails is marked \u2020 wherever it appears.</p>{_table(rows, numbers=())}")
