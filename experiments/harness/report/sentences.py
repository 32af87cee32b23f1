"""What a run found, in words: the summary table, the headline and the caveats, all made from the records."""

from collections.abc import Iterator, Mapping

import numpy as np
from markupsafe import Markup
from scipy.special import stdtrit

import experiments.harness.statistics as statistics
import stability
from experiments.harness.report import measures
from experiments.harness.report.arms import Arm, Comparison, standing
from experiments.harness.report.page import Table
from experiments.harness.run.schema import CHEAP
from experiments.harness.words import count, interval, listed, norm_symbol, percent, points

MANY = 6  # comparisons beyond which the headline counts verdicts instead of listing them


def summary_table(found: Comparison) -> Table:
    """Accuracies and paired differences to the first arm."""
    columns = (
        "attack",
        "scheme",
        "accuracy, %",
        "95 % interval",
        "difference, points",
        "interval",
        "from images, %",
        "verdict",
        "untrusted, %",
    )
    rows = [
        (
            found.attack_at(eps),
            arm.label,
            percent(mean.value),
            interval(mean),
            *(compared(gap, eps) if (gap := found.gap(arm, eps)) else ("", "", "", standing(arm is found.reference))),
            percent(_untrusted(arm, eps)),
        )
        for eps in [0.0, *found.radii]
        for arm in found.arms
        if (mean := found.accuracy(arm, eps))
    ]
    return Table("accuracy", columns, rows, _meaning(found), keys=2)


def _meaning(found: Comparison) -> str:
    """What the intervals and verdicts of the table say."""
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
    alone = len(seeds) > 1 and any(len(arm.records) == 1 for arm in found.arms)
    looked += " Of a scheme with one net left the interval is over its images alone." * alone
    margin = f"{100 * config.margin:g} points"
    return Markup(
        f"{meaning}{looked} <b>Equivalent</b>: the interval lies within {margin} of zero. <b>Cannot tell yet</b>: it covers "
        "zero and reaches beyond the margin. <b>Untrusted</b>: images "
        "counted as broken because a cold re-solve at tolerance 10\u207b\u2076 did not converge, or ended at "
        "another root than the one connected to the state, so that the answer hangs on the solver. All comparisons are "
        "with {}."
    ).format(found.reference.name)


def compared(gap: statistics.Gap, eps: float) -> tuple[str, ...]:
    """Cells of a paired difference: its value, its interval, the images' share of its variance, its verdict."""
    estimate = gap.estimate
    share = "" if estimate.images is None else f"{100 * estimate.images:.0f}"
    said = gap.verdict if eps else gap.verdict.replace("robust", "accurate")
    return points(estimate.value), interval(estimate, "+"), share, said


def headline(found: Comparison) -> list[str]:
    """The answer in plain sentences, at the middle radius: what differs, what cannot be told, and what to distrust."""
    config, eps, first = found.config, found.middle, found.reference
    reference = found.measured(first, eps)
    where = f"On {config.dataset}, {count(len(config.seeds), 'seed')}, {found.attack_at(eps)}"
    sentences = ["A smoke run: it exercises the program, and its numbers mean nothing."] if config.smoke else []
    gaps = {arm.name: (arm, gap) for arm in found.others if (gap := found.gap(arm, eps))}
    words = (statistics.MORE, statistics.LESS, statistics.EQUIVALENT, statistics.OPEN)
    named = {verdict: [name for name, (_, gap) in gaps.items() if gap.verdict == verdict] for verdict in words}
    verbs = {verdict: "is" if len(names) == 1 else "are" for verdict, names in named.items()}
    if len(gaps) > MANY:
        named = {verdict: [f"{len(names)} of {len(gaps)} schemes"] if names else [] for verdict, names in named.items()}
    parts = [
        f"{', '.join(named[verdict])} {verbs[verdict]} {verdict} than {first.name}" for verdict in words[:2] if named[verdict]
    ]
    if named[statistics.EQUIVALENT]:
        equal = ", ".join(named[statistics.EQUIVALENT])
        parts.append(f"{equal} against {first.name}: equivalent within {100 * config.margin:g} points")
    if named[statistics.OPEN]:
        parts.append(f"{', '.join(named[statistics.OPEN])} against {first.name}: cannot tell yet which is more robust")
    sentences.append(
        f"{where}: {'; '.join(parts)}."
        if gaps
        else f"{where}: {first.name} classifies {percent(reference.value)} % rightly, 95 % interval "
        f"{interval(reference)}. "
        + ("No other scheme has a seed in common with it." if found.others else "One scheme alone compares with nothing.")
    )
    for name, (arm, gap) in gaps.items() if len(gaps) <= MANY else ():
        own, estimate = found.measured(arm, eps), gap.estimate
        sentences.append(
            f"{name} {percent(own.value)} %, {first.name} {percent(reference.value)} %: difference "
            f"{points(estimate.value)} points, interval {interval(estimate, '+')} over {estimate.n} {estimate.over}"
            f"{' of one seed' * (estimate.over == 'images')}: {gap.verdict}."
        )
    sentences += _further(found, gaps)
    return [*sentences, *measures.field_sentences(found), *_masking(found), *audited(found)]


def _further(found: Comparison, gaps: Mapping[str, tuple[Arm, statistics.Gap]]) -> Iterator[str]:
    """How many seeds it would take, from the variances seen."""
    unclear = [gap for _, gap in gaps.values() if gap.verdict == statistics.OPEN and gap.estimate.over != "images"]
    needed = [gap.needed for gap in unclear if gap.needed]
    if not unclear:
        return
    if found.config.resplit:
        yield "Further seeds narrow the intervals, but not beyond what all splits of the same images share."
    elif len(needed) == len(unclear):
        yield (f"By the variances seen here, about {max(needed)} seeds in all would tell in four runs of five.")
    elif needed:
        yield (
            f"By the variances seen here, about {max(needed)} seeds in all would tell for {len(needed)} of {len(unclear)} in "
            "four runs of five; for the others there are too few test images for this margin."
        )
    else:
        yield "By the variances seen here no number of seeds would tell: there are too few test images for this margin."


def _masking(found: Comparison) -> Iterator[str]:
    """What the detached gradient would have let one believe."""
    detached = [(arm.name, gap) for arm in found.arms if (gap := found.detached_gap(arm, found.middle))]
    masked = [(name, gap) for name, gap in detached if gap.verdict == "higher"]
    if masked:
        sizes = [gap.value for _, gap in masked]
        told = (
            ", ".join(f"{name} by {points(gap.value)[1:]} points" for name, gap in masked)
            if len(masked) <= MANY
            else f"{len(masked)} schemes by {points(min(sizes))[1:]} to {points(max(sizes))[1:]} points"
        )
        yield (f"Attacked along the detached gradient, nets would seem more robust than they are (gradient masking): {told}.")
    missed = [name for name, gap in detached if gap.verdict == "lower"]
    if missed:
        yield (
            f"The detached gradient breaks more images of {', '.join(missed)} than the exact one: the exact attack is too "
            "weak there, and the accuracy shown too high."
        )


def audited(found: Comparison) -> Iterator[str]:
    """How many nets were audited, and who failed."""
    audits = [record.audit for record in found.nets if record.audit]
    cheap = sum(audit.extent == CHEAP for audit in audits)
    if all(audit.passed for audit in audits):
        known = f"{len(audits) - cheap} of {len(found.nets)} nets were audited, and"
        if len(audits) - cheap == len(found.nets):
            known = f"All {len(audits)} nets" if len(audits) > 1 else "The net"
        passed = (
            f"{known} passed the audit."
            if len(audits) > cheap
            else f"No net was audited{' whole' * bool(cheap)}: gradients may be masked."
        )
        yield passed + f" Of {count(cheap, 'net')} the checks that take seconds were run, and passed." * bool(cheap)
    hanging = [arm.name for arm in found.arms if any(m.path_dependent for r in arm.records for m in r.measurements)]
    if hanging:
        worst = max(m.path_dependent / m.total for record in found.records for m in record.measurements)
        yield (
            f"Of {', '.join(hanging)} the answer hangs on the path of the solver on up to {percent(worst)} % of the images: an "
            "equation has several roots, or none that is connected to the state. They count as broken."
        )
    failed = [arm.name for arm in found.arms if arm.label != arm.name]
    if failed:
        yield (
            f"Not to be trusted: {', '.join(failed)} failed the audit (marked \u2020), so the robustness shown may be an "
            "artefact."
        )


def _untrusted(arm: Arm, eps: float) -> float:
    return float(
        np.mean(
            [
                m.untrusted / m.total
                for record in arm.records
                for m in record.measurements
                if m.epsilon == eps and m.gradient == "exact"
            ]
        )
    )


def caveats(found: Comparison) -> list[str]:
    """Sentences on what the figures of this run do not show; each only where it applies."""
    config, n, nets = found.config, len(found.config.seeds), found.nets
    earlier = [seeds for seeds in config.reported if seeds < n]
    attacks = sorted(found.attacks())
    missing = [
        f"{arm.name}, seed {seed}"
        for arm in found.arms
        for had in [{record.seed for record in arm.records}]
        for seed in config.seeds
        if seed not in had
    ]
    overfitted = [
        f"{arm.name}, seed {r.seed}" for arm in found.arms for r in arm.records if any(epoch.overfitting for epoch in r.history)
    ]
    cheap = sum(record.audit is not None and record.audit.extent == CHEAP for record in nets)
    unmeasured = [
        f"{arm.name}, seed {r.seed}" for arm in found.arms for r in arm.records if r.seconds and "stability" not in r.seconds
    ]
    clouds = [values for arm in found.arms for values in arm.cloud().values()]
    rightmost = max((stability.snapped(values @ (1, 1j)).real.max(initial=-np.inf) for values in clouds), default=-np.inf)
    no_region = [arm.name for arm in found.arms if not arm.behind.has_R]
    not_normal = without_spectrum(found)
    first = found.reference
    candidates = [
        (
            missing,
            f"Cases are missing ({'; '.join(missing)}): means may rest on fewer nets, differences use the seeds "
            "that both schemes have.",
        ),
        (
            True,
            f"Robust accuracy is an upper bound: only {', '.join(attacks) or 'no attack'} in the "
            f"{norm_symbol(config.threat)} ball was run on every image. A longer attack, another loss, a black-box attack "
            "or another norm can break more.",
        ),
        (
            config.settings.training == "standard",
            "The nets were trained without attacks. Adversarial training can change which scheme is ahead.",
        ),
        (
            overfitted,
            f"Catastrophic overfitting in training ({'; '.join(overfitted)}): at some epoch PGD broke held-out images "
            "that FGSM did not; the epoch chosen may come from before.",
        ),
        (config.dataset == "digits", "Digits are 1,797 grey scans of 8\u00d78 pixels. Nothing here speaks of natural images."),
        (
            n == 1,
            "One seed: another draw of weights and batches may reverse a difference, however narrow its interval over images, "
            "so that no scheme has a verdict.",
        ),
        (
            1 < n < 6,
            f"{count(len(config.seeds), 'seed')}: the interval is {stdtrit(n - 1, 0.975):.1f} standard errors to either side: "
            "differences of some points can hide in it. \u201cCannot tell yet\u201d is not \u201cequal\u201d.",
        ),
        (
            earlier and not config.looks,
            f"The run was reported after {', '.join(map(str, earlier))} seeds and then went on: verdicts that are read, and "
            "read again with more seeds, are false more often than in 5 % of tables. --until-clear plans for that.",
        ),
        (
            config.splits == "fixed",
            "All nets were trained on one split of the data: another one is not in the intervals.",
        ),
        (
            len(found.arms) > 1,
            "Schemes share weights at the start, batches and hyperparameters, which were "
            "tuned for none of them; they do not share their cost.",
        ),
        (
            rightmost > 0,
            "A-stability speaks of the left half-plane. The rightmost h\u03bb measured is "
            f"{rightmost:.2g} > 0: there the flow itself grows, and no A-stable scheme has to damp it.",
        ),
        (
            rightmost > -np.inf,
            "The clouds are Ritz values at a few clean test images. Only the outermost approximate "
            "eigenvalues; how many lie where means nothing. Eigenvalues do not bound the transient "
            "growth of non-normal Jacobians; the norm of a step does.",
        ),
        (not_normal, f"R(h\u03bb) of {', '.join(not_normal)} is a step's spectrum for normal Jacobians only."),
        (
            no_region,
            f"{', '.join(no_region)}: the steps depend on the data, so there is no R(z), no region and no "
            "place in those figures; attack gradients may be masked.",
        ),
        (
            True,
            f"A relation between a stability measure and robustness across {len(nets)} nets is no cause: "
            "whatever else differs between schemes differs with it.",
        ),
        (not all(record.audit for record in nets), "Only the nets in the audit table were audited."),
        (
            cheap,
            f"{count(cheap, 'net')} had the checks of the audit that take seconds, and these alone: gradients that only longer "
            "attacks, or attacks without gradients, unmask would go unseen there.",
        ),
        (
            unmeasured,
            f"Dynamics were not measured ({'; '.join(unmeasured)}): the time did not suffice, and stability measures are "
            "means over the other nets.",
        ),
        (first.label != first.name, f"{first.name}, with which all others are compared, failed its own audit."),
    ]
    return [sentence for applies, sentence in candidates if applies]


def without_spectrum(found: Comparison) -> list[str]:
    """Names of arms for which R(h lambda) is not a step's spectrum unless the Jacobian is normal."""
    return [arm.name for arm in found.arms if not arm.behind.analytic]
