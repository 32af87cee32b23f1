"""The figures of a comparison: each function draws one question; None where there is nothing to draw."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import experiments.harness.statistics as statistics
from experiments.harness.report.arms import Arm, Comparison, net_values
from experiments.harness.report.drawing import FAINT, SMALL, STYLE, legend, looks, panels
from experiments.harness.statistics import Estimate
from experiments.harness.words import count, norm_symbol, radius

MEASURES = {  # metric: what its axis says; in order of preference for the figure of stability against robustness
    "step_norm": r"$\|\partial y_{n+1}/\partial y_n\|_2$, norm of one step's Jacobian",
    "max_abs_R": r"largest $|R(h\lambda)|$ of a block, over Ritz values",
    "log_norm": r"$\mu_2(hJ)$, logarithmic norm of a block",
    "max_real": r"largest Re $h\lambda$ of a block, over Ritz values",
    "spectral_radius": r"spectral radius of $hJ$, from Ritz values",
}
NUMBERED = 60  # nets, beyond which dots carry no seeds
RIGHT, DASHED = "images classified rightly, %", (0, (4, 2))


def _key(arms: Sequence[Arm], extra: Sequence[Line2D] = (), line: str = "-", marks: str | None = None) -> list[Line2D]:
    """Handles of a legend."""
    shown = zip(arms, looks(arm.name for arm in arms).values())
    handles = [
        Line2D([], [], ls=line, color=colour, marker=marker if marks is None else marks, label=arm.label)
        for arm, (colour, marker) in shown
    ]
    return [*handles, *extra]


def _percentages(estimates: Iterable[Estimate]) -> np.ndarray:
    return 100 * np.array([(estimate.value, estimate.low, estimate.high) for estimate in estimates]).T


def at(epsilon: float) -> str:
    """A radius as a title."""
    return rf"$\varepsilon$ = {radius(epsilon)}" if epsilon else "no attack"


def measure_of(found: Comparison) -> str | None:
    """The measure of the figure of stability against robustness; None where nothing was measured."""
    known = {row.metric for record in found.records for row in record.stability}
    return next((name for name in [*MEASURES, *sorted(known)] if name in known), None)


def axis_of(metric: str) -> str:
    """What an axis says of a measure."""
    return MEASURES.get(metric, metric.replace("_", " "))


@matplotlib.rc_context(STYLE)
def accuracy_figure(found: Comparison) -> Figure:
    """Accuracy against the radius of the attack, and its paired difference to the first arm, with intervals."""
    arms, epsilons = found.arms, [0.0, *found.radii]
    figure, axes = panels(2, 4.1)
    extra = []
    for arm, (colour, marker) in zip(arms, looks(arm.name for arm in arms).values()):
        for gradient, style in (("exact", "-"), ("detached", DASHED)):
            known = {eps: mean for eps in epsilons if (mean := found.accuracy(arm, eps, gradient))}
            if not known:
                continue
            value, low, high = _percentages(known.values())
            exact = gradient == "exact"
            label, inside = (arm.label, colour) if exact else (f"{arm.label}, detached gradient", "white")
            axes[0].plot([*known], value, ls=style, color=colour, marker=marker, mfc=inside, zorder=3, label=label)
            if exact:
                axes[0].fill_between([*known], low, high, color=colour, alpha=0.13, lw=0)
            else:
                said = "attacked with the detached gradient"
                extra = [Line2D([], [], color=FAINT, ls=DASHED, marker="o", mfc="white", label=said)]
    where = rf"$\varepsilon$, radius of the attack ({norm_symbol(found.config.threat)}, pixel values in [0, 1]); 0: no attack"
    axes[0].set(title="Accuracy", xlabel=where, ylabel=RIGHT, ylim=(-2, 102))
    axes[0].set_xticks(epsilons, [radius(eps) for eps in epsilons])
    if len(arms) > 1:
        _draw_differences(axes[1], found, epsilons)
    else:
        axes[1].remove()
    legend(figure, _key(arms, extra))
    return figure


def _draw_differences(ax: Axes, found: Comparison, epsilons: Sequence[float]) -> None:
    first, others = found.reference, [arm for arm in found.arms if arm is not found.reference]
    shown = looks(arm.name for arm in found.arms)
    spread = 0.7 * len(others) / (len(others) + 1)
    for arm, offset in zip(others, np.linspace(-spread / 2, spread / 2, len(others)) if len(others) > 1 else [0.0]):
        colour, marker = shown[arm.name]
        gaps = {position + offset: gap for position, eps in enumerate(epsilons) if (gap := found.gap(arm, eps))}
        value, low, high = _percentages(gap.estimate for gap in gaps.values()) if gaps else np.zeros((3, 0))
        faces = ["white" if gap.verdict in statistics.UNMOVED else colour for gap in gaps.values()]
        ax.vlines([*gaps], low, high, color=colour, lw=1.5)
        ax.scatter([*gaps], value, 42, faces, marker=marker, edgecolors=colour, linewidths=1.5, zorder=3, label=arm.label)
    ax.axhline(0, color=shown[first.name][0], lw=1.7, zorder=1)
    ax.axhspan(-100 * found.config.margin, 100 * found.config.margin, color=FAINT, alpha=0.12, lw=0, zorder=0)
    ax.grid(axis="x", visible=False)
    title = f"Difference to {first.label}, paired; intervals that hold together"
    where = r"$\varepsilon$, radius of the attack"
    ax.set(title=title, ylabel="percentage points", xlabel=where, xlim=(-0.6, len(epsilons) - 0.4))
    ax.set_xticks(range(len(epsilons)), [radius(eps) for eps in epsilons])


@matplotlib.rc_context(STYLE)
def sweep_figure(found: Comparison) -> Figure:
    """Accuracy against the steps for each block, a panel a radius: trained with them, or only run with them."""
    epsilons = [0.0, *found.radii]
    # To this figure a scheme is what an arm is to the others.
    schemes: dict[str, Arm] = {}
    for arm in found.arms:
        before = schemes[arm.scheme].records if arm.scheme in schemes else ()
        schemes[arm.scheme] = replace(arm, name=arm.scheme, records=(*before, *arm.records))
    figure, axes = panels(len(epsilons), 3.4, sharey=True)
    fewest, ticks = min(arm.trained_substeps for arm in found.arms), sorted({arm.substeps for arm in found.arms})
    for ax, eps in zip(axes, epsilons):
        for scheme, (colour, marker) in zip(schemes.values(), looks(schemes).values()):
            for again in (False, True):
                own = {
                    arm.substeps: arm
                    for arm in found.arms
                    if arm.scheme == scheme.scheme
                    and arm.records
                    and not arm.swapped
                    and arm.trained_substeps == (fewest if again else arm.substeps)
                }
                if len(own) < 2:
                    continue
                value, low, high = _percentages(found.measured(own[steps], eps) for steps in sorted(own))
                style, inside, order = ("--", "white", 2) if again else ("-", colour, 3)
                ax.errorbar(
                    sorted(own),
                    value,
                    np.abs([value - low, high - value]),
                    ls=style,
                    color=colour,
                    elinewidth=0.8,
                    marker=marker,
                    mfc=inside,
                    zorder=order,
                )
                told = f"{scheme.label}{f' trained with {fewest}' * again}"
                ax.lines[-1].set_label(told)
        ax.set(title=at(eps), xscale="log", xlabel="steps for each block")
        ax.set_xticks(ticks, [*map(str, ticks)])
        ax.minorticks_off()
    axes[0].set_ylabel(RIGHT)
    rerun = Line2D([], [], color=FAINT, ls="--", marker="o", mfc="white", label=f"weights trained with {fewest}")
    legend(figure, _key([*schemes.values()], [rerun]))
    return figure


@matplotlib.rc_context(STYLE)
def measure_figure(found: Comparison, metric: str | None = None) -> Figure | None:
    """One stability measure of each trained net against robust accuracy, a panel a radius; None without measures."""
    metric, epsilons = metric or measure_of(found), found.radii
    if metric is None or not epsilons:
        return None
    figure, axes = panels(len(epsilons), 3.6)
    for ax, eps in zip(axes, epsilons):
        for arm, (colour, _) in zip(found.arms, looks(arm.name for arm in found.arms).values()):
            nets = [net for net in net_values(arm, metric, eps) if np.isfinite(net.value)]
            x, y = [net.value for net in nets], [100 * net.robust for net in nets]
            few = len(found.records) <= NUMBERED
            ax.scatter(x, y, 150 if few else 12, colour, edgecolors="white", linewidths=0.8, alpha=0.9, label=arm.label)
            for net, across, up in zip(nets, x, y) if few else ():
                text = str(net.record.seed)
                ax.text(across, up, text, fontsize=SMALL, color="white", weight="bold", ha="center", va="center_baseline")
        ax.set_title(at(eps))
        ax.margins(0.15)
    axes[0].set_ylabel("robust accuracy, %")
    beyond = {net.record.key for arm in found.arms for net in net_values(arm, metric, found.middle) if np.isinf(net.value)}
    left_out = f" ({count(len(beyond), 'net')} at infinity not shown)" if beyond else ""
    figure.supxlabel(f"{axis_of(metric)}, mean over blocks and images{left_out}", fontsize=9)
    legend(figure, _key(found.arms, line="", marks="o"))
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(found: Comparison) -> Figure:
    """Training loss and held-out accuracy, attacked too where training is, against the epoch: one thin line a net."""
    figure, axes = panels(2, 2.9)
    curves = ((axes[0], "loss", 1, "-"), (axes[1], "held_out", 100, "-"), (axes[1], "held_out_pgd", 100, "--"))
    for arm, (colour, _) in zip(found.arms, looks(arm.name for arm in found.arms).values()):
        for ax, key, scale, line in curves:
            lines, chosen = [], []
            for record in arm.records:
                points = [(epoch.epoch, getattr(epoch, key)) for epoch in record.history]
                if points and all(value is not None for _, value in points):
                    lines.append(np.array(points) * (1, scale))
                    chosen += [lines[-1][index] for index, epoch in enumerate(record.history) if epoch.chosen]
            if lines:
                # One artist for an arm: a run may have thousands of nets.
                ax.add_collection(LineCollection(lines, colors=colour, linewidths=1, alpha=0.8, linestyles=line))
                ax.plot(*np.reshape(chosen, (-1, 2)).T, ".", color=colour, alpha=0.8)
                ends = np.mean([(points[0], points[-1]) for points in lines], axis=0)
                ax.plot(*ends.T, ls="", label=f"{arm.label}{', attacked' * (line == '--')}, mean of {len(lines)}")
    axes[0].set(title="Training loss", xlabel="epoch", ylabel="mean loss of an epoch", yscale="log")
    axes[1].set(title="Accuracy on held-out images", xlabel="epoch", ylabel=RIGHT)
    for ax in axes:
        ax.autoscale()
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend(figure, _key(found.arms, marks=""))
    return figure
