"""The figures of a comparison: each function draws one question and returns a Figure; `save` writes and embeds it."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.figure import Figure as MplFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import experiments.harness.statistics as statistics
from experiments.harness.report.arms import Arm, Comparison
from experiments.harness.statistics import Estimate
from experiments.harness.words import norm_symbol, radius

# Okabe & Ito (2008), distinguishable in all common forms of colour blindness; its yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
INK, FAINT = "#222222", "#777777"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7E7E7",
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5,
    "svg.hashsalt": "odenets",
    "figure.constrained_layout.use": True,
}

MEASURES = {  # metric: what its axis says; in order of preference for the figure of stability against robustness
    "step_norm": r"$\|\partial y_{n+1}/\partial y_n\|_2$, norm of one step's Jacobian",
    "max_abs_R": r"largest $|R(h\lambda)|$ of a block, over Ritz values",
    "log_norm": r"$\mu_2(hJ)$, logarithmic norm of a block",
    "max_real": r"largest Re $h\lambda$ of a block, over Ritz values",
    "spectral_radius": r"spectral radius of $hJ$, from Ritz values",
}


def _appearance(arms: Sequence[Arm]) -> dict[str, tuple[str, str]]:
    """{arm's name: (colour, marker)}, by position, so that an arm looks the same in all figures of a report."""
    return {arm.name: (PALETTE[i % 7], MARKERS[(i + i // 7) % 7]) for i, arm in enumerate(arms)}


def _legend(
    figure: MplFigure, arms: Sequence[Arm], extra: Sequence[Line2D] = (), line: str = "-", marks: str | None = None
) -> None:
    handles = [
        Line2D([], [], ls=line, color=colour, marker=marker if marks is None else marks, label=arm.label)
        for arm, (colour, marker) in zip(arms, _appearance(arms).values())
    ]
    columns = 4 if max(len(arm.name) for arm in arms) < 20 else 3
    figure.legend(handles=[*handles, *extra], loc="outside upper left", ncols=columns)


def _percentages(estimates: Iterable[Estimate]) -> np.ndarray:
    return 100 * np.array([(estimate.value, estimate.low, estimate.high) for estimate in estimates]).T


@matplotlib.rc_context(STYLE)
def accuracy_figure(found: Comparison) -> MplFigure:
    """Accuracy against the radius of the attack, and its paired difference to the first arm, with intervals."""
    arms, epsilons = found.arms, [0.0, *found.radii]
    figure = Figure(figsize=(10, 4.1))
    axes = figure.subplots(1, 2 if len(arms) > 1 else 1, squeeze=False)[0]
    any_detached = False
    for arm, (colour, marker) in zip(arms, _appearance(arms).values()):
        for gradient, style in (("exact", "-"), ("detached", (0, (4, 2)))):
            known = {eps: mean for eps in epsilons if (mean := found.accuracy(arm, eps, gradient))}
            if not known:
                continue
            value, low, high = _percentages(known.values())
            exact = gradient == "exact"
            any_detached |= not exact
            axes[0].plot(list(known), value, ls=style, color=colour, marker=marker, mfc=colour if exact else "white", zorder=3)
            if exact:
                axes[0].fill_between(list(known), low, high, color=colour, alpha=0.13, lw=0)
    axes[0].set(
        title="Accuracy",
        xlabel=rf"$\varepsilon$, radius of the attack ({norm_symbol(found.config.threat)}, "
        "pixel values in [0, 1]); 0: no attack",
        ylabel="images classified rightly, %",
        ylim=(-2, 102),
    )
    axes[0].set_xticks(epsilons, [radius(eps) for eps in epsilons])
    if len(arms) > 1:
        _draw_differences(axes[1], found, epsilons)
    extra = [Line2D([], [], color=FAINT, ls=(0, (4, 2)), marker="o", mfc="white", label="attacked with the detached gradient")]
    _legend(figure, arms, extra if any_detached else ())
    return figure


@matplotlib.rc_context(STYLE)
def sweep_figure(found: Comparison) -> MplFigure:
    """Accuracy against the steps for each block, a panel a radius: trained with them, or only run with them."""
    epsilons = [0.0, *found.radii]
    # To this figure a scheme is what an arm is to the others.
    schemes = [
        replace(
            arm, name=arm.scheme, records=tuple(r for other in found.arms if other.scheme == arm.scheme for r in other.records)
        )
        for arm in {arm.scheme: arm for arm in reversed(found.arms)}.values()
    ][::-1]
    figure = Figure(figsize=(10, 3.4))
    axes = figure.subplots(1, max(2, len(epsilons)), sharey=True)
    fewest = min(arm.trained_substeps for arm in found.arms)
    for ax, eps in zip(axes, epsilons):
        for scheme, (colour, marker) in zip(schemes, _appearance(schemes).values()):
            for again in (False, True):
                own = {
                    arm.substeps: arm
                    for arm in found.arms
                    if arm.scheme == scheme.scheme
                    and not arm.swapped
                    and arm.trained_substeps == (fewest if again else arm.substeps)
                }
                if len(own) < 2:
                    continue
                value, low, high = _percentages(found.measured(own[steps], eps) for steps in sorted(own))
                bars = np.abs([value - low, high - value])
                ax.errorbar(
                    sorted(own),
                    value,
                    bars,
                    ls="--" if again else "-",
                    color=colour,
                    elinewidth=0.8,
                    marker=marker,
                    mfc="white" if again else colour,
                    zorder=2 if again else 3,
                )
        ax.set(title=rf"$\varepsilon$ = {radius(eps)}" if eps else "no attack", xscale="log", xlabel="steps for each block")
        ax.set_xticks(ticks := sorted({arm.substeps for arm in found.arms}), ticks)
        ax.minorticks_off()
    for ax in axes[len(epsilons) :]:
        ax.set_axis_off()
    axes[0].set_ylabel("images classified rightly, %")
    rerun = Line2D([], [], color=FAINT, ls="--", marker="o", mfc="white", label=f"weights trained with {fewest}")
    _legend(figure, schemes, [rerun])
    return figure


def _draw_differences(ax: Axes, found: Comparison, epsilons: Sequence[float]) -> None:
    first, *others = found.arms
    looks = _appearance(found.arms)
    spread = 0.7 * len(others) / (len(others) + 1)
    for arm, offset in zip(others, np.linspace(-spread / 2, spread / 2, len(others)) if len(others) > 1 else [0.0]):
        colour, marker = looks[arm.name]
        for position, eps in enumerate(epsilons):
            gap = found.gap(arm, eps)
            if gap:
                estimate = gap.estimate
                x = position + offset
                ax.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, lw=1.5, solid_capstyle="butt")
                ax.plot(
                    x,
                    100 * estimate.value,
                    marker=marker,
                    color=colour,
                    ms=6.5,
                    mew=1.5,
                    mfc="white" if gap.verdict in statistics.UNMOVED else colour,
                )
    ax.axhline(0, color=looks[first.name][0], lw=1.7, zorder=1)
    ax.axhspan(-100 * found.config.margin, 100 * found.config.margin, color=FAINT, alpha=0.12, lw=0, zorder=0)
    ax.grid(axis="x", visible=False)
    ax.set(
        title=f"Difference to {first.label}, paired; intervals that hold together",
        ylabel="percentage points",
        xlabel=r"$\varepsilon$, radius of the attack",
        xlim=(-0.6, len(epsilons) - 0.4),
    )
    ax.set_xticks(range(len(epsilons)), [radius(eps) for eps in epsilons])


@matplotlib.rc_context(STYLE)
def measure_figure(found: Comparison, metric: str | None = None) -> MplFigure | None:
    """One stability measure of each trained net against robust accuracy, a panel a radius; None without measures."""
    known = {row.metric for record in found.records for row in record.stability}
    metric = metric or next((name for name in [*MEASURES, *sorted(known)] if name in known), None)
    epsilons = found.radii
    if metric not in known or not epsilons:
        return None
    figure = Figure(figsize=(10, 3.6))
    axes = figure.subplots(1, max(2, len(epsilons)))
    for ax, eps in zip(axes, epsilons):
        for arm, (colour, _) in zip(found.arms, _appearance(found.arms).values()):
            masks = arm.masks(eps)
            for record in arm.records:
                values = record.values(metric)
                if record.seed in masks and values and np.isfinite(values).all():
                    x, y = np.mean(values), 100 * masks[record.seed].mean()
                    ax.plot(x, y, "o", color=colour, ms=11, mec="white", mew=0.8, alpha=0.9)
                    ax.text(x, y, record.seed, fontsize=6.5, color="white", weight="bold", ha="center", va="center_baseline")
        ax.set_title(rf"$\varepsilon$ = {radius(eps)}")
        ax.margins(0.15)
    for ax in axes[len(epsilons) :]:
        ax.set_axis_off()
    axes[0].set_ylabel("robust accuracy, %")
    figure.supxlabel(f"{MEASURES.get(metric, metric)}, mean over blocks and images", fontsize=9)
    _legend(figure, found.arms, line="", marks="o")
    return figure


@matplotlib.rc_context(STYLE)
def training_figure(found: Comparison) -> MplFigure:
    """Training loss and held-out accuracy, attacked too where training is, against the epoch: one thin line a net."""
    figure = Figure(figsize=(10, 2.9))
    axes = figure.subplots(1, 2)
    for arm, (colour, _) in zip(found.arms, _appearance(found.arms).values()):
        for record in arm.records:
            epochs = [epoch.epoch for epoch in record.history]
            chosen = [index for index, epoch in enumerate(record.history) if epoch.chosen]
            for ax, key, scale, line in (
                (axes[0], "loss", 1, "-"),
                (axes[1], "held_out", 100, "-"),
                (axes[1], "held_out_pgd", 100, "--"),
            ):
                values = [getattr(epoch, key) for epoch in record.history]
                if None not in values:
                    ax.plot(
                        epochs,
                        [scale * value for value in values],
                        color=colour,
                        lw=1,
                        alpha=0.8,
                        ls=line,
                        marker=".",
                        markevery=chosen,
                    )
    axes[0].set(title="Training loss", xlabel="epoch", ylabel="mean loss of an epoch", yscale="log")
    axes[1].set(title="Accuracy on held-out images", xlabel="epoch", ylabel="images classified rightly, %")
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, found.arms, marks="")
    return figure


def save(figure: MplFigure, folder: Path, name: str) -> str:
    """Write folder/name.png, and return the figure as a data URI for a page: as SVG or PNG, whichever is shorter."""
    FigureCanvasAgg(figure)
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn: Any = {"dpi": 150, "bbox_inches": "tight", "pad_inches": 0.06}
    figure.savefig(path := Path(folder, f"{name}.png"), **drawn)
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None}, **drawn)
    kind, content = min((("svg+xml", buffer.getvalue()), ("png", path.read_bytes())), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
