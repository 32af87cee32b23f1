"""report.html: one file that opens anywhere, whose sentences are made from the numbers and claim no more than these."""
from pathlib import Path

import numpy as np

import odenets
from experiments.harness.report import figures, regions, statistics
from experiments.harness.report import sentences as findings
from experiments.harness.report.page import VERDICTS, audit_rows, definitions, write_page
from experiments.harness.report.page import escape as _escape
from experiments.harness.report.page import figure as figure_of
from experiments.harness.report.page import table as _table
from experiments.harness.report.sentences import arms, attack_name, count, headline, interval, percent, points, summary_table
from experiments.harness.report.stability_sections import fields_section, measures_section
from experiments.harness.report.words import norm_symbol, radius

CAPTIONS = {
    "accuracy": "Accuracy falls as the attack may move pixels further. Left: mean over seeds, the band its 95 % "
                "interval; dashed where the attack follows the detached gradient, which shows what masking would hide. "
                "Right: the difference to the first scheme, paired; a filled mark where the interval excludes zero, a "
                "hollow one where this run cannot tell.",
    "sweep": "Accuracy against the number of solver steps for each block. Solid: trained with that many steps. Dashed "
             "and hollow: trained with the fewest, then run with more, same weights. Bars are 95 % intervals.",
    "regions": "Each scheme's growth |R(z)| in one step, and on top Ritz values of hJ in its trained nets (h the step "
               "size, J the blocks' Jacobians). The outermost dots approximate eigenvalues h\u03bb; the density of the "
               "dots means nothing. Blue damps, sand amplifies, the bold line is |R| = 1. A-stability promises blue on "
               "the whole left half-plane; the right one is veiled, since the promise does not reach it. Boxes give "
               "the largest Re z and |R(z)| over the dots; beside a pole of R the latter may be that of an inner dot, "
               "which need be no eigenvalue.",
    "measure": "One stability measure against robust accuracy: each dot is a trained net, its number the seed. If "
               "stability bought robustness, dots would fall from left to right, within a colour as well as between "
               "colours. Axes do not start at zero.",
    "training": "Training, one line a net: mean loss of an epoch, and accuracy on held-out training images, dashed under "
                "a short PGD where training is adversarial. The dot is the epoch whose weights count. Lines on top of each "
                "other mean that the schemes learn alike.",
}


def write_report(config, records, path):
    """Write the report of a run to `path`, and the figures as PNG into figures/ beside it.

    Args:
        config: The run's configuration, as in config.json.
        records: One dict a case, as in records.jsonl.
        path: The HTML file.
    """
    config, records = arms(config, records)
    path = Path(path)
    sections = [_results, _by_attack, fields_section, _plots, measures_section, _detached, _solver, _audit, _caveats, _protocol]
    write_page(path, "Is a more stable scheme a more robust network?", _subtitle(config, records), headline(config, records),
               [section(config, records, path.parent / "figures") for section in sections], _banner(config))


def _results(config, records, folder):
    several = len(config["seeds"]) > 1
    meaning = (
        f"Intervals are Student's t over {count(config['seeds'], 'seed')} ({len(config['seeds']) - 1} degrees of "
        "freedom), accuracies cut to [0, 100]. Differences are paired: same initial weights, same batches, same "
        "images. They cover what another seed would change, not another set of test images; where all seeds agree the "
        "interval has no width, which is no certainty." if several else
        "One seed: accuracies carry Wilson intervals, differences an interval from the images on which the two nets "
        "disagree (Agresti and Min). They cover another draw of test images and say nothing of another seed.")
    return (f"<h2>Accuracy</h2>{_table(summary_table(config, records), numbers=(2, 3, 4, 5, 7))}"
            f"<p class=note>{meaning} <b>Cannot tell</b> means that the interval of the difference covers zero. "
            "<b>Untrusted</b>: images counted as broken because a cold re-solve at tolerance 10<sup>\u22126</sup> did "
            f"not converge. All comparisons are with {_escape(config['schemes'][0])}.</p>")


def _by_attack(config, records, folder):
    """Each attack by itself; nothing where there is one."""
    attacks = list(dict.fromkeys(m["attack"] for record in records for m in record["measurements"] if m["epsilon"]))
    if len(attacks) < 2:
        return ""
    rows = [("\u03b5", "scheme", *(f"{name}, %" for name in attacks), "all of them, %")]
    for eps in statistics.radii(records):
        for scheme in config["schemes"]:
            cells = []
            for name in [*attacks, None]:
                exact, detached = (statistics.masks_of(records, scheme, eps, way, name) for way in ("exact", "detached"))
                cells.append(" / ".join(percent(statistics.accuracy(masks).value) for masks in (exact, detached) if masks))
            if any(cells):
                rows.append((radius(eps), figures.label(scheme, records), *cells))
    return (f"<h2>Attack by attack</h2>{_table(rows, numbers=range(2, len(rows[0])))}<p class=note>Mean accuracies under each "
            "attack alone, and under all of them together, which is what every other figure here shows. After a stroke: the "
            "attacks that follow a gradient followed the detached one.</p>")


def _plots(config, records, folder):
    swept = len({record["substeps"] for record in records}) > 1
    not_normal = findings.without_spectrum(config, records)
    warning = (f" For {', '.join(not_normal)}, R is not analytic: where the Jacobian is not normal, R(h\u03bb) is not "
               "the spectrum of the step, and the dots are a guide only." if not_normal else "")
    drawn = [("sweep", figures.sweep_figure) if swept else ("accuracy", figures.accuracy_figure),
             ("regions", regions.clouds_figure)]
    if not swept:
        drawn += [("measure", figures.measure_figure), ("training", figures.training_figure)]
    parts = []
    for name, draw in drawn:
        figure, caption = draw(config, records), CAPTIONS[name] + (warning if name == "regions" else "")
        if figure:
            parts.append(figure_of(figures.save(figure, folder, name), len(parts) + 1, caption))
    return "<h2>Figures</h2>" + "\n".join(parts)


def _detached(config, records, folder):
    rows = [("attack", "scheme", "exact, %", "detached, %", "detached \u2212 exact, points", "95 % interval",
             "verdict")]
    for eps in statistics.radii(records):
        for scheme in config["schemes"]:
            exact, detached = (statistics.masks_of(records, scheme, eps, name) for name in ("exact", "detached"))
            gap = statistics.difference(detached, exact)
            if gap:
                verdict = {"higher": "masks", "lower": "breaks more", "cannot tell": "cannot tell"}[gap.verdict]
                values = (percent(statistics.accuracy(masks).value) for masks in (exact, detached))
                rows.append((attack_name(records, eps), figures.label(scheme, records), *values, points(gap.value),
                             interval(gap, "+"), verdict))
    if len(rows) == 1:
        return ""
    return ("<h2>Exact against detached gradient</h2><p>The detached gradient keeps a scheme's value but "
            "differentiates its explicit predictor x + h f(x) instead. An attack that follows it follows a wrong "
            "slope: where accuracy comes out higher, the difference is <b>gradient masking</b>, not robustness. Where "
            "it comes out lower, the exact attack missed images, and the lower figure is the truer bound.</p>"
            f"{_table(rows, numbers=(2, 3, 4, 5))}")


def _solver(config, records, folder):
    rows = [("scheme", "tolerance", "unsolved, %", "unsolved in training, %", "unsolved gradients, %",
             "unsolved gradients in training, %", "iterations, mean (max)", "evaluations", "untrusted, max %",
             "training, s", "attacks, s")]
    for scheme in config["schemes"]:
        own = [record for record in records if record["scheme"] == scheme]
        used, *trained = (str(odenets.get_scheme(name).parameters.get("tol", ("",))[0])
                          for name in [figures.spec(records, scheme), *sorted({r["trained_as"] for r in own})])
        looser = "".join(f"; trained at {tol}" for tol in trained if tol != used)
        worst = max((m["untrusted"] / m["total"] for r in own for m in r["measurements"]), default=np.nan)

        def mean(group, key, scale=1, combine=np.mean, own=own):
            values = [scale * r[group][key] for r in own if r.get(group) and r[group].get(key) is not None]
            return f"{combine(values):.3g}" if values else ""
        iterations = mean("solver", "iterations_mean")
        if iterations:
            iterations += f" ({mean('solver', 'iterations_max', combine=np.max)})"
        rows.append((figures.label(scheme, records), used + looser, mean("solver", "unconverged_share", 100),
                     mean("solver", "training_unconverged_share", 100),
                     mean("solver", "backward_unconverged_share", 100),
                     mean("solver", "training_backward_unconverged_share", 100), iterations,
                     mean("solver", "evaluations_mean"), percent(worst), mean("seconds", "training"),
                     mean("seconds", "attacks")))
    return (f"<h2>Solver and cost</h2>{_table(rows, numbers=range(1, 11))}"
            "<p class=note>Means over the nets of a scheme. A tolerance bounds the residual of each sample relative to "
            "\u2016h f(x)\u2016; empty where nothing is solved. Unsolved: share of test images with an equation "
            "that did not converge at that tolerance. Unsolved gradients: share with a linear system of the backward pass "
            "that did not; they follow a wrong slope. Evaluations of f for each equation. Seconds are of one net on "
            "this machine: schemes are compared at equal weights, not at equal cost.</p>"
            + "".join(f"<p>{_escape(figures.label(record['scheme'], records))}, seed {record['seed']}: "
                      f"{_escape(record['unsolved'])}</p>" for record in records if record.get("unsolved")))


def _audit(config, records, folder):
    rows, shown = [], set()
    for r in (r for r in records if r.get("audit")):
        own = audit_rows(f"{figures.label(r['scheme'], records)}, seed {r['seed']}", r["audit"])
        # Of a scheme's first net every check, of the others those that fail.
        rows += own if r["scheme"] not in shown else [row for row in own if row[2] == VERDICTS[False]] or [
            (own[0][0], "all that apply", VERDICTS[True], "")]
        shown.add(r["scheme"])
    if not rows:
        return "<h2>Audit</h2><p>No net of this run was audited: whether gradients are masked is open.</p>"
    verdicts = [r["audit"]["passed"] for r in records if r.get("audit")]
    return ("<h2>Audit: is the robustness real?</h2><p>An audit tries to expose gradients that hide adversarial images "
            f"instead of removing them. {sum(verdicts)} of {count(verdicts, 'net')} pass. A scheme with a net that fails is "
            "marked \u2020 wherever it appears. The table has every check of each scheme's first net, and of the others those "
            "that fail; all of them, with figures and thresholds, are in audit.csv.</p>"
            + _table([("net", "check", "verdict", "reason"), *rows], numbers=()))


def _caveats(config, records, folder):
    items = "".join(f"<li>{_escape(sentence)}</li>" for sentence in findings.caveats(config, records))
    return f"<h2>What these figures do not show</h2><ul>{items}</ul>"


def _protocol(config, records, folder):
    sizes = ", ".join(f"{size} {part.replace('_', '-')}" for part, size in config["data"].items())
    rows = {"Data": f"{config['dataset']}: {sizes} images, one fixed split",
            "Network": f"{config['model']}, {records[0]['parameters']:,} parameters, the same for every scheme",
            "Training": _training(config),
            "Seeds": _listed(config["seeds"]), "Steps for each block": _listed(config["substeps"]),
            "Attacks": f"{_listed(config['attacks'])}; \u03b5 = {', '.join(map(radius, config['epsilons']))} "
                       f"({norm_symbol(config)}, "
                       "pixel values in [0, 1]), where they use gradients, along those of the function that is computed",
            "Judge": "all test images, for every scheme the same; each adversarial image is classified again from a "
                     "cold start at tolerance 1e-6, and counts as broken where that does not converge",
            **{key: str(value) for key, value in config["environment"].items() if value is not None}}
    files = ("accuracy.csv", "stability.csv", "audit.csv", "records.jsonl", "config.json")
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    return (f"<h2>Protocol</h2>{definitions(rows)}<h2>Command and data</h2><pre>{_escape(config['command'])}</pre>"
            f"<p>Every number above is in these files beside this page, or follows from them: {links}. Figures as PNG: "
            "figures/.</p>")


def _training(config):
    """The protocol of training in one sentence."""
    epsilon, steps, clean = config.get("train_epsilon", 0), config.get("train_steps", 1), config.get("clean_epochs", 0)
    attack = "" if config["training"] == "standard" else f" (\u03b5 = {radius(epsilon)}, {count(range(steps), 'step')})"
    attack += f" after {count(range(clean), 'epoch')} on clean images" if attack and clean else ""
    warmup = config.get("warmup_epochs", 0)
    rise = f" after a linear rise over {count(range(warmup), 'epoch')}" if warmup else ""
    by = "accuracy" if config["training"] == "standard" else "accuracy under a PGD of 10 steps"
    result = {"last": "the last epoch is the result",
              "best": f"the result is the epoch with the highest {by} on held-out training images, of equals the latest; no "
                      "choice is made on test images"}[config.get("select", "last")]
    return (f"{config['training']}{attack}, {config['epochs']} epochs, batches of {config['batch_size']}, "
            f"{config.get('optimizer', 'adamw')}, {config.get('schedule', 'one-cycle')} schedule with peak learning rate "
            f"{config['learning_rate']:g}{rise}, augmentation {config.get('augment', 'none')}, "
            f"{config.get('precision', 'float32')}; same initial weights and batches for every scheme; {result}")


def _listed(value):
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _subtitle(config, records):
    schemes = ", ".join(dict.fromkeys(figures.spec(records, scheme) for scheme in config["schemes"]))
    return f"{schemes} on {config['dataset']}, {count(config['seeds'], 'seed')}, {config['training']} training"


def _banner(config):
    warning = "<p class=banner>Smoke run: every path once, in seconds. The numbers mean nothing.</p>"
    return warning if config.get("smoke") else ""
