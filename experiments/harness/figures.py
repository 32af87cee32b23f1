"""The figures of the reports: each function draws one question and returns a Figure; `save` writes it and embeds it."""
import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import odenets
from experiments.harness import statistics

# Okabe & Ito (2008), distinguishable in all common forms of colour blindness; its yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
STAGE_COLOURS = ("#111111", "#D0006F", "#F2C300", "#FFFFFF")
INK, FAINT = "#222222", "#777777"
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.labelcolor": INK,
         "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
         "axes.linewidth": 0.8, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E7E7E7", "grid.linewidth": 0.7,
         "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "text.color": INK,
         "legend.frameon": False, "lines.linewidth": 1.7, "lines.markersize": 5, "svg.hashsalt": "odenets",
         "figure.constrained_layout.use": True}

# Bands of |R| by powers of two: blue damps, sand amplifies, and the two meet at |R| = 1.
BANDS = np.arange(-3.0, 4.0)
SHADES = ListedColormap(["#8DB4D9", "#B4CFE8", "#D9E7F4", "#FBF0DC", "#F3DDB4", "#E8C582"], under="#6A98C6", over="#DAAC57")
COMMON_WINDOW = (-5.0, 5.0, -5.0, 5.0)

MEASURES = {  # metric: what its axis says; in order of preference for the figure of stability against robustness
    "step_norm": r"$\|\partial y_{n+1}/\partial y_n\|_2$, norm of one step's Jacobian",
    "mean_abs_R": r"mean of $|R(h\lambda)|$ over the eigenvalues $\lambda$ of the blocks",
    "log_norm": r"$\mu_2(hJ)$, logarithmic norm of a block",
    "spectral_radius": r"spectral radius of $hJ$"}


def label(scheme, records):
    """A scheme as tables and legends show it: with a dagger where one of its nets failed its audit."""
    failed = any(r["scheme"] == scheme and r.get("audit") and r["audit"]["passed"] is False for r in records)
    return f"{scheme} \u2020" if failed else scheme


def _appearance(config):
    """{scheme: (colour, marker)}, by position in the list, so that a scheme looks the same in all figures of a report."""
    return {scheme: (PALETTE[i % 7], MARKERS[(i + i // 7) % 7]) for i, scheme in enumerate(config["schemes"])}


def _legend(figure, config, records, extra=()):
    handles = [Line2D([], [], color=colour, marker=marker, label=label(scheme, records))
               for scheme, (colour, marker) in _appearance(config).items()]
    figure.legend(handles=[*handles, *extra], loc="outside upper left", ncols=4 if max(map(len, config["schemes"])) < 20 else 3)


@matplotlib.rc_context(STYLE)
def accuracy_figure(config, records):
    """Accuracy against the radius of the attack, and its paired difference to the first scheme, with intervals."""
    schemes, epsilons = config["schemes"], [0.0, *statistics.radii(records)]
    figure = Figure(figsize=(10, 4.1))
    axes = figure.subplots(1, 2 if len(schemes) > 1 else 1, squeeze=False)[0]
    masks = {key: {eps: statistics.masks_of(records, *key[:1], eps, key[1]) for eps in epsilons}
             for key in [(scheme, gradient) for scheme in schemes for gradient in ("exact", "detached")]}
    any_detached = False
    for scheme, (colour, marker) in _appearance(config).items():
        for gradient, style in (("exact", "-"), ("detached", (0, (4, 2)))):
            known = {eps: statistics.accuracy(m) for eps, m in masks[scheme, gradient].items() if m}
            if not known:
                continue
            value, low, high = (100 * np.array([getattr(e, end) for e in known.values()]) for end in ("value", "low", "high"))
            exact = gradient == "exact"
            any_detached |= not exact
            axes[0].plot(list(known), value, ls=style, color=colour, marker=marker, mfc=colour if exact else "white", zorder=3)
            if exact:
                axes[0].fill_between(list(known), low, high, color=colour, alpha=0.13, lw=0)
    axes[0].set(title="Accuracy", xlabel=r"$\varepsilon$, radius of the attack ($L_\infty$, pixel values in [0, 1]); 0: no attack",
                ylabel="images classified rightly, %", ylim=(-2, 102), xticks=epsilons)
    if len(schemes) > 1:
        _draw_differences(axes[1], config, epsilons, {scheme: masks[scheme, "exact"] for scheme in schemes})
    extra = [Line2D([], [], color=FAINT, ls=(0, (4, 2)), marker="o", mfc="white", label="attacked with the detached gradient")]
    _legend(figure, config, records, extra if any_detached else ())
    return figure


def _draw_differences(ax, config, epsilons, masks):
    first, *others = config["schemes"]
    spread = 0.7 * len(others) / (len(others) + 1)
    for scheme, offset in zip(others, np.linspace(-spread / 2, spread / 2, len(others)) if len(others) > 1 else [0.0]):
        colour, marker = _appearance(config)[scheme]
        for position, eps in enumerate(epsilons):
            estimate = statistics.difference(masks[scheme][eps], masks[first][eps])
            if estimate:
                x = position + offset
                ax.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, lw=1.5, solid_capstyle="butt")
                ax.plot(x, 100 * estimate.value, marker=marker, color=colour, ms=6.5, mew=1.5,
                        mfc="white" if estimate.verdict == "cannot tell" else colour)
    ax.axhline(0, color=_appearance(config)[first][0], lw=1.7, zorder=1)
    ax.grid(axis="x", visible=False)
    ax.set(title=f"Difference to {first}, paired, 95 % intervals", xlabel=r"$\varepsilon$, radius of the attack",
           ylabel="percentage points", xlim=(-0.6, len(epsilons) - 0.4))
    ax.set_xticks(range(len(epsilons)), [f"{eps:g}" for eps in epsilons])


def has_region(scheme):
    """Whether a scheme has an amplification factor R(z) to draw."""
    try:
        odenets.get_scheme(scheme).amplification(np.zeros(1))
    except ValueError:
        return False
    return True


def analytic(scheme):
    """Whether R is analytic (Cauchy-Riemann at one generic point). Where not, R(h lambda) is a step's spectrum for normal J only."""
    R, z, d = odenets.get_scheme(scheme).amplification, -0.37 + 0.61j, 1e-6
    right, up = R(np.array([z + d])) - R(np.array([z - d])), R(np.array([z + 1j * d])) - R(np.array([z - 1j * d]))
    return bool(np.abs(up - 1j * right)[0] < 1e-8)


@matplotlib.rc_context(STYLE)
def draw_region(ax, scheme, cloud=None, window=None):
    """Draw |R(z)| of a scheme into given axes: blue where a step damps, sand where it amplifies, |R| = 1 bold.

    Args:
        ax: Axes of matplotlib.
        scheme: Spec or `Scheme` that has an R(z).
        cloud: {stage: (n, 2) real and imaginary parts of measured h lambda}, drawn as dots, one colour a stage.
        window: (left, right, bottom, top) in the plane of z; by default large enough for the boundary of the region.

    Returns:
        The filled contours, for a colour bar.
    """
    scheme = odenets.get_scheme(scheme)
    left, right, bottom, top = window or region_window(scheme)
    x, y = np.linspace(left, right, 480), np.linspace(bottom, top, 480)
    # Rounded, so that |R| = 1 along a whole line (Gauss on the imaginary axis) is a level and not noise around it.
    growth = _log_growth(scheme, x[None, :] + 1j * y[:, None]).round(9)
    shades = ax.contourf(x, y, growth, BANDS, cmap=SHADES, extend="both")
    shades.set_rasterized(True)
    ax.contour(x, y, growth, [0.0], colors=INK, linewidths=1.8)
    if right > 0:  # the half-plane of which A-stability does not speak is veiled, the other keeps its full colour
        ax.axvspan(0, right, color="white", alpha=0.45, lw=0)
    ax.axvline(0, color=INK, lw=0.9)
    ax.axhline(0, color=INK, lw=0.4)
    for (stage, values), colour in zip(sorted((cloud or {}).items(), key=lambda item: int(item[0])), STAGE_COLOURS * 9):
        points = np.asarray(values, dtype=float).reshape(-1, 2)
        ax.scatter(*points.T, s=7, color=colour, edgecolors=INK, linewidths=0.25, alpha=0.75, rasterized=True, zorder=4)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.grid(False)
    return shades


def _log_growth(scheme, z):
    with np.errstate(divide="ignore"):
        return np.clip(np.log2(np.abs(scheme.amplification(z))), -20, 20)


def region_window(scheme):
    """(left, right, bottom, top) that holds the boundary |R| = 1 where it is bounded; a common window where not or smaller."""
    for size in (5, 10, 20, 40, 80, 160, 320):
        side = np.linspace(-size, size, 401)
        z = side[None, :] + 1j * side[:, None]
        stable = _log_growth(scheme, z) <= 0
        frame = np.concatenate([stable[0], stable[-1], stable[:, 0], stable[:, -1]])
        if frame.all() or not frame.any():
            inside = z[stable != frame[0]]
            if not inside.size or max(np.abs(inside.real).max(), np.abs(inside.imag).max()) < 0.96 * COMMON_WINDOW[1]:
                return COMMON_WINDOW
            centre = (inside.real.min() + inside.real.max()) / 2
            half = 0.6 * max(np.ptp(inside.real), np.ptp(inside.imag))
            return (centre - half, centre + half, -half, half)
    return COMMON_WINDOW
