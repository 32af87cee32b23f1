"""The page of reproduce_ie_skips.py: what the authors' way of attacking says of two nets, and what an honest one says."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

import experiments.harness.statistics as statistics
import stability
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.report.comparison import SMOKE
from experiments.harness.report.environment import departures
from experiments.harness.report.page import Code, Listed, Page, Section, Table, Text
from experiments.harness.run.config import RunConfig
from experiments.harness.statistics.masks import Gap, Masks
from experiments.harness.words import count, interval, percent, points, radius

# FGSM, PGD-20 and PGD-100 by steps of epsilon / 8: 1/255 at 8/255, as the paper's text has it.
SPECS = {"FGSM": "fgsm", "PGD-20": "pgd20", "PGD-100": "pgd(steps=100,relative_step=12.5)"}
NAMES = {title: str(stability.get_attack(spec)) for title, spec in SPECS.items()}
WAYS = {"detached": "in the authors' way", "exact": "honestly"}
CLAIMED = "PGD-20"  # what the authors' way is read by
TRAINED = {"standard": "natural", "summed": "adversarial"}
# Of the paper's protocol: what a setting of ours is compared with, and how the report calls it.
THEIRS = {
    "epochs": (150, "Epochs"),
    "batch_size": (128, "Images a batch"),
    "learning_rate": (0.1, "Peak learning rate"),
    "weight_decay": (5e-4, "Weight decay"),
    "optimizer": ("sgd", "Optimiser"),
    "schedule": ("multistep", "Schedule"),
    "train_gradient": ("detached", "Gradient in training"),
}


def table(found: Sequence[Comparison]) -> Table:
    """Each net at each radius."""
    columns = (
        "data, training",
        "\u03b5",
        "net",
        "no attack",
        *(f"{title}, detached" for title in SPECS),
        *(f"{title}, exact" for title in SPECS),
        "worst of all, exact",
        "audit",
    )
    rows: list[tuple[str, ...]] = []
    for run in found:
        for eps in run.radii:
            for arm in run.arms:
                if arm.records:
                    along = (_masks(arm, eps, way, name) for way in WAYS for name in NAMES.values())
                    shares = [arm.masks(0.0), *along, arm.masks(eps)]
                    cells = (percent(statistics.accuracy(own).value) if own else "" for own in shares)
                    rows.append((_title(run), radius(eps), _net(arm, run), *cells, _audited(arm)))
    return Table("reproduction", columns, rows, keys=3)


def summary(found: Sequence[Comparison]) -> Table:
    """The table for a terminal: middle radii, and of the attacks what both ways are read by."""
    whole, middle = table(found), {(_title(run), radius(run.middle)) for run in found}
    kept = [0, 1, 2, 3, *(j for j, column in enumerate(whole.columns) if column.startswith((CLAIMED, "worst"))), -1]
    columns, *rows = (
        tuple(row[j] for j in kept) for row in (whole.columns, *(row for row in whole.rows if tuple(row[:2]) in middle))
    )
    return Table("summary", columns, rows, keys=3)


def sentences(found: Sequence[Comparison]) -> list[str]:
    """What both ways say at the middle radius, a sentence for each run and each net beside the first."""
    by = {"detached": f"{CLAIMED} along the detached gradient", "exact": "all attacks, exact gradient"}
    told = []
    for run in found:
        known = differences(run)
        for arm in run.others:
            parts = [
                f"{words} ({by[way]}) {points(gap.estimate.value)} points {interval(gap.estimate, '+')}, {gap.verdict}"
                for way, words in WAYS.items()
                if (gap := known.get((arm.name, way, run.middle)))
            ]
            pair = f"{_net(arm, run)} against {_net(run.reference, run)}"
            told.append(f"{_title(run)}, \u03b5 = {radius(run.middle)}: {pair} {'; '.join(parts)}.")
    return told


def differences(run: Comparison) -> Mapping[tuple[str, str, float], Gap]:
    """{(arm, way, radius): its difference to the first}: a family, whose intervals cover together."""
    pairs = {}
    for arm in run.others:
        for eps in run.radii:
            claimed = _masks(arm, eps, "detached", NAMES[CLAIMED]), _masks(run.reference, eps, "detached", NAMES[CLAIMED])
            pairs[arm.name, "detached", eps] = claimed
            pairs[arm.name, "exact", eps] = arm.masks(eps), run.reference.masks(eps)
    return statistics.gaps(pairs, margin=run.config.margin, train=run.config.resplit)


def deviations(config: RunConfig) -> Iterator[str]:
    """Where a run is not what the authors did, and why; a sentence each."""
    for name, (theirs, words) in THEIRS.items():
        ours = getattr(config.settings, name)
        if ours != theirs:
            yield f"{words}: {ours} instead of {theirs}, as chosen for this run."
    if config.model != "resnet18":
        yield f"Network: {config.model} instead of ResNet-18, -34 and -50, as chosen for this run."
    if config.train_limit or config.test_limit:
        yield f"{config.data.get('train')} training and {config.data.get('test')} test images: what this machine carries."
    yield (
        "The epoch is chosen on held-out training images, under a PGD of 10 steps in adversarial training; they chose it on "
        "the test images under one step, which flatters."
    )
    yield f"Gradients are clipped at {config.settings.gradient_clip:g} in the 2-norm, so that one batch cannot end a training."
    yield "The last stage corrects with the right sign; in their code it is flipped, and raises the implicit residual."
    yield "A bottleneck corrects with its own function; in their code with another one, random and frozen in part."
    yield "gamma is the same in training and in the attacks; their scripts have 0.1 in the first, 0.05 in the second."
    yield (
        "Attacks step by \u03b5/8 and end exactly within \u03b5; their text has 1/255 at 8/255, their script 0.003 at 0.031."
        " The other radii, the ensemble and the audit are ours."
    )
    if config.dataset not in ("cifar10", "cifar100"):
        yield f"Their settings beside CIFAR could not be obtained: radii and augmentation on {config.dataset} are ours."


def write_reproduction(found: Sequence[Comparison], folder: Path) -> None:
    """reproduction.html in a folder."""
    note = (
        "Right answers in per cent, means over seeds. Detached: the attack follows the gradient of the explicit predictor, as "
        "the authors' code does; ResNet has one gradient. Exact: the gradient of what the net computes. Worst of all: images "
        "that withstand every attack along it, the ensemble's too. No figure on this page is the paper's: its tables could not "
        "be obtained."
    )
    sections = []
    for run in found:
        own = table([run])
        shown = Table(_folder(run), own.columns[1:], [row[1:] for row in own.rows], keys=2)
        link = Text(Markup('The whole run: <a href="{0}">{0}</a>').format(f"{_folder(run)}/report.html"))
        parts = (shown, link, Listed(tuple(deviations(run.config))), Code(run.config.command))
        sections.append(Section(f"{_title(run)}: figures, deviations from the paper", parts))
    seeds = len(found[0].config.seeds)
    Page(
        "Do implicit Euler skip connections make a ResNet more robust?",
        f"The protocol of Li, He and Lin (2020), {count(seeds, 'seed')}",
        sentences(found),
        [*sections, Section("What the columns are", (Text(note, note=True),))],
        SMOKE if any(run.config.smoke for run in found) else "",
        departures((_title(run), run.config) for run in found),
    ).write(folder / "reproduction.html")


def _masks(arm: Arm, epsilon: float, way: str, attack: str) -> Masks:
    return arm.masks(epsilon, way, attack) or arm.masks(epsilon, "exact", attack)


def _title(run: Comparison) -> str:
    return f"{run.config.dataset}, {_training(run)} training"


def _folder(run: Comparison) -> str:
    return f"{run.config.dataset}-{_training(run)}"


def _training(run: Comparison) -> str:
    return TRAINED.get(run.config.settings.training, run.config.settings.training)


def _net(arm: Arm, run: Comparison) -> str:
    first, *others = run.config.schemes
    if arm.scheme == first:
        return "ResNet"
    return "IE-ResNet" if len(others) == 1 else f"IE-ResNet, {arm.scheme}"


def _audited(arm: Arm) -> str:
    verdicts = {record.verdict for record in arm.records} - {"not audited"}
    return "failed" if "failed" in verdicts else "passed" if verdicts else ""
