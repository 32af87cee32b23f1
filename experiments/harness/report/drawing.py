"""How figures are drawn: their style, panels and legends; the numbers they show, in words; the files they are saved to."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

# Okabe & Ito (2008), distinguishable in all common forms of colour blindness; its yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
INK, FAINT = "#222222", "#777777"
RESOLUTION = 150  # of a PNG, dots an inch
MANY = 9  # panels, beyond which a figure is drawn with less effort
SMALL = 8  # points: no smaller text in a figure
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.hinting": "none",  # or a text is wider at one resolution than at another, and ends outside of the box made for it
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
    "pdf.fonttype": 42,  # journals refuse the other kind
    "figure.constrained_layout.use": True,
}
FEW, SERIES = 8, 40  # points of a line that are told one by one; lines of a figure that are told at all


@dataclass(frozen=True)
class Picture:
    """A saved figure. source: a data URI. width: in points. smallest: its smallest text, in points."""

    source: str
    width: float
    smallest: float


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{name: (colour, marker)}, by position, so that a name looks the same in all figures of a report."""
    return {name: (PALETTE[i % 7], MARKERS[(i + i // 7) % 7]) for i, name in enumerate(names)}


def panels(count: int, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many panels in a row, none wider than half of it, and their axes."""
    figure = Figure(figsize=(10, height))
    axes = figure.subplots(1, max(2, count), squeeze=False, sharey=sharey)[0]
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, list(axes[:count])


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """Above the panels, which keep their height."""
    columns = min(columns, 3) if max(len(str(handle.get_label())) for handle in handles) > 22 else columns
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, -(-len(handles) // columns) - 2))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def described(figure: Figure) -> str:
    """The numbers that a figure shows, for those who do not see it: of each panel its labelled lines, points and notes."""
    told = []
    for ax in figure.axes:
        series = [text for artist in (*ax.lines, *ax.collections) if (text := _series(ax, artist))]
        notes = [text.get_text().replace("\n", ", ") for text in ax.texts if "=" in text.get_text()]
        more = [f"and {len(series) - SERIES} more"] if len(series) > SERIES else []
        if parts := [*series[:SERIES], *more, *notes]:
            told.append(f"{': '.join(filter(None, (ax.get_title('left'), '; '.join(parts))))}.")
    return re.sub(r"\$|\\[a-z]*(?![a-z])", "", " ".join(told).replace(r"\varepsilon", "\u03b5").replace(r"\lambda", "\u03bb"))


def _series(ax: Axes, artist: Any) -> str:
    """The points of a labelled line, of a long one its ends; nothing of others."""
    if str(artist.get_label()).startswith("_"):
        return ""
    points = np.asarray(artist.get_xydata() if hasattr(artist, "get_xydata") else artist.get_offsets(), dtype=float)
    points = points[np.isfinite(points).all(1)]
    if len(points) and _named(ax.yaxis) and not _named(ax.xaxis):
        low, high = (f"{x:.3g} at {_tick(ax.yaxis, y)}" for x, y in (min(points.tolist()), max(points.tolist())))
        return f"{artist.get_label()}: lowest {low}, highest {high}"
    joint = ", " if len(points) <= FEW else " to "
    shown = points if len(points) <= FEW else points[[0, -1]]
    return f"{artist.get_label()} {joint.join(f'{y:.3g} at {_tick(ax.xaxis, x)}' for x, y in shown)}" if len(points) else ""


def _named(axis: Axis) -> bool:
    return isinstance(axis.get_major_locator(), FixedLocator)


def _tick(axis: Axis, x: float) -> str:
    """A place on an axis as its tick calls it, where ticks have names."""
    if _named(axis):
        places = axis.get_ticklocs()
        return axis.get_major_formatter().format_ticks(list(places))[int(np.abs(places - x).argmin())]
    return f"{x:.3g}"


def save(figure: Figure, folder: Path, name: str) -> Picture:
    """Write folder/name.png and folder/name.pdf; the picture for a page is SVG or PNG, whichever is shorter."""
    FigureCanvasAgg(figure)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        # Laid out once for all formats. After "none", which holds the place of the engine, each would draw the figure twice.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        # A box of our own: with "tight" each format would draw the whole figure once more to find it.
        box = figure.get_tightbbox().padded(0.06)
        drawn: Any = {"dpi": RESOLUTION, "bbox_inches": box}
        figure.savefig(path := Path(folder, f"{name}.png"), **drawn)
        figure.savefig(Path(folder, f"{name}.pdf"), metadata={"CreationDate": None}, **drawn)
        forms = {"png": path.read_bytes()}
        if len(figure.axes) <= MANY:  # of many panels it would be the longer one
            figure.savefig(buffer := io.BytesIO(), format="svg", metadata={"Date": None}, **drawn)
            forms["svg+xml"] = buffer.getvalue()
    kind, content = min(forms.items(), key=lambda pair: len(pair[1]))
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    width = 72 * int.from_bytes(path.read_bytes()[16:20], "big") / RESOLUTION  # where a PNG says how many pixels it is wide
    shown = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip() and text.get_visible()]
    return Picture(source, width, min((float(text.get_fontsize()) for text in shown), default=float(SMALL)))
