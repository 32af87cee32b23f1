"""report.html: one file that opens anywhere, whose sentences are made from the numbers and claim no more than these."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import odenets
from experiments.harness.report import crowd, figures, regions, steps
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.report.audits import audit_section
from experiments.harness.report.environment import departures, elsewhere, made_with
from experiments.harness.report.measures import fields_section, measures_section
from experiments.harness.report.page import Code, Figure, Folded, Listed, Page, Section, Table, Terms, Text, linked
from experiments.harness.report.readings import readings
from experiments.harness.report.sentences import caveats, headline, summary_table, without_spectrum
from experiments.harness.run.config import TrainingSettings
from experiments.harness.run.schema import uncollected
from experiments.harness.statistics import OPEN, Gap
from experiments.harness.words import count, interval, listed, norm_symbol, percent, points, radius

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


# Adding a figure is one entry, its caption above.
SWEPT = {"regions": regions.clouds_figure}
COMPARED = {
    "accuracy": figures.accuracy_figure,
    "regions": regions.clouds_figure,
    "measure": figures.measure_figure,
    "training": figures.training_figure,
}
CROWDED = COMPARED | {
    "accuracy": crowd.accuracy_figure,
    "measure": crowd.measure_figure,
    "training": crowd.training_figure,
}
SMOKE = "Smoke run: every path once, in seconds. The numbers mean nothing."


def write_report(found: Comparison, path: Path) -> None:
    """Write the report of a run to `path`, its figures and tables into folders beside it."""
    config, schemes = found.config, ", ".join(dict.fromkeys(arm.scheme for arm in found.arms))
    with uncollected():
        Page(
            "What do finer steps, and other schemes, do to a network?"
            if found.rerun
            else "Is a more stable scheme a more robust network?",
            f"{schemes} on {config.dataset}, {count(len(config.seeds), 'seed')}, {config.settings.training} training",
            answer(found),
            [*(steps.sections(found) if found.rerun else ()), *(section(found) for section in SECTIONS)],
            SMOKE if config.smoke else "",
            [*departures([("this run", config)]), *elsewhere([("this run", config, found.records)])],
        ).write(path)


def answer(found: Comparison) -> list[str]:
    """The sentences that stand first: of a sweep those on its steps."""
    return steps.headline(found) if found.rerun else headline(found)


def answer_table(found: Comparison) -> Table:
    """What a terminal shows."""
    if not found.rerun:
        return summary_table(found)
    header, *rows = steps.summary(found)
    return Table("steps", header, rows, keys=3)


def further_files(found: Comparison) -> dict[str, list[tuple]]:
    """{CSV file: its rows, the header first} beside those of every run."""
    return steps.files(found) if found.rerun else {}


def differences(found: Comparison) -> dict[str, tuple[Arm, Gap]]:
    """{arm: (what it is compared with, its difference at the middle radius)}, as the page has them; of a sweep its readings."""
    if found.rerun:
        return {r.arm.name: (r.against, gap) for r in readings(found) if (gap := r.gaps.get(found.middle))}
    return {name: (found.reference, gap) for (name, eps), gap in found.gaps.items() if eps == found.middle}


def clear(found: Comparison) -> bool:
    """Whether every difference at the middle radius has a verdict."""
    return all(gap.verdict != OPEN for _, gap in differences(found).values())


def _results(found: Comparison) -> Section:
    whole = summary_table(found)
    if len(found.arms) <= crowd.CROWD:
        return Section("Accuracy", (whole,))
    # Of many schemes the radius of the answer is shown, and all of them when asked for.
    middle = [row for row in whole.rows if row[0] == found.attack_at(found.middle)]
    shown = Table("accuracy-middle", whole.columns, middle, whole.caption, keys=2)
    return Section("Accuracy", (shown, Folded("At every radius, and without an attack", (replace(whole, caption=""),))))


def _looks(found: Comparison) -> Section | None:
    """The intervals at each look of a run that ends when it is clear."""
    if not found.config.looks:
        return None
    rows = [
        (
            str(look),
            f"{name} against {against.name}" if found.rerun else name,
            points(gap.estimate.value),
            interval(gap.estimate, "+"),
            gap.verdict,
        )
        for look in found.config.looks
        if look <= len(found.config.seeds)
        for name, (against, gap) in differences(found.first(look)).items()
    ]
    reached = len(found.config.seeds)
    ending = (
        f"It ended because {'every difference had a verdict' if differences(found) else 'one scheme alone has nets'}."
        if clear(found)
        else f"It ended at {count(reached, 'seed')} without a verdict for each: "
        + ("that was the most it may take." if reached >= found.config.looks[-1] else "the time was over. --resume goes on.")
    )
    text = Text(
        f"{found.attack_at(found.middle)}: the run was to be looked at after {listed(found.config.looks)} seeds. Whatever it "
        f"found there and whenever it ended, all of these intervals cover together with probability 95 %. {ending}"
    )
    columns = ("seeds", "scheme", "difference, points", "interval", "verdict")
    return Section("Until it was clear", (text, *((Table("looks", columns, rows, keys=2),) if rows else ())))


def _by_attack(found: Comparison) -> Section | None:
    """Each attack by itself; nothing where there is one."""
    attacks = found.attacks()
    if len(attacks) < 2:
        return None

    def cells(arm: Arm, eps: float) -> list[str]:
        ways = [[arm.masks(eps, way, name) for way in ("exact", "detached")] for name in [*attacks, None]]
        return [" / ".join(percent(np.mean([m.mean() for m in masks.values()])) for masks in own if masks) for own in ways]

    rows = [(radius(eps), arm.label, *own) for eps in found.radii for arm in found.arms if any(own := cells(arm, eps))]
    note = (
        "Mean accuracies under each attack alone, and under all of them together, which is what every other figure here "
        "shows. After a stroke: the attacks that follow a gradient followed the detached one."
    )
    columns = ("\u03b5", "scheme", *(f"{name}, %" for name in attacks), "all of them, %")
    return Section("Attack by attack", (Table("attacks", columns, rows, note, keys=2),))


def _plots(found: Comparison) -> Section:
    not_normal = without_spectrum(found)
    warning = (
        f" For {', '.join(not_normal)}, R is not analytic: where the Jacobian is not normal, R(h\u03bb) is not "
        "the spectrum of the step, and the dots are a guide only."
        if not_normal
        else ""
    )
    many = len(found.arms) > crowd.CROWD
    drawn = {name: draw(found) for name, draw in (SWEPT if found.rerun else CROWDED if many else COMPARED).items()}
    captions = CAPTIONS | (crowd.CAPTIONS if many else {}) | {"regions": CAPTIONS["regions"] + warning}
    return Section("Figures", tuple(Figure(name, figure, captions[name]) for name, figure in drawn.items() if figure))


def _detached(found: Comparison) -> Section | None:
    words = {"higher": "masks", "lower": "breaks more", "cannot tell": "cannot tell"}
    rows = [
        (
            found.attack_at(eps),
            arm.label,
            *(percent(found.measured(arm, eps, way).value) for way in ("exact", "detached")),
            points(gap.value),
            interval(gap, "+"),
            words[gap.verdict],
        )
        for eps in found.radii
        for arm in found.arms
        if (gap := found.detached_gap(arm, eps))
    ]
    if not rows:
        return None
    text = Markup(
        "The detached gradient keeps a scheme's value but differentiates its explicit predictor x + h f(x) instead. "
        "An attack that follows it follows a wrong slope: where accuracy comes out higher, the difference is "
        "<b>gradient masking</b>, not robustness. Where it comes out lower, the exact attack missed images, and the "
        "lower figure is the truer bound."
    )
    columns = ("attack", "scheme", "exact, %", "detached, %", "detached \u2212 exact, points", "95 % interval", "verdict")
    return Section("Exact against detached gradient", (Text(text), Table("detached", columns, rows, keys=2)))


def _solver(found: Comparison) -> Section:
    columns = (
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
    return Section("Solver and cost", (Table("solver", columns, [*map(_cost, found.arms)], note), *along, *told))


def _cost(arm: Arm) -> tuple[str, ...]:
    """What solving and training cost the nets of an arm, as cells."""
    own = arm.records
    used, *trained = (_tolerance(name) for name in [arm.scheme, *sorted({record.trained_as for record in own})])
    worst = max((m.untrusted / m.total for record in own for m in record.measurements), default=np.nan)

    def mean(values: Iterable[float | None], scale: float = 1, combine: Callable = np.mean) -> str:
        known = [scale * value for value in values if value is not None]
        return f"{combine(known):.3g}" if known else ""

    def solver(key: str) -> list[Any]:
        return [getattr(record.solver, key, None) for record in own]

    iterations = mean(solver("iterations_mean"))
    shares = ("unconverged", "training_unconverged", "backward_unconverged", "training_backward_unconverged", "path_dependent")
    return (
        arm.label,
        used + "".join(f"; trained at {tol}" for tol in trained if tol != used),
        *(mean(solver(f"{share}_share"), 100) for share in shares),
        iterations and f"{iterations} ({mean(solver('iterations_max'), combine=np.max)})",
        mean(solver("evaluations_mean")),
        percent(worst),
        *(mean([record.seconds.get(key) for record in own]) for key in ("training", "attacks")),
    )


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


def _audit(found: Comparison) -> Section:
    return audit_section([(arm.label, record) for arm in found.arms for record in arm.records])


def _caveats(found: Comparison) -> Section:
    return Section("What these figures do not show", (Listed(caveats(found)),))


def _protocol(found: Comparison) -> Section:
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
        **made_with(config),
    }
    links = linked(("accuracy.csv", "stability.csv", "audit.csv", "records.jsonl", "config.json"))
    text = Markup(
        "Every number above is in these files beside this page, or follows from them: {}. Figures as PNG and PDF: figures/. "
        "Tables as CSV and LaTeX: tables/."
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
