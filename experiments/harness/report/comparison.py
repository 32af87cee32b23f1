"""report.html: one file that opens anywhere, whose sentences are made from the numbers and claim no more than these."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import odenets
from experiments.harness.report import figures, regions, steps
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.report.page import VERDICTS, Code, Figure, Listed, Section, Table, Terms, Text, audit_rows, write_page
from experiments.harness.report.sentences import (
    caveats,
    headline,
    interval,
    percent,
    points,
    summary_table,
    without_spectrum,
)
from experiments.harness.report.stability_sections import fields_section, measures_section
from experiments.harness.run.config import TrainingSettings
from experiments.harness.run.schema import CHEAP, CHEAP_IMAGES, Record
from experiments.harness.words import count, listed, norm_symbol, radius

CAPTIONS = {
    "accuracy": "Accuracy falls as the attack may move pixels further. Left: mean over seeds, the band its 95 % "
    "interval over seeds and images; dashed where the attack follows the detached gradient, which shows what masking would "
    "hide. Right: the difference to the first scheme, paired; a filled mark where one scheme is more robust, a hollow one "
    "where this run cannot tell or the two are equivalent; grey: the margin of equivalence.",
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


def write_report(found: Comparison, path: Path) -> None:
    """Write the report of a run to `path`, and the figures as PNG into figures/ beside it."""
    path, folder = Path(path), Path(path).parent / "figures"
    own = steps.sections(found, folder) if found.rerun else []
    write_page(
        path,
        "What do finer steps, and other schemes, do to a network?"
        if found.rerun
        else "Is a more stable scheme a more robust network?",
        _subtitle(found),
        answer(found),
        [*own, *(section(found, folder) for section in SECTIONS)],
        _banner(found),
    )


def answer(found: Comparison) -> list[str]:
    """The sentences that stand first: of a sweep those on its steps."""
    return steps.headline(found) if found.rerun else headline(found)


def answer_table(found: Comparison) -> tuple[list[tuple[str, ...]], int]:
    """(rows for a terminal, the header first; how many columns name a row)."""
    return (steps.summary(found), 3) if found.rerun else (summary_table(found), 2)


def further_files(found: Comparison) -> dict[str, list[tuple]]:
    """{CSV file: its rows, the header first} beside those of every run."""
    return steps.files(found) if found.rerun else {}


def _results(found: Comparison, folder: Path) -> Section:
    seeds, config = found.config.seeds, found.config
    varied = (
        f"{count(len(seeds), 'seed')}, each with a split of its own, and corrected for what splits share (Nadeau and Bengio)"
        if config.resplit
        else f"{count(len(seeds), 'seed')} and the test images: another draw of both"
    )
    meaning = (
        f"Intervals are over {varied}; <i>from images</i> is the images' share of the variance of a difference. Differences "
        "are paired: same initial weights, same batches, same images. Their intervals cover together with probability 95 %: "
        "the verdicts hold for the table."
        if len(seeds) > 1
        else "One seed: accuracies carry Wilson intervals, differences an interval from the images on which the two nets "
        "disagree (Agresti and Min). They cover another draw of test images and say nothing of another seed."
    )
    looked = (
        f" The run was looked at after {listed(config.looks)} seeds, as was fixed before; what that costs is in the intervals."
        if config.looks
        else ""
    )
    margin = f"{100 * config.margin:g} points"
    note = Markup(
        f"{meaning}{looked} <b>Equivalent</b>: the interval lies within {margin} of zero. <b>Cannot tell yet</b>: it covers "
        "zero and reaches beyond the margin. <b>Untrusted</b>: images "
        "counted as broken because a cold re-solve at tolerance 10<sup>\u22126</sup> did not converge, or ended at "
        "another root than the one connected to the state, so that the answer hangs on the solver. All comparisons are "
        "with {}."
    ).format(found.arms[0].name)
    return Section("Accuracy", (Table(summary_table(found), (2, 3, 4, 5, 6, 8)), Text(note, note=True)))


def _looks(found: Comparison, folder: Path) -> Section | None:
    """The intervals at each look of a run that ends when it is clear."""
    if not found.config.looks:
        return None
    rows: list[tuple] = [("seeds", "scheme", "difference, points", "interval", "verdict")]
    for seeds, gaps in found.sequence.items():
        for name, gap in gaps.items():
            rows.append((seeds, name, points(gap.estimate.value), interval(gap.estimate, "+"), gap.verdict))
    reached = len(found.config.seeds)
    ending = (
        "It ended because every difference had a verdict."
        if found.clear
        else f"It ended at {count(reached, 'seed')} without a verdict for each: "
        + ("that was the most it may take." if reached >= found.config.looks[-1] else "the time was over. --resume goes on.")
    )
    text = Text(
        f"{found.attack_at(found.middle)}: the run was to be looked at after {listed(found.config.looks)} seeds. Whatever it "
        f"found there and whenever it ended, all of these intervals cover together with probability 95 %. {ending}"
    )
    return Section("Until it was clear", (text, *((Table(rows, (0, 2, 3)),) if len(rows) > 1 else ())))


def _by_attack(found: Comparison, folder: Path) -> Section | None:
    """Each attack by itself; nothing where there is one."""
    attacks = found.attacks()
    if len(attacks) < 2:
        return None
    rows: list[tuple] = [("\u03b5", "scheme", *(f"{name}, %" for name in attacks), "all of them, %")]
    for eps in found.radii:
        for arm in found.arms:
            cells = []
            for name in [*attacks, None]:
                ways = (arm.masks(eps, way, name) for way in ("exact", "detached"))
                cells.append(" / ".join(percent(np.mean([mask.mean() for mask in masks.values()])) for masks in ways if masks))
            if any(cells):
                rows.append((radius(eps), arm.label, *cells))
    note = (
        "Mean accuracies under each attack alone, and under all of them together, which is what every other figure here "
        "shows. After a stroke: the attacks that follow a gradient followed the detached one."
    )
    return Section("Attack by attack", (Table(rows, range(2, len(rows[0]))), Text(note, note=True)))


def _plots(found: Comparison, folder: Path) -> Section:
    not_normal = without_spectrum(found)
    warning = (
        f" For {', '.join(not_normal)}, R is not analytic: where the Jacobian is not normal, R(h\u03bb) is not "
        "the spectrum of the step, and the dots are a guide only."
        if not_normal
        else ""
    )
    drawn: dict[str, Callable[[Comparison], Any]] = {} if found.rerun else {"accuracy": figures.accuracy_figure}
    drawn |= {"regions": regions.clouds_figure}
    if not found.rerun:
        drawn |= {"measure": figures.measure_figure, "training": figures.training_figure}
    parts: list[Figure] = []
    for name, draw in drawn.items():
        figure, caption = draw(found), CAPTIONS[name] + (warning if name == "regions" else "")
        if figure:
            parts.append(Figure(figures.save(figure, folder, name), caption, len(parts) + 1))
    return Section("Figures", tuple(parts))


def _detached(found: Comparison, folder: Path) -> Section | None:
    rows: list[tuple] = [
        ("attack", "scheme", "exact, %", "detached, %", "detached \u2212 exact, points", "95 % interval", "verdict")
    ]
    for eps in found.radii:
        for arm in found.arms:
            gap = found.detached_gap(arm, eps)
            if gap:
                verdict = {"higher": "masks", "lower": "breaks more", "cannot tell": "cannot tell"}[gap.verdict]
                values = (percent(found.measured(arm, eps, way).value) for way in ("exact", "detached"))
                rows.append((found.attack_at(eps), arm.label, *values, points(gap.value), interval(gap, "+"), verdict))
    if len(rows) == 1:
        return None
    text = Markup(
        "The detached gradient keeps a scheme's value but differentiates its explicit predictor x + h f(x) instead. "
        "An attack that follows it follows a wrong slope: where accuracy comes out higher, the difference is "
        "<b>gradient masking</b>, not robustness. Where it comes out lower, the exact attack missed images, and the "
        "lower figure is the truer bound."
    )
    return Section("Exact against detached gradient", (Text(text), Table(rows, (2, 3, 4, 5))))


def _solver(found: Comparison, folder: Path) -> Section:
    rows: list[tuple[str, ...]] = [
        (
            "scheme",
            "tolerance",
            "unsolved, %",
            "unsolved in training, %",
            "unsolved gradients, %",
            "unsolved gradients in training, %",
            "hanging, %",
            "iterations, mean (max)",
            "evaluations",
            "untrusted, max %",
            "training, s",
            "attacks, s",
        )
    ]
    for arm in found.arms:
        own = arm.records
        used, *trained = (_tolerance(name) for name in [arm.scheme, *sorted({record.trained_as for record in own})])
        looser = "".join(f"; trained at {tol}" for tol in trained if tol != used)
        worst = max((m.untrusted / m.total for record in own for m in record.measurements), default=np.nan)

        def mean(values: Iterable[float | None], scale: float = 1, combine: Callable = np.mean) -> str:
            known = [scale * value for value in values if value is not None]
            return f"{combine(known):.3g}" if known else ""

        def solver(key: str, own: Sequence[Record] = own) -> list[Any]:
            return [getattr(record.solver, key, None) for record in own]

        iterations = mean(solver("iterations_mean"))
        if iterations:
            iterations += f" ({mean(solver('iterations_max'), combine=np.max)})"
        rows.append(
            (
                arm.label,
                used + looser,
                mean(solver("unconverged_share"), 100),
                mean(solver("training_unconverged_share"), 100),
                mean(solver("backward_unconverged_share"), 100),
                mean(solver("training_backward_unconverged_share"), 100),
                mean(solver("path_dependent_share"), 100),
                iterations,
                mean(solver("evaluations_mean")),
                percent(worst),
                *(mean([record.seconds.get(key) for record in own]) for key in ("training", "attacks")),
            )
        )
    note = (
        "Means over the nets of a scheme. A tolerance bounds the residual of each sample relative to \u2016h f(x)\u2016; "
        "empty where nothing is solved. Unsolved: share of test images with an equation that did not converge at that "
        "tolerance. Unsolved gradients: share with a linear system of the backward pass that did not; they follow a wrong "
        "slope. Hanging: share of test images whose answer hangs on the path of the solver: at the judge's tolerance it "
        "converges to another root than the one connected to the state as the step size grows from 0, or there is none. "
        "Evaluations of f for each equation. Seconds are of one net on this machine: schemes are compared at equal "
        "weights, not at equal cost."
    )
    along = [Text(f"{arm.label} was {said}") for arm in found.arms if (said := _approximately(arm))]
    told = [
        Text(f"{arm.label}, seed {record.seed}: {record.unsolved}")
        for arm in found.arms
        for record in arm.records
        if record.unsolved
    ]
    return Section("Solver and cost", (Table(rows, range(1, 12)), Text(note, note=True), *along, *told))


def _approximately(arm: Arm) -> str:
    """How the nets of an arm were trained where that was along an approximate gradient, else nothing."""
    cosines = [epoch.gradient_cosine for r in arm.records for epoch in r.history if epoch.gradient_cosine is not None]
    near = (
        f"; its cosine to the exact one, on a batch at the end of each epoch, was at least {min(cosines):.3f}"
        if cosines
        else ""
    )
    loose = sorted({r.trained_as for r in arm.records if odenets.get_scheme(r.trained_as).approximate_gradient})
    if not (loose or cosines):
        return ""
    return f"trained along {f'an approximate gradient ({listed(loose)})' if loose else 'the detached gradient'}{near}."


def _tolerance(spec: str) -> str:
    return str(odenets.get_scheme(spec).parameters.get("tol", ("",))[0])


def _audit(found: Comparison, folder: Path) -> Section:
    title, rows = "Audit: is the robustness real?", []
    for arm in found.arms:
        for index, (seed, audit) in enumerate((record.seed, record.audit) for record in arm.records if record.audit):
            own = audit_rows(f"{arm.label}, seed {seed}", audit)
            # Of a scheme's first net every check, of the others those that fail.
            every = "the cheap ones" if audit.extent == CHEAP else "all that apply"
            failed = [row for row in own if row[2] == VERDICTS[False]]
            rows += own if not index else failed or [(own[0][0], every, VERDICTS[True], "")]
    if not rows:
        return Section("Audit", (Text("No net of this run was audited: whether gradients are masked is open."),))
    verdicts = [record.audit.passed for record in found.records if record.audit]
    text = (
        "An audit tries to expose gradients that hide adversarial images instead of removing them. "
        f"{sum(verdicts)} of {count(len(verdicts), 'net')} pass. A scheme with a net that fails is marked \u2020 wherever it "
        "appears. The table has every check of each scheme's first net, and of the others those that fail; all of them, "
        "with figures and thresholds, are in audit.csv."
    )
    if any(record.audit.extent == CHEAP for record in found.records if record.audit):
        text += (
            " The cheap ones take seconds: is the net deterministic, is its gradient there and exact, are its equations "
            "solved, at the root connected to the state, and does a tighter tolerance change nothing; on "
            f"{CHEAP_IMAGES} images, clean and under a short PGD."
        )
    return Section(title, (Text(text), Table([("net", "check", "verdict", "reason"), *rows])))


def _caveats(found: Comparison, folder: Path) -> Section:
    return Section("What these figures do not show", (Listed(caveats(found)),))


def _protocol(found: Comparison, folder: Path) -> Section:
    config = found.config
    sizes = ", ".join(f"{size} {part.replace('_', '-')}" for part, size in config.data.items())
    rows = {
        "Data": f"{config.dataset}: {sizes} images, {'a split for each seed' if config.resplit else 'one fixed split'}",
        "Network": f"{config.model}, {found.records[0].parameters:,} parameters, the same for every scheme",
        "Training": _training(config.settings),
        "Seeds": listed(config.seeds),
        "Steps for each block": listed(config.substeps),
        "Attacks": f"{listed(config.attacks)}; \u03b5 = {', '.join(map(radius, config.epsilons))} "
        f"({norm_symbol(config.threat)}, "
        "pixel values in [0, 1]), where they use gradients, along those of the function that is computed",
        "Judge": "all test images, for every scheme the same; each adversarial image is classified again from a "
        "cold start at tolerance 1e-6, and counts as broken where that does not converge or does not end at "
        "the root connected to the state",
        **{key: str(value) for key, value in config.environment.items() if value is not None},
    }
    files = ("accuracy.csv", "stability.csv", "audit.csv", "records.jsonl", "config.json")
    links = Markup(", ").join(Markup('<a href="{0}">{0}</a>').format(name) for name in files)
    text = Markup(
        "Every number above is in these files beside this page, or follows from them: {}. Figures as PNG: figures/."
    ).format(links)
    return Section("Protocol", (Terms(rows), Code(config.command), Text(text)))


def _training(settings: TrainingSettings) -> str:
    """The protocol of training in one sentence."""
    standard = settings.training == "standard"
    attack = "" if standard else f" (\u03b5 = {radius(settings.train_epsilon)}, {count(settings.steps, 'step')})"
    clean, warmup = settings.clean_epochs, settings.warmup_epochs
    attack += f" after {count(clean, 'epoch')} on clean images" if attack and clean else ""
    along = " along the detached gradient" if settings.train_gradient == "detached" else ""
    rise = f" after a linear rise over {count(warmup, 'epoch')}" if warmup else ""
    by = "accuracy" if standard else "accuracy under a PGD of 10 steps"
    result = {
        "last": "the last epoch is the result",
        "best": f"the result is the epoch with the highest {by} on held-out training images, of equals the latest; no "
        "choice is made on test images",
    }[settings.select]
    return (
        f"{settings.training}{attack}{along}, {settings.epochs} epochs, batches of {settings.batch_size}, "
        f"{settings.optimizer}, {settings.schedule} schedule with peak learning rate "
        f"{settings.learning_rate:g}{rise}, augmentation {settings.augment}, "
        f"{settings.precision}; same initial weights and batches for every scheme; {result}"
    )


def _subtitle(found: Comparison) -> str:
    config, schemes = found.config, ", ".join(dict.fromkeys(arm.scheme for arm in found.arms))
    return f"{schemes} on {config.dataset}, {count(len(config.seeds), 'seed')}, {config.settings.training} training"


def _banner(found: Comparison) -> str:
    return "Smoke run: every path once, in seconds. The numbers mean nothing." if found.config.smoke else ""


# Adding a section is one function and its place here.
SECTIONS = (
    _results,
    _looks,
    _by_attack,
    fields_section,
    _plots,
    measures_section,
    _detached,
    _solver,
    _audit,
    _caveats,
    _protocol,
)
