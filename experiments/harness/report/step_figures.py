"""The figures of a sweep of steps."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.harness.report.arms import Comparison
from experiments.harness.report.drawing import FAINT, MARKERS, PALETTE, STYLE
from experiments.harness.report.readings import Convergence, Reading
from experiments.harness.statistics.estimates import t_interval

RATE = (
    "Distance of the logits to those of the exact flow, by the steps for each block. Lines: geometric mean over seeds, the "
    "band its 95 % interval; dotted: the slope that the theory states for smooth fields, through the coarsest step."
)
MATRIX = (
    "Trained with the scheme of the row, run with that of the column. Left without an attack, right under the attack at the "
    "middle radius; in each cell the mean over seeds in per cent and, where solves did not converge, the largest share of "
    "images that counted as wrong for that."
)
SWEEP = (
    "Accuracy against the number of solver steps for each block. Solid: trained with that many steps. Dashed and hollow: "
    "trained with the fewest, then run with more, same weights. Bars are 95 % intervals over seeds and images."
)


@matplotlib.rc_context(STYLE)
def convergence(rows: Sequence[Convergence]) -> Figure:
    """Error against steps, both logarithmic."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    for index, row in enumerate(rows):
        colour, marker = PALETTE[index % 7], MARKERS[index % 7]
        known = np.isfinite(row.errors).all(0) & (row.errors > 0).all(0)
        steps, logs = np.array(row.steps)[known], np.log(row.errors[:, known])
        if not len(steps):
            continue
        axes.plot(steps, np.exp(logs.mean(0)), color=colour, marker=marker, label=row.arm.label, zorder=3)
        if len(logs) > 1:
            held = [t_interval(column) for column in logs.T]
            axes.fill_between(
                steps, np.exp([e.low for e in held]), np.exp([e.high for e in held]), color=colour, alpha=0.15, lw=0
            )
        if row.order:
            axes.plot(steps, np.exp(logs.mean(0)[0]) * (steps / steps[0]) ** -float(row.order), ":", color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="steps for each block", ylabel="relative error of the logits")
    ticks = sorted({n for row in rows for n in row.steps})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    handles, _ = axes.get_legend_handles_labels()
    theory = Line2D([], [], color=FAINT, ls=":", label="order by theory")
    figure.legend(handles=[*handles, theory], loc="outside upper left", ncols=3)
    return figure


@matplotlib.rc_context({**STYLE, "axes.grid": False})
def swap(found: Comparison, readings: Sequence[Reading]) -> Figure:
    """Two heat maps: clean and robust accuracy of weights trained with the row's scheme and run with the column's."""
    names = [name for name in found.config.schemes if name in {r.arm.scheme for r in readings}]
    figure = Figure(figsize=(10, 2.2 + 0.42 * len(names)))
    panels = [(0.0, "no attack"), (found.middle, found.attack_at(found.middle))][: 2 if found.middle else 1]
    for axes, (eps, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        values = np.full((len(names), len(names)), np.nan)
        lost = np.zeros_like(values)
        for reading in readings:
            at = names.index(reading.arm.trained_with or reading.arm.scheme), names.index(reading.arm.scheme)
            mean = found.accuracy(reading.arm, eps)
            values[at] = 100 * mean.value if mean else np.nan
            shares = [m.untrusted / m.total for r in reading.arm.records for m in r.measurements if m.epsilon == eps]
            lost[at] = max(shares, default=0.0)
        drawn = axes.imshow(values, cmap="cividis", aspect="auto", **_within(values))
        middle = np.mean(drawn.get_clim())
        for (row, column), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else f"{value:.1f}"
            text += f"\n{100 * lost[row, column]:.0f} % unsolved" if lost[row, column] >= 0.005 else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if value > middle else "white")
        short = [name if len(name) < 18 else name.split("(")[0] + "(\u2026)" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), short)
        axes.set(title=title, xlabel="run with", ylabel="trained with")
        figure.colorbar(drawn, ax=axes, label="images classified rightly, %")
    return figure


def _within(values: np.ndarray) -> dict[str, float]:
    """Ends of a scale of percentages: those of the values; where they are all the same, room that no per cent lies beyond."""
    low, high = np.nanmin(values), np.nanmax(values)
    return {"vmin": low, "vmax": high} if high - low > 0.1 else {"vmin": max(0.0, low - 1), "vmax": min(100.0, high + 1)}
