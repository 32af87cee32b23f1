"""Names beside dots, none on top of another where there is room."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.harness.report.drawing import FAINT, SMALL

DISTANCES = (3.0, 9.0, 17.0, 27.0, 40.0, 56.0)  # points from the dot
ANGLES = np.radians(np.arange(0, 360, 22.5))
NEAR = 6.0  # points, beyond which a line leads back to the dot


def label_dots(axes: Axes, dots: ArrayLike, names: Sequence[str]) -> None:
    """Write each name beside its dot; where it had to move away a thin line leads back.

    Greedy, by the place of a dot from left to right: the nearest place at which the name hides neither a dot nor another name,
    and leaves the axes nowhere; where there is none, that which hides least. Call it last: it lays the figure out.

    Args:
        dots: (n, 2) in the units of the axes.
        names: As many.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    points = np.reshape(np.asarray(dots, dtype=float), (-1, 2))
    unit = figure.dpi / 72
    places = axes.transData.transform(points) / unit
    frame = axes.get_window_extent().get_points().ravel() / unit
    taken = [np.array([x - 3.5, y - 3.5, x + 3.5, y + 3.5]) for x, y in places]
    for i in np.argsort(places[:, 0], kind="stable"):
        text = axes.annotate(names[i], points[i], (0, 0), textcoords="offset points", fontsize=SMALL)
        box = text.get_window_extent(renderer)
        candidates = _candidates(box.width / unit, box.height / unit)
        boxes = candidates + np.tile(places[i], 2)
        cost = _hidden(boxes, np.array(taken)) + 10 * _outside(boxes, frame)
        best = int(np.argmin(cost))
        taken.append(boxes[best])
        corner = candidates[best, :2]
        text.set_position((float(corner[0]), float(corner[1])))
        text.set_in_layout(False)
        nearest = np.clip(0.0, candidates[best, :2], candidates[best, 2:])
        if np.hypot(*nearest) > NEAR:
            end = tuple(places[i] * unit + nearest * unit)
            ends = axes.transData.inverted().transform([places[i] * unit, end])
            axes.plot(*ends.T, color=FAINT, lw=0.5, marker="", zorder=1.5, scalex=False, scaley=False)


def _candidates(width: float, height: float) -> NDArray:
    """(n, 4) boxes about a dot at the origin, the nearest first: left, bottom, right, top."""
    found = []
    for distance in DISTANCES:
        for x, y in zip(np.cos(ANGLES), np.sin(ANGLES)):
            # The box touches the circle from outside, so that a name on the left ends at its dot.
            left = (distance + 2) * x - width * (1 - x) / 2
            bottom = (distance + 2) * y - height * (1 - y) / 2
            found.append((left, bottom, left + width, bottom + height))
    return np.array(found)


def _hidden(boxes: NDArray, taken: NDArray) -> NDArray:
    """(n,) of each box, the area that it shares with those taken."""
    low = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], taken[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2).sum(1)


def _outside(boxes: NDArray, frame: NDArray) -> NDArray:
    """(n,) how far each box leaves the frame."""
    return np.clip(frame[:2] - boxes[:, :2], 0, None).sum(1) + np.clip(boxes[:, 2:] - frame[2:], 0, None).sum(1)
