"""Stability regions: |R(z)| of a scheme in the complex plane, alone, on a sheet, or under h lambda measured in nets."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import odenets
import stability
from experiments.harness.report.arms import Cloud, Comparison
from experiments.harness.report.drawing import INK, MANY, SMALL, STYLE

Window = tuple[float, float, float, float]  # left, right, bottom, top
STAGE_COLOURS = ("#111111", "#D0006F", "#F2C300", "#FFFFFF")

# Bands of |R| by powers of two: blue damps, sand amplifies, and the two meet at |R| = 1.
BANDS = np.arange(-3.0, 4.0)
SHADES = ListedColormap(["#8DB4D9", "#B4CFE8", "#D9E7F4", "#FBF0DC", "#F3DDB4", "#E8C582"], under="#6A98C6", over="#DAAC57")
DOTS, CROWD = 500, 20_000  # places for dots across a window, where there are more dots than this
FINE = 200  # points of a grid, beyond which a panel is large
CROWDED = 5  # columns of many panels
COMMON_WINDOW = (-5.0, 5.0, -5.0, 5.0)


@functools.cache
def region_of(scheme: odenets.Scheme) -> Any:
    """`stability.region` of a `Scheme`, computed once."""
    return stability.region(scheme)


@matplotlib.rc_context(STYLE)
def draw_region(
    ax: Axes,
    scheme: str | odenets.Scheme,
    cloud: Cloud | None = None,
    window: Window | None = None,
    resolution: int = 481,
) -> Any:
    """Draw |R(z)| of a scheme into given axes: blue where a step damps, sand where it amplifies, |R| = 1 bold.

    Args:
        ax: Axes of matplotlib.
        scheme: Spec or `Scheme` that has an R(z).
        cloud: {stage: (n, 2) real and imaginary parts of measured h lambda}, drawn as dots, one colour a stage.
        window: (left, right, bottom, top) in the plane of z; by default that of `stability.region`.
        resolution: points of the grid on each side.

    Returns:
        The filled contours, for a colour bar.
    """
    region = region_of(odenets.get_scheme(scheme))
    region = replace(region, window=window or region.window, resolution=resolution)
    x, y, modulus = region.grid
    left, right, bottom, top = region.window
    # Rounded, so that |R| = 1 along a whole line (Gauss on the imaginary axis) is a level and not noise around it.
    with np.errstate(divide="ignore"):
        growth = np.clip(np.log2(modulus), -20, 20).round(9)
    shades = ax.contourf(x, y, growth, BANDS, cmap=SHADES, extend="both")
    large = resolution > FINE
    shades.set_rasterized(large)  # each costs a canvas of the whole figure
    if growth.min() < 0 < growth.max():
        ax.contour(x, y, growth, [0.0], colors=INK, linewidths=1.8)
    if left < 0 < right:  # A-stability does not speak of the right half-plane: it is veiled
        ax.axvspan(0, right, color="white", alpha=0.45, lw=0)
        ax.axvline(0, color=INK, lw=0.9)
        for side, text in (("right", "flow decays "), ("left", " flow grows")):
            ax.text(0, top - 0.015 * (top - bottom), text, ha=side, va="top", fontsize=SMALL, style="italic", color=INK)
    ax.axhline(0, color=INK, lw=0.4)
    dots: Any = {"s": 6, "edgecolors": INK, "linewidths": 0.2, "alpha": 0.7, "rasterized": large, "zorder": 4}
    crowd, place = (CROWD, (right - left) / DOTS) if large else (CROWD // 100, 5 * (right - left) / DOTS)
    for stage, points in (cloud or {}).items():
        z = np.reshape(points, (-1, 2)) @ (1, 1j)
        if len(z) > crowd:  # of thousands of nets; what lies on top of another dot is not drawn
            z = np.unique((z / place).round()) * place
        ax.scatter(z.real, z.imag, color=_colour(stage), **dots)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.grid(False)
    return shades


def clouds_figure(found: Comparison) -> Figure | None:
    """The region of each arm's scheme with the measured h lambda on top, in one window; None where none has a region."""
    drawable = {arm.label: (arm.behind, arm.cloud()) for arm in found.arms if arm.behind.has_R}
    measured = {label: pair for label, pair in drawable.items() if pair[1]}
    return cloud_panels(measured or drawable)


@matplotlib.rc_context(STYLE)
def cloud_panels(panels: Mapping[str, tuple[odenets.Scheme, Cloud]]) -> Figure | None:
    """A panel for each title: a scheme's region with h lambda on top, all in one window; None without any."""
    if not panels:
        return None
    clouds = [cloud for _, cloud in panels.values()]
    points = np.concatenate([np.zeros((1, 2)), *(values for cloud in clouds for values in cloud.values())])
    left, right = min(-2.6, points[:, 0].min() - 0.3), max(2.4, points[:, 0].max() + 0.3)
    height = max(1.9, np.abs(points[:, 1]).max() + 0.3, (right - left) / 3)
    many = len(panels) > MANY
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), CROWDED if many else 3)
    figure, axes = _panels(len(panels), columns, 8.8 / max(columns, 2), 2 * height / (right - left), inner=not many)
    for ax, (title, (scheme, cloud)) in zip(axes, panels.items()):
        shades = draw_region(ax, scheme, cloud, (left, right, -height, height), 161 if many else 481)
        ax.set_title(title.replace("(", "\n(") if many else title)
        _note_extremes(ax, scheme, cloud)
    return _framed(figure, axes, columns, shades, _dots(clouds))


def _note_extremes(ax: Axes, scheme: odenets.Scheme, cloud: Cloud) -> None:
    """Write the extremes of a cloud into the axes: no shares, for the density of Ritz values is not that of eigenvalues."""
    z = np.concatenate([v for v in cloud.values()] or [np.zeros((0, 2))]) @ (1, 1j)
    if z.size:
        growth = stability.growth_factors(scheme, z).max()
        # Plain letters: a formula takes a hundredth of a second to set, and every panel has two of its own.
        text = f"max Re z = {z.real.max():.2f}\nmax |R(z)| = {growth:.3g}".replace("-", "\u2212")
        caveat = "" if scheme.analytic else "\n(normal Jacobians only)"
        box = {"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 2}
        ax.text(0.02, 0.03, text + caveat, fontsize=SMALL, transform=ax.transAxes, bbox=box)


def _dots(clouds: Iterable[Cloud]) -> list[Line2D]:
    stages = sorted({stage for cloud in clouds for stage in cloud}, key=int)
    name = r"$h\lambda$ of stage {}" if len(stages) > 1 else r"$h\lambda$"
    return [
        Line2D([], [], ls="", marker="o", color=_colour(stage), mec=INK, mew=0.4, label=name.format(stage)) for stage in stages
    ]


def _colour(stage: str) -> str:
    return STAGE_COLOURS[int(stage) % len(STAGE_COLOURS)]


@matplotlib.rc_context(STYLE)
def region_sheet(
    schemes: Sequence[odenets.Scheme], notes: Mapping[str, str] | None = None, clouds: Mapping[str, Cloud] | None = None
) -> Figure:
    """All regions in one window where they fit (one alone in its own).

    Args:
        schemes: `Scheme`s that have an R(z).
        notes: {spec: note}, text below the titles.
        clouds: {spec: {stage: (n, 2) points}} of h lambda, drawn on top; a window grows until it holds them.
    """
    columns = min(4, len(schemes))
    figure, axes = _panels(len(schemes), columns, 3.4 if columns > 1 else 6, 1)
    clouds = {str(scheme): (clouds or {}).get(str(scheme), {}) for scheme in schemes}
    common = COMMON_WINDOW
    for cloud in clouds.values():
        common = _square(common, cloud)
    for ax, scheme in zip(axes, schemes):
        window, cloud = region_of(odenets.get_scheme(scheme)).window, clouds[str(scheme)]
        fits = max(map(abs, window)) <= 8  # an unbounded region has the window [-8, 8]^2
        shades = draw_region(ax, scheme, cloud, common if fits and columns > 1 else _square(window, cloud))
        note = f"\n{notes[str(scheme)]}" if notes else ""
        ax.set_title(f"{scheme}{'' if fits else ', own scale'}{note}", fontsize=9)
        _note_extremes(ax, scheme, cloud)
    return _framed(figure, axes, columns, shades, _dots(clouds.values()))


def _square(window: Window, cloud: Cloud) -> Window:
    """The smallest square about the real axis that holds a window, and a cloud with a margin."""
    points = np.concatenate([np.zeros((0, 2)), *cloud.values()])
    left, right = (1.05 * points[:, 0]).min(initial=window[0]), (1.05 * points[:, 0]).max(initial=window[1])
    half = (1.05 * abs(points[:, 1])).max(initial=max((right - left) / 2, window[3]))
    return (left + right) / 2 - half, (left + right) / 2 + half, -half, half


def _panels(count: int, columns: int, width: float, aspect: float, inner: bool = True) -> tuple[Figure, Any]:
    """A figure of `count` panels of a width in inches and an aspect (height / width), and their axes; inner: all have ticks."""
    rows = -(-count // columns)
    figure = Figure(
        figsize=(columns * width + 1.2, rows * (width * aspect + (0.55 if inner else 0.33)) + 0.3), layout="compressed"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    for index, ax in enumerate(axes[:count]):
        ax.tick_params(labelbottom=inner or index + columns >= count, labelleft=inner or index % columns == 0)
    return figure, axes[:count]


def _framed(figure: Figure, axes: Any, columns: int, shades: Any, handles: Sequence[Line2D]) -> Figure:
    for index, ax in enumerate(axes):
        ax.set_xlabel(r"Re $z$" if index + columns >= len(axes) else None)
        ax.set_ylabel(r"Im $z$" if index % columns == 0 else None)
    bar = figure.colorbar(shades, ax=list(axes), aspect=30, pad=0.015)
    bar.set_label(r"$|R(z)|$, growth in one step; $z = h\lambda$")
    bar.set_ticks(list(BANDS), labels=[f"{2.0**band:g}" if band >= 0 else f"1/{2.0**-band:g}" for band in BANDS])
    bar.ax.axhline(0, color=INK, lw=1.8)
    bar.outline.set_visible(False)
    boundary = Line2D([], [], color=INK, lw=1.8, label=r"$|R(z)| = 1$")
    figure.legend(handles=[boundary, *handles], loc="outside upper left", ncols=8)
    return figure
