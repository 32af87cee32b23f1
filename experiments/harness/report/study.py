"""A study: every predictor of stability against robust accuracy, over the nets of one or more runs; its page and its table."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Drawing

from experiments.harness.report import measures
from experiments.harness.report.arms import comparison, mean_of
from experiments.harness.report.collection import refuse_unlike
from experiments.harness.report.comparison import SMOKE
from experiments.harness.report.crowd import named_scatter
from experiments.harness.report.drawing import PALETTE, STYLE
from experiments.harness.report.environment import departures, made_with, unlike
from experiments.harness.report.page import Code, Figure, Page, Section, Table, Terms
from experiments.harness.run.config import INCIDENTAL, RunConfig, TrainingSettings
from experiments.harness.run.schema import Record
from experiments.harness.statistics.association import FEWEST
from experiments.harness.statistics.estimates import Estimate
from experiments.harness.statistics.mixed import MixedEffect, mixed_effect
from experiments.harness.statistics.relation import REFUTED, SUPPORTED, UNKNOWN, WEAK, Nets, Relation, relations, reliability
from experiments.harness.words import count, file_name, interval, listed, percent, points
from odenets.errors import InputError

NORM, CLEAN = "lipschitz", "clean accuracy"  # what a relation may only reflect: the size of the Jacobian, and how good a net is
STABLER_IF_LARGER = ("largest_stable_h",)
SAME = ("dataset", "model", "attacks", "epsilons", "threat", "train_limit", "test_limit", "splits", "split_seed")
DRAWN = 4  # figures, at most
LISTED = 20  # nets that a sentence names


@dataclass(frozen=True)
class Study:
    """What was found. runs: the configurations. nets: those compared. left_out: the names of those that failed their audit.
    missing: of those that have no record, for their training failed or has not ended. alike: {scheme that is left out, for it
    gave the figures of another one: that one}. values: {predictor: a number for each net, NaN where it is not known}. mixed:
    {predictor: at equal clean accuracy}."""

    runs: tuple[RunConfig, ...]
    attack: str
    nets: Nets
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    alike: dict[str, str]
    values: dict[str, np.ndarray]
    relations: tuple[Relation, ...]
    mixed: dict[str, MixedEffect]


def study(runs: Sequence[tuple[RunConfig, Sequence[Record]]]) -> Study:
    """Relate predictors and robust accuracy at the middle radius over the nets of runs that differ in training, field or seed.

    Nets that failed their audit are left out: their robustness may be an artefact. Schemes that are one and the same on these
    fields, such as theta at 1/2 and the trapezoid, count once.

    Raises:
        ValueError: The runs cannot be compared, or there are too few schemes.
    """
    refuse_unlike([config for config, _ in runs], SAME)
    for training in {config.settings.training for config, _ in runs}:
        alike = [config.settings for config, _ in runs if config.settings.training == training]
        refuse_unlike(alike, [f.name for f in fields(TrainingSettings) if f.name not in INCIDENTAL])
    found, left_out, missing = [], [], []
    for config, records in runs:
        compared = comparison(config, list(records))
        # Weights that are run otherwise than trained had no predictors measured.
        for arm in (arm for arm in compared.arms if not arm.swapped and arm.substeps == arm.trained_substeps):
            robust, clean = arm.masks(compared.middle), arm.masks(0.0)
            where = f", {config.settings.training} training" * (len(runs) > 1)
            have = {record.seed for record in arm.records}
            missing += [f"{arm.name}, seed {seed}{where}" for seed in config.seeds if seed not in have]
            left_out += [f"{arm.name}, seed {r.seed}{where}" for r in arm.records if r.verdict == "failed"]
            for record in arm.records:
                if record.seed in robust and record.verdict != "failed":
                    accuracies = robust[record.seed].mean(), clean[record.seed].mean()
                    found.append((record, *accuracies, (record.field, config.settings.training, record.substeps)))
    named = [(record.scheme, record.seed, *stratum) for record, *_, stratum in found]
    twice = next((net for net in named if named.count(net) > 1), None) if len({*named}) < len(named) else None
    if twice:
        raise InputError(
            f"these runs hold the same net twice ({twice[0]} on {twice[2]}, {twice[3]} training, seed {twice[1]}), which would "
            "count twice; give each run once"
        )
    twins = _alike([(record, stratum) for record, *_, stratum in found])
    found = [net for net in found if net[0].scheme not in twins]
    schemes = {record.scheme for record, *_ in found}
    if len(schemes) < FEWEST:
        raise InputError(
            f"a relation between schemes needs {FEWEST} of them at least, got {len(schemes)}: {listed(sorted(schemes))}"
        )
    names = dict.fromkeys(row.metric for record, *_ in found for row in record.stability)

    def values(name: str) -> np.ndarray:
        known = (mean_of(record, name) for record, *_ in found)
        return np.array([np.nan if value is None else value for value in known])

    predictors = {name: values(name) for name in names}
    predictors = {name: known for name, known in predictors.items() if len(set(known[~np.isnan(known)])) > 1}
    records, right, untouched, strata = (list(column) for column in zip(*found))
    nets = Nets(np.array(right), [r.scheme for r in records], strata, [r.seed for r in records])
    given = {CLEAN: np.array(untouched)} | ({NORM: predictors[NORM]} if NORM in predictors else {})
    expected = dict.fromkeys(STABLER_IF_LARGER, 1)
    related = relations(predictors, nets, given=given, expected=expected)
    order = {SUPPORTED: 0, REFUTED: 1, UNKNOWN: 2}
    related.sort(key=lambda r: (order[r.verdict], -abs(r.between.value) if r.between else 0))
    mixed = {
        name: mixed_effect(values, nets.robust, given[CLEAN], nets.stratum, nets.scheme, nets.seed)
        for name, values in predictors.items()
    }
    attack = compared.attack_at(compared.middle)
    return Study(
        tuple(config for config, _ in runs),
        attack,
        nets,
        tuple(left_out),
        tuple(missing),
        twins,
        predictors,
        tuple(related),
        mixed,
    )


def _alike(nets: Sequence[tuple[Record, tuple]]) -> dict[str, str]:
    """{scheme: an earlier one, whose nets of the same seeds have the same measurements and dynamics to the last digit}."""
    figures: dict[str, dict[Any, Any]] = {}
    for record, stratum in nets:
        figures.setdefault(record.scheme, {})[stratum, record.seed] = record.measurements, record.stability
    found: dict[str, str] = {}
    kept: dict[str, dict[Any, Any]] = {}
    for scheme, own in figures.items():
        for other, known in kept.items():
            shared = own.keys() & known.keys()
            if shared and all(own[net] == known[net] for net in shared):
                found[scheme] = other
                break
        else:
            kept[scheme] = own
    return found


def sentences(found: Study) -> list[str]:
    """The answer: one sentence, and what limits it."""
    named = {
        verdict: [
            f"{_name(r.predictor)} ({r.between.value:+.2f})" for r in found.relations if r.verdict == verdict and r.between
        ]
        for verdict in (SUPPORTED, REFUTED)
    }
    parts = [f"{verdict}: {', '.join(names)}" for verdict, names in named.items() if names] or [
        "none is supported, none refuted"
    ]
    rest = sum(r.verdict == UNKNOWN for r in found.relations)
    schemes, trainings = len(set(found.nets.scheme)), dict.fromkeys(c.settings.training for c in found.runs)
    told = [
        f"Of {count(len(found.relations), 'predictor')} of robustness ({found.attack}) over {count(schemes, 'scheme')}, "
        f"{count(len(found.nets.robust), 'net')}, {found.runs[0].dataset}, {listed(trainings)} training: {'; '.join(parts)}"
        f"{f'; {rest} cannot be told' * bool(rest)}."
    ]
    for r in found.relations[:DRAWN]:
        effect = found.mixed[r.predictor].estimate
        if effect and r.verdict != UNKNOWN:
            told.append(
                f"A standard deviation of {_name(r.predictor)} goes with {points(effect.value)} points of robust accuracy "
                f"{interval(effect, '+')} at equal clean accuracy (mixed model)."
            )
    for r in found.relations:
        left = r.given.get(CLEAN)
        if r.verdict == SUPPORTED and left and min(r.expected * left.low, r.expected * left.high) <= 0:
            told.append(
                f"At equal clean accuracy the correlation of {_name(r.predictor)} is {left.value:+.2f} {_interval(left)}: that "
                "it says more than clean accuracy does is not shown."
            )
    if len(set(found.nets.seed)) == 1:
        told.append("One net for each scheme: what is said of a scheme may be so of that net alone.")
    elif (repeats := reliability(found.nets.robust, found.nets)).n > 1:
        told.append(
            f"Of the variance between schemes, in mean ranks of robust accuracy, {percent(repeats.value)} % would come again "
            f"with other seeds, {percent(repeats.low)} % at least. The rest is noise; what it may hide is not refuted."
        )
    if found.alike:
        pairs = listed([f"{scheme} those of {other}" for scheme, other in found.alike.items()])
        told.append(f"The same figures, net for net, gave {pairs}: one scheme each here, counted once.")
    if found.left_out:
        failed = len(found.left_out)
        told.append(
            f"{count(failed, 'net')} failed the audit and {'is' if failed == 1 else 'are'} left out: {_some(found.left_out)}."
        )
    if found.missing:
        told.append(
            f"{count(len(found.missing), 'net')} {'has' if len(found.missing) == 1 else 'have'} no record, as training failed "
            f"or has not ended: {_some(found.missing)}."
        )
    partly = [r for r in found.relations if r.schemes < r.total]
    if partly:
        listing = ", ".join(f"{_name(r.predictor)} on {r.schemes}" for r in partly)
        told.append(f"Not known for all {partly[0].total} schemes, and compared where they are known: {listing}.")
    reasons: dict[str, list[str]] = {}
    for predictor, fit in found.mixed.items():
        if fit.note:
            reasons.setdefault(fit.note, []).append(_name(predictor))
    told += unlike(found.runs)
    return told + [f"Mixed model of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def table(found: Study) -> Table:
    """A row for each predictor."""
    others = (CLEAN, NORM) if NORM in found.values else (CLEAN,)
    names = {CLEAN: "given clean accuracy", NORM: "given \u2016hJ\u2016"}
    columns = (
        "predictor",
        "verdict",
        "schemes",
        "between schemes",
        "interval, all together",
        "p, adjusted",
        "cluster bootstrap",
        "within schemes",
        *(names[other] for other in others),
        "points a standard deviation",
        "unseen pairs ordered rightly, %",
    )
    rows = [
        (
            _name(r.predictor),
            r.verdict,
            f"{r.schemes} of {r.total}" if r.schemes < r.total else str(r.schemes),
            f"{r.between.value:+.2f}" if r.between else "",
            _interval(r.between),
            "" if r.p is None or r.between is None else f"{r.p:.3f}" if r.p >= 0.001 else f"{r.p:.0e}",
            _interval(r.bootstrap),
            _both(r.within),
            *(_both(r.given.get(other)) for other in others),
            _effect(found.mixed[r.predictor].estimate),
            "" if r.order is None else f"{100 * r.order:.0f}",
        )
        for r in found.relations
    ]
    note = (
        "Rank correlations, on ranks within each field and training; a scheme, the mean over its nets, is one observation. "
        "Between schemes: the interval inverts an exact test and holds for all predictors together. Within: nets of a scheme, "
        "which differ in their seed. Given: what clean accuracy, or the size of the Jacobian, leaves of the correlation "
        "between schemes. Points a standard deviation: of robust accuracy, by a mixed model with clean accuracy beside the "
        "predictor (normal scores), field and training fixed, schemes and seeds random; its interval is Student's, for each by "
        "itself. Unseen pairs: what the other schemes say of two; half by chance. Supported: only correlations of "
        "the sign that stability would give; refuted: none of that sign that would be "
        f"at least {WEAK} without the noise of the seeds. No correlation is a cause."
    )
    return Table("relation", columns, rows, note)


def write_study(found: Study, folder: Path) -> None:
    """relation.html in a folder, figures and table beside it."""
    parts = [
        Figure(
            file_name(r.predictor),
            _scatter(found, r.predictor),
            f"{_name(r.predictor)} against robust accuracy: rank correlation between schemes "
            f"{between.value:+.2f}. A dot is a scheme, the mean of its nets in a field and training; its cross, their standard "
            "errors. Axes do not start at zero.",
        )
        for r, between in [(r, r.between) for r in found.relations if r.between][:DRAWN]
    ]
    meanings = {_name(r.predictor): measures.meaning(r.predictor) for r in found.relations}
    sources = [
        (Code(c.command), Terms({"training": c.settings.training, "seeds": listed(c.seeds), **made_with(c)}))
        for c in found.runs
    ]
    Page(
        "Does the stability of a scheme go with robustness?",
        f"{count(len(set(found.nets.scheme)), 'scheme')} on {found.runs[0].dataset}",
        sentences(found),
        [
            Section("Predictors", (table(found),)),
            Section("Figures", tuple(parts)),
            Section("What they are", (Terms(meanings),)),
            Section("Runs", tuple(part for parts in sources for part in parts)),
        ],
        SMOKE if any(c.smoke for c in found.runs) else "",
        departures((f"the run of {c.settings.training} training", c) for c in found.runs),
    ).write(folder / "relation.html")


@matplotlib.rc_context(STYLE)
def _scatter(found: Study, predictor: str) -> Drawing:
    """A panel for each field and training, which differ in robustness whatever the scheme."""
    x, y = found.values[predictor], 100 * found.nets.robust
    strata: list[Any] = list(dict.fromkeys(found.nets.stratum))
    own = {stratum: np.array([s == stratum for s in found.nets.stratum]) & ~np.isnan(x) for stratum in strata}
    shown = {stratum: at for stratum, at in own.items() if at.any()}
    drawing = Drawing(figsize=(10, 4.6 * len(shown)))
    for axes, (stratum, at), colour in zip(drawing.subplots(len(shown), squeeze=False)[:, 0], shown.items(), PALETTE * 9):
        title = f"{stratum[0]}, {stratum[1]} training" + f", {count(stratum[2], 'step')}" * (stratum[2] > 1)
        axes.set(xlabel=_name(predictor), ylabel=f"right under {found.attack}, %", title=title)
        schemes = [str(scheme).split("(")[0] for scheme, known in zip(found.nets.scheme, at) if known]
        named_scatter(axes, x[at], y[at], schemes, colour=colour, label="means of schemes")
    return drawing


def _some(names: Sequence[str]) -> str:
    """A list that stays short."""
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return "; ".join(names[:LISTED]) + more


def _name(predictor: str) -> str:
    return predictor.replace("_", " ")


def _interval(estimate: Estimate | None) -> str:
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]" if estimate else ""


def _effect(estimate: Estimate | None) -> str:
    return f"{points(estimate.value)} {interval(estimate, '+')}" if estimate else ""


def _both(estimate: Estimate | None) -> str:
    return f"{estimate.value:+.2f} {_interval(estimate)}" if estimate else ""
