"""The figures of a survey: spectra over regions, growth curves, pseudospectra with the field of values."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.figure import Figure as MplFigure
from matplotlib.lines import Line2D

import odenets
from experiments.harness.report import regions
from experiments.harness.report.figures import FAINT, INK, PALETTE, STYLE

LEVELS = np.arange(-4.0, 1.01, 0.5)  # of log10 of the smallest singular value


@matplotlib.rc_context(STYLE)
def clouds(found: Any) -> MplFigure | None:
    """The region of the scheme under the Ritz values of each stage; None without an R(z)."""
    if not odenets.get_scheme(found.scheme).has_R:
        return None
    stages = sorted({b.stage for b in found.blocks})
    points = {stage: np.concatenate([b.ritz.numpy().ravel() for b in found.blocks if b.stage == stage]) for stage in stages}
    every = np.concatenate(list(points.values()))
    left, right = min(-2.6, every.real.min() - 0.3), max(2.4, every.real.max() + 0.3)
    height = max(1.9, abs(every.imag).max() + 0.3, (right - left) / 3)
    figure = Figure(figsize=(10, max(2.6, 10 / max(2, len(stages)) * 2 * height / (right - left) + 0.8)))
    axes = figure.subplots(1, max(2, len(stages)), squeeze=False)[0]
    for ax, (stage, z) in zip(axes, points.items()):
        cloud = {str(stage): np.stack([z.real, z.imag], 1)}
        shades = regions.draw_region(ax, found.scheme, cloud, (left, right, -height, height))
        growth = max(float(b.amplification.max()) for b in found.blocks if b.stage == stage)
        text = f"max Re $z$ = {z.real.max():.2f}\nmax |$R(z)$| = {growth:.3g}".replace("-", "\u2212")
        ax.text(
            0.02, 0.03, text, fontsize=8, transform=ax.transAxes, bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 2}
        )
        ax.set(title=f"stage {stage}", xlabel=r"Re $h\lambda$")
    axes[0].set_ylabel(r"Im $h\lambda$")
    for ax in axes[len(stages) :]:
        ax.set_axis_off()
    figure.colorbar(shades, ax=axes, shrink=0.8, label=r"$\log_2|R(z)|$")
    return figure


@matplotlib.rc_context(STYLE)
def growth(found: Any) -> MplFigure:
    """Measured, linearised and predicted growth along the network, a panel for each perturbation."""
    figure = Figure(figsize=(10, 3.9))
    axes = figure.subplots(1, len(found.growths), sharey=True)
    styles = {"measured": ("-", PALETTE[0]), "linear": ((0, (4, 2)), PALETTE[1]), "predicted": (":", INK)}
    words = {"measured": "measured", "linear": "linearised network", "predicted": "R(hJ) from each stage's start"}
    for ax, (name, curve) in zip(axes, found.growths.items()):
        x, last = np.arange(len(curve.places)), curve.places[-1][0]
        for key, (style, colour) in styles.items():
            values = getattr(curve, key).numpy()
            ax.plot(x, np.median(values, 1), ls=style, color=colour, marker="o" if key == "measured" else "", ms=4, zorder=3)
            if key == "measured":
                ax.fill_between(x, values.min(1), values.max(1), color=colour, alpha=0.13, lw=0)
        labels = [
            "image" if s < 0 else "output" if s == last else f"stage {s}" if b < 0 else f"block {b}" for s, b in curve.places
        ]
        ax.set_xticks(x, labels, rotation=60, ha="right")
        for i, (stage, block) in enumerate(curve.places):
            if block < 0 <= stage < last:
                ax.axvline(i, color=FAINT, lw=0.6, zorder=1)
        ax.set(title=f"{name} perturbation", yscale="log")
    axes[0].set_ylabel(r"$\|\delta_n\|_2\,/\,\|\delta_0\|_2$")
    figure.legend(
        handles=[Line2D([], [], ls=style, color=colour, label=words[key]) for key, (style, colour) in styles.items()],
        loc="outside upper left",
        ncols=3,
    )
    return figure


@matplotlib.rc_context(STYLE)
def pseudospectra(found: Any) -> MplFigure:
    """Contours of the smallest singular value of zI - A with eigenvalues and field of values, for h J and for the step."""
    drawn = [("hJ", found.fields), ("Jacobian of the step", found.steps)]
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots(1, 2)
    for ax, (name, pair) in zip(axes, drawn):
        if pair is None:
            ax.set_axis_off()
            continue
        pseudo, field = pair
        z, depth = pseudo.points[0].numpy(), np.log10(np.maximum(pseudo.smallest[0].numpy(), 1e-16))
        shades = ax.contourf(z.real, z.imag, depth, LEVELS, cmap="Blues_r", extend="both", alpha=0.85)
        ax.contour(z.real, z.imag, depth, LEVELS, colors="white", linewidths=0.5, linestyles="solid")
        values = pseudo.eigenvalues[0].numpy()
        ax.plot(values.real, values.imag, ".", color=PALETTE[1], ms=3.5, zorder=4)
        edge = field.points[0].numpy()
        edge = np.append(edge, edge[0])
        ax.plot(edge.real, edge.imag, "--", color=INK, lw=1.1)
        if name == "hJ":
            ax.axvline(0, color=INK, lw=0.8)
        else:
            circle = np.exp(1j * np.linspace(0, 2 * np.pi, 300))
            ax.plot(circle.real, circle.imag, color=INK, lw=0.8)
        ax.set(
            title=f"{name}, stage {found.place.stage}, block {found.place.block}",
            xlabel="Re z",
            ylabel="Im z",
            aspect="equal",
            xlim=_range(z.real, edge.real),
            ylim=_range(z.imag, edge.imag),
        )
        ax.grid(False)
        figure.colorbar(shades, ax=ax, shrink=0.8, label=r"$\log_{10}\,\sigma_{\min}(zI-A)$")
    return figure


def _range(*values: np.ndarray) -> tuple[float, float]:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)
