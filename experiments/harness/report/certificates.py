"""What certify.py shows: the table of field x scheme, the plot of certificates and attacks, the page, CSV and LaTeX."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from rich.console import Console

import experiments.harness.statistics as statistics
from experiments.harness.command import show_table
from experiments.harness.report.arms import standing
from experiments.harness.report.drawing import INK, PALETTE, STYLE
from experiments.harness.report.environment import departures, made_with
from experiments.harness.report.page import Code, Figure, Page, Section, Table, Terms
from experiments.harness.run.certified import INSIDE, CertifyConfig, Findings
from experiments.harness.words import count, interval, norm_symbol, percent, points, radius

Nets = Mapping[str, Mapping[int, Findings]]  # {field and scheme: {seed: findings}}
STYLES: tuple[Any, ...] = (":", "-.", "--", (0, (1, 3)), (0, (5, 1)))  # of the attacks
TIMES = ("training", "certificate", "attack")


def rows(config: CertifyConfig, nets: Nets) -> list[tuple[str, ...]]:
    """The table as rows of strings, header first; intervals over seeds and images, of one seed over images."""
    middle = statistics.middle(sorted(config.radii))
    gaps = _gaps(nets, middle)
    header = ["field, scheme", "seeds", "parameters", "epochs", "training, s", "clean, %", "interval"]
    for r in config.radii:
        header += [f"certified at {radius(r)}, %", "interval", "under attack, %", "certified / attacked"]
    header += [
        f"difference at {radius(middle)}, points",
        "interval",
        "verdict",
        "gradient kept",
        "abstained, %",
        "certifying, s",
    ]
    found = [tuple(header)]
    for label, seeds in nets.items():
        nets_of = list(seeds.values())
        training = [net.training for net in nets_of if net.training]
        clean = _accuracy(seeds, 0.0)
        cells = [
            label,
            str(len(seeds)),
            f"{training[0].parameters:,}" if training else "",
            str(training[0].epochs) if training else "",
            _training_seconds(seeds),
            percent(clean.value),
            interval(clean),
        ]
        for r in config.radii:
            proven, tightness = _accuracy(seeds, r), _tightness(seeds, r)
            cells += [percent(proven.value), interval(proven)]
            cells += ["", ""] if tightness is None else [percent(tightness[1]), f"{tightness[0]:.2f}"]
        gap = gaps.get(label)
        own = standing(label == next(iter(nets)))
        cells += [points(gap.estimate.value), interval(gap.estimate, "+"), _verdict(gap)] if gap else ["", "", own]
        abstained = np.mean([net.certified.right.untrusted / net.certified.right.total for net in nets_of])
        cells += [
            f"{np.mean([net.certified.kept for net in nets_of]):.2f}" if config.norm == "l2" else "",  # it is one of L2
            percent(float(abstained)),
            f"{np.mean([net.seconds('certificate') for net in nets_of]):.1f}",
        ]
        found.append(tuple(cells))
    return found


def tidy(config: CertifyConfig, nets: Nets) -> list[tuple[Any, ...]]:
    """certificates.csv: one row a network, radius and attack ("certified": the proof), the header first."""
    found: list[tuple[Any, ...]] = [("pair", "seed", "norm", "radius", "attack", "right", "total", "share", "abstained")]
    for label, seeds in nets.items():
        for seed, net in seeds.items():
            for r in (0.0, *config.radii):
                mask, right = net.certified_at(r), net.certified.right
                found.append(
                    (
                        label,
                        seed,
                        config.norm,
                        r,
                        "certified",
                        int(mask.sum()),
                        len(mask),
                        round(mask.mean(), 6),
                        right.untrusted,
                    )
                )
            for line in net.lines:
                if line.measurement:
                    m = line.measurement
                    found.append(
                        (label, seed, config.norm, m.epsilon, m.attack, m.correct, m.total, round(m.accuracy, 6), m.untrusted)
                    )
    return found


def sentences(config: CertifyConfig, nets: Nets) -> list[str]:
    """What was found, in words: who proves most at the middle radius, whether anything broke inside, what is refused."""
    middle = statistics.middle(sorted(config.radii))
    shares = {label: _accuracy(seeds, middle) for label, seeds in nets.items()}
    best = max(shares, key=lambda label: shares[label].value)
    norm = norm_symbol(config.norm)
    found = ["A smoke run: it exercises the program, and its numbers mean nothing."] if config.smoke else []
    found.append(
        f"On {config.dataset}, {count(len(next(iter(nets.values()))), 'seed')}, {best} certifies most at {norm} radius "
        f"{radius(middle)}: {percent(shares[best].value)} % of the test images, 95 % interval {interval(shares[best])}, "
        f"{percent(_accuracy(nets[best], 0.0).value)} % right without an attack."
    )
    for label, gap in _gaps(nets, middle).items():
        estimate = gap.estimate
        found.append(
            f"{label} against {next(iter(nets))}: {points(estimate.value)} points there, interval {interval(estimate, '+')}: "
            f"{_verdict(gap)}."
        )
    hunts = [net.hunt for seeds in nets.values() for net in seeds.values() if net.hunt]
    if hunts:
        broken, images = sum(hunt.broken for hunt in hunts), sum(hunt.images for hunt in hunts)
        found.append(
            f"Attacked within {INSIDE} of their certificates, {broken} of {images} images were given another class, "
            f"{sum(hunt.abstained for hunt in hunts)} none."
            + " A certificate is wrong: do not believe any of them."
            * bool(broken)
        )
    found += [f"{pair.label} is not trained: {pair.refused}" for pair in config.pairs if pair.refused]
    return found


def write(config: CertifyConfig, nets: Nets, folder: Path) -> None:
    """report.html with its figure and its tables, and certificates.csv, which is tidy."""
    table = rows(config, nets)
    with open(folder / "certificates.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(tidy(config, nets))
    note = Markup(
        "<b>Certified</b>: right, and no image nearer than the radius is given another class, by theorem, residuals and "
        "rounding included. <b>Under attack</b>: right under every attack of the run, as the certified network judges; an "
        "upper bound of what is true, where the certificate is a lower one: their quotient says how tight both are. "
        "Abstentions count as wrong in both."
    )
    cost = Markup(
        "<b>Gradient kept</b>: share of a margin's gradient that reaches the image. Seconds are of this machine; epochs were "
        "chosen so that every training takes about as long."
    )
    caption = (
        "Certified accuracy and accuracy under attack against the radius. Solid: certified. Broken lines: under attack. "
        "The area between the certificate and the worst attack is what neither knows."
    )
    figure = Figure("certificates", _figure(config, nets), caption)
    Page(
        "What cannot be broken",
        f"{config.dataset}, {norm_symbol(config.norm)} balls, {config.data['test']} test images",
        sentences(config, nets),
        [Section("Certificates", (figure, *_narrow(config, table, note, cost))), _hunts(nets), _protocol(config)],
        notices=departures([("this run", config)]),
    ).write(folder / "report.html")


def _narrow(config: CertifyConfig, table: Sequence[Sequence[str]], note: str, cost: str) -> tuple[Table, Table]:
    """The rows as two tables that fit on paper: accuracies, a row for each radius, and what the nets cost."""
    header, *found = table
    first, beyond = 7, 7 + 4 * len(config.radii)
    middle, none = statistics.middle(sorted(config.radii)), ("", "", "")
    accuracies = []
    for row in found:
        accuracies.append((row[0], "clean", *row[5:first], "", "", *none))
        for start, r in zip(range(first, beyond, 4), config.radii):
            compared = row[beyond : beyond + 3] if r == middle else none
            accuracies.append((row[0], radius(r), *row[start : start + 4], *compared))
    columns = (
        "radius",
        "certified, %",
        "interval",
        *header[first + 2 : first + 4],
        "difference, points",
        "interval",
        "verdict",
    )
    costs = [(row[0], *row[1:5], *row[beyond + 3 :]) for row in found]
    return (
        Table("certificates", (header[0], *columns), accuracies, note, keys=2),
        Table("cost", (header[0], *header[1:5], *header[beyond + 3 :]), costs, cost),
    )


def show(config: CertifyConfig, nets: Nets, console: Console) -> None:
    """The table and the sentences, in the terminal."""
    short = [
        (
            "field, scheme",
            "training, s",
            "clean, %",
            *(f"{kind} {radius(r)}" for r in config.radii for kind in ("cert.", "att.")),
        )
    ]
    for label, seeds in nets.items():
        cells = [_training_seconds(seeds), percent(_accuracy(seeds, 0.0).value)]
        for r in config.radii:
            tightness = _tightness(seeds, r)
            cells += [percent(_accuracy(seeds, r).value), "" if tightness is None else percent(tightness[1])]
        short.append((label, *cells))
    wide = show_table(console, f"Certified and under attack, {config.norm}, {config.dataset}, %", short, keys=1)
    for sentence in sentences(config, nets):
        wide.print(sentence, markup=False, highlight=False)


def _training_seconds(seeds: Mapping[int, Findings]) -> str:
    known = [net.training.seconds for net in seeds.values() if net.training]
    return f"{np.mean(known):.1f}" if known else ""


def _accuracy(seeds: Mapping[int, Findings], r: float) -> statistics.Estimate:
    return statistics.accuracy({seed: net.certified_at(r) for seed, net in seeds.items()})


def _verdict(gap: statistics.Gap) -> str:
    return gap.verdict.replace("robust", "certified")


def _gaps(nets: Nets, r: float) -> dict[str, statistics.Gap]:
    """Each pair against the first one, certified at a radius, as one family."""
    masks = {label: {seed: net.certified_at(r) for seed, net in seeds.items()} for label, seeds in nets.items()}
    first, *others = masks
    return statistics.gaps({label: (masks[label], masks[first]) for label in others})


def _tightness(seeds: Mapping[int, Findings], r: float) -> tuple[float, float] | None:
    """(certified share over the share that withstood all attacks, that share), on the images that were attacked."""
    pairs = [(net, mask) for net in seeds.values() if (mask := net.attacked_at(r)) is not None]
    if not pairs:
        return None
    attacked = float(np.mean([mask.mean() for _, mask in pairs]))
    proven = float(np.mean([net.certified_at(r, len(mask)).mean() for net, mask in pairs]))
    return (proven / attacked if attacked else 1.0), attacked


@matplotlib.rc_context(STYLE)
def _figure(config: CertifyConfig, nets: Nets) -> Drawing:
    drawing = Drawing(figsize=(9, 4.6))
    axes, top = drawing.subplots(), 1.15 * max(config.radii)
    grid, tried = np.linspace(0, top, 200), [0.0, *sorted(config.radii)]
    handles = []
    for index, (label, seeds) in enumerate(nets.items()):
        colour = PALETTE[index % len(PALETTE)]
        proven = [100 * np.mean([net.certified_at(r).mean() for net in seeds.values()]) for r in grid]
        axes.plot(grid, proven, color=colour)
        handles.append(Line2D([], [], color=colour, label=label))
        for name, style in zip(config.attacks, STYLES * len(config.attacks)):
            known = {r: mask for r in tried if (mask := _mean_attacked(seeds, r, name)) is not None}
            if known:
                axes.plot([*known], [100 * share for share in known.values()], ls=style, color=colour, marker="o", ms=3)
    for name, style in zip(config.attacks, STYLES * len(config.attacks)):
        handles.append(Line2D([], [], color=INK, ls=style, label=f"under {name}"))
    axes.set(
        xlabel=f"radius ({norm_symbol(config.norm)}, pixel values in [0, 1])",
        ylabel="images right, %",
        ylim=(-2, 102),
        xlim=(0, top),
    )
    drawing.legend(handles=handles, loc="outside upper left", ncols=3)
    return drawing


def _mean_attacked(seeds: Mapping[int, Findings], r: float, name: str) -> float | None:
    """Share that is right under an attack; without one, of the images that are attacked elsewhere."""
    found = [mask.mean() for net in seeds.values() if (mask := net.attacked_at(r, name)) is not None]
    if r == 0:
        sizes = {line.measurement.total for net in seeds.values() for line in net.lines if line.measurement}
        found = [net.certified_at(0.0, max(sizes)).mean() for net in seeds.values()] if sizes else []
    return float(np.mean(found)) if found else None


def _hunts(nets: Nets) -> Section | None:
    table: list[tuple[str, ...]] = [("field, scheme", "seed", "images", "groups", "broken", "abstained", "nearest, of R")]
    for label, seeds in nets.items():
        for seed, net in seeds.items():
            if net.hunt:
                h = net.hunt
                numbers = (seed, h.images, h.groups, h.broken, h.abstained)
                table.append((label, *map(str, numbers), f"{h.nearest:.3f}"))
    note = (
        f"A descent on the margin within {INSIDE} of every image's own radius, then APGD-CE, APGD-T and Square within {INSIDE} "
        "of the smallest of groups of nearly equal ones (nearest: the least of these over its own): nothing may break there."
    )
    hunted = Table("hunts", table[0], table[1:], note, keys=2)
    return Section("Hunted inside the certificates", (hunted,)) if table[1:] else None


def _protocol(config: CertifyConfig) -> Section:
    shown = {
        "Data": f"{config.dataset}, " + ", ".join(f"{number} {name}" for name, number in config.data.items()),
        "Attacks": f"{', '.join(config.attacks)} on {config.attack_images} test images",
        "Tolerance": f"\u03c4 = {config.tau:g}, absolute, for every equation of every prediction",
        **({"Training": f"{config.settings}"} if config.settings else {}),
        **{name: f"SHA-256 of the weights {digest[:16]}" for name, digest in config.weights.items()},
        **made_with(config),
    }
    return Section("Protocol", (Terms(shown), Code(config.command)))
