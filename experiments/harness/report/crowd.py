"""The figures of many schemes, which colours no longer tell apart: each has a row, or its name beside its dot."""

from collections.abc import Hashable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

import experiments.harness.statistics as statistics
from experiments.harness.report.arms import Arm, Comparison, net_values
from experiments.harness.report.drawing import FAINT, INK, PALETTE, SMALL, STYLE, legend, panels
from experiments.harness.report.figures import RIGHT, at, axis_of, measure_of
from experiments.harness.report.labels import label_dots

CROWD = 12  # arms, beyond which the figures of this file are drawn
NAMED = 5  # trainings that are named among many
DECADES = 30.0  # ratio of a measure's values, beyond which its axis is logarithmic
SHADES = ("#000000", "#0072B2", "#56B4E9", "#A6CEE3")  # of radii, darkest without attack
CAPTIONS = {
    "accuracy": "A row for each scheme. Left: accuracy without an attack and under each, mean over seeds, the line its 95 % "
    "interval over seeds and images; hollow where the attack follows the detached gradient. Right: the difference to the first "
    "scheme at the middle radius, paired; intervals hold together. Filled where one scheme is more robust, hollow where this "
    "run cannot tell or the two are equivalent; grey: the margin of equivalence.",
    "measure": "One stability measure against robust accuracy at the middle radius: each dot is the mean "
    "of a scheme, its cross the standard errors over its nets. If stability bought robustness, dots would fall from left to "
    "right. Axes do not start at zero.",
    "training": "Training: mean over the seeds of each scheme, the loss of an epoch and accuracy on held-out training images. "
    "Named are the schemes that end with the lowest held-out accuracy.",
}


@matplotlib.rc_context(STYLE)
def accuracy_figure(found: Comparison) -> Figure:
    """Accuracies at all radii, and the difference to the first arm at the middle one: a row an arm."""
    arms, rows = found.arms, np.arange(len(found.arms))
    epsilons = [0.0, *found.radii]
    figure, (left, right) = panels(2, 1.1 + 0.2 * len(arms), sharey=True)
    handles = []
    for index, eps in enumerate(epsilons):
        colour = SHADES[min(index, len(SHADES) - 1)]
        known = {row: mean for row, arm in zip(rows, arms) if (mean := found.accuracy(arm, eps))}
        for row, mean in known.items():
            left.hlines(row, 100 * mean.low, 100 * mean.high, color=colour, lw=1.2)
        (line,) = left.plot([100 * m.value for m in known.values()], [*known], "o", color=colour, ms=4.5, label=at(eps))
        handles.append(line)
        wrong = {row: mean for row, arm in zip(rows, arms) if (mean := found.accuracy(arm, eps, "detached"))}
        left.plot([100 * m.value for m in wrong.values()], [*wrong], "o", color=colour, mfc="white", ms=4.5, zorder=1.8)
        if wrong and len(handles) == 1 + index and index == len(epsilons) - 1:
            said = "attacked with the detached gradient"
            handles.append(Line2D([], [], ls="", marker="o", color=FAINT, mfc="white", label=said))
    _draw_differences(right, found)
    left.set(title="Accuracy", xlabel=RIGHT, ylim=(len(arms) - 0.4, -0.6))
    left.set_yticks(rows, [arm.label if arm.records else f"{arm.label}: no net" for arm in arms], fontsize=SMALL)
    legend(figure, handles, 5)
    return figure


def _draw_differences(ax: Axes, found: Comparison) -> None:
    gaps = {row: gap for row, arm in enumerate(found.arms) if (gap := found.gap(arm, found.middle))}
    for row, gap in gaps.items():
        low, value, high = (100 * v for v in (gap.estimate.low, gap.estimate.value, gap.estimate.high))
        face = "white" if gap.verdict in statistics.UNMOVED else PALETTE[0]
        ax.hlines(row, low, high, color=PALETTE[0], lw=1.5)
        ax.plot(value, row, "o", color=PALETTE[0], mfc=face)
    # What is read out to those who do not see it: all of them as one series.
    ax.plot([100 * gap.estimate.value for gap in gaps.values()], [*gaps], ls="", label="difference")
    ax.axvline(0, color=INK, lw=1)
    ax.axvspan(-100 * found.config.margin, 100 * found.config.margin, color=FAINT, alpha=0.12, lw=0, zorder=0)
    ax.set(title=f"Difference to {found.reference.label}, {at(found.middle)}", xlabel="percentage points")
    ax.tick_params(axis="y", length=0)


@matplotlib.rc_context(STYLE)
def measure_figure(found: Comparison) -> Figure | None:
    """A measure against robust accuracy at the middle radius, the means of schemes named; None without measures."""
    metric, eps = measure_of(found), found.middle
    if metric is None or not eps:
        return None
    nets = [(net.value, 100 * net.robust, arm.label) for arm in found.arms for net in net_values(arm, metric, eps)]
    if not nets:
        return None
    figure = Figure(figsize=(10, 5))
    axes = figure.subplots()
    axes.set(xlabel=f"{axis_of(metric)}, mean over blocks and images", ylabel="robust accuracy, %", title=at(eps))
    named_scatter(axes, *zip(*nets), colour=PALETTE[0], label="means of schemes")
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(found: Comparison) -> Figure:
    """Loss and held-out accuracy by epoch, a line a scheme; those that end lowest are named."""
    figure, axes = panels(2, 2.9)
    trained = {arm.label: _mean_history(arm) for arm in found.arms}
    trained = {name: history for name, history in trained.items() if len(history)}
    lowest = sorted(trained, key=lambda name: trained[name][-1, 2])[:NAMED]
    for ax, column, scale in ((axes[0], 1, 1.0), (axes[1], 2, 100.0)):
        lines = [history[:, [0, column]] * (1, scale) for name, history in trained.items() if name not in lowest]
        ax.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.7, alpha=0.6))
        for name, colour in zip(lowest, PALETTE):
            x, y = trained[name][:, 0], scale * trained[name][:, column]
            ax.plot(x, y, color=colour, lw=1.3)
            ax.plot(x[[0, -1]], y[[0, -1]], ls="", label=name)
        ax.autoscale()
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set(title="Training loss", xlabel="epoch", ylabel="mean loss of an epoch", yscale="log")
    axes[1].set(title="Accuracy on held-out images", xlabel="epoch", ylabel=RIGHT)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(lowest, PALETTE)]
    rest = Line2D([], [], color=FAINT, lw=0.7, label=f"the other {len(trained) - len(lowest)}")
    legend(figure, [*handles, rest], 3)
    return figure


def _mean_history(arm: Arm) -> np.ndarray:
    """(epochs, 3): epoch, mean loss and mean held-out accuracy of the nets that have as many epochs as the longest."""
    longest = max((len(record.history) for record in arm.records), default=0)
    whole = [record.history for record in arm.records if longest and len(record.history) == longest]
    table = [[(epoch.epoch, epoch.loss, epoch.held_out) for epoch in history] for history in whole]
    return np.array(table, dtype=float).mean(0) if table else np.zeros((0, 3))


def named_scatter(axes: Axes, x: ArrayLike, y: ArrayLike, groups: Sequence[Hashable], *, colour: str, label: str) -> None:
    """The mean of each group as a dot with its name, its standard errors over nets as a cross; infinite x at the right edge.

    The window is that of the means. The axis is logarithmic where positive values spread over decades.
    """
    across, up = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    finite = across[np.isfinite(across)]
    logarithmic = len(finite) > 1 and finite.min() > 0 and finite.max() > DECADES * finite.min()
    if logarithmic:
        axes.set_xscale("log")
    across = _placed(axes, across, logarithmic)
    across = np.log(across) if logarithmic else across
    names = list(dict.fromkeys(groups))
    own = [np.array([group == name for group in groups]) for name in names]
    means = np.array([(across[at].mean(), up[at].mean()) for at in own])
    errors = np.array(
        [[np.std(v[at], ddof=1) / np.sqrt(at.sum()) if at.sum() > 1 else 0.0 for v in (across, up)] for at in own]
    )
    ends = np.stack([means - errors, means + errors])
    if logarithmic:
        means[:, 0], ends[..., 0] = np.exp(means[:, 0]), np.exp(ends[..., 0])
    axes.plot(*means.T, "o", color=colour, ms=6, mec="white", label=label)
    axes.margins(0.06, 0.08)
    axes.autoscale_view()
    axes.autoscale(False)
    if np.isinf(x).any():  # no number stands where the infinite ones do
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= finite.max(initial=0.0) and tick >= axes.get_xlim()[0]])
    axes.hlines(means[:, 1], *ends[..., 0], color=colour, lw=0.7, alpha=0.5)
    axes.vlines(means[:, 0], *ends[..., 1], color=colour, lw=0.7, alpha=0.5)
    label_dots(axes, means, [str(name) for name in names])


def _placed(axes: Axes, values: ArrayLike, logarithmic: bool) -> np.ndarray:
    """Values with a place for those that are infinite, which is marked."""
    values = np.array(values, dtype=float)
    finite = values[np.isfinite(values)]
    if len(finite) == len(values):
        return values
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    place = high * (high / low) ** 0.12 * 1.1 if logarithmic else high + 0.12 * max(high - low, 1e-9 + abs(high) / 10)
    marked: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "top"}
    axes.annotate("\u221e", (place, 0), (0, -3), fontsize=11, **marked)
    axes.axvline(place, color=FAINT, ls=":", lw=0.8)
    return np.where(np.isinf(values), place, values)
