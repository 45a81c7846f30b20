"""How a plot looks and how it is saved: vector, print size, the same bytes for the same numbers.

One method, the reader's own, has a strong colour; the others are grey and told apart by their names beside them.
Figures are made without pyplot, so neither its backend nor its list of open figures is touched; the settings hold
inside `style` only, whatever the user's own are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import Bbox

INK = "#000000"
OWN = "#0062b8"
"""The method that the study is about."""
OTHERS = "#7d848c"
WIDTH = 7.0
"""Inches: the text width of a two-column page."""
LABEL = 34
"""Characters of a label in a plot."""
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 7.5,
    "axes.labelsize": 8.0,
    "grid.color": "#dfe3e8",
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a label's dollar sign is a dollar sign
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "zerounlearn",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
_PANEL, _MARGINS = 4.3, (0.62, 1.05, 0.46, 0.12)
"""A panel's width, and the room left, right, below and above its axes, in inches: names go into that to the right."""
Side = Literal["left", "right", "center"]
_SIDES: tuple[tuple[Side, float, float], ...] = (("left", 7.0, 0.0), ("right", -7.0, 1.0), ("center", 0.0, 0.5))
"""How a name is aligned at its point, how far from it in points, and which share of the name lies left of that."""
_LINE = 0.18
"""Inches of height that a name is given, with what is lost between names."""


@dataclass(frozen=True)
class Image:
    """A finished figure.

    Attributes:
        name: for file names; letters, digits and hyphens.
        alt: what it shows, for those who do not see it.
        files: its bytes as svg, with text as text, pdf, with embedded fonts, and png.
    """

    name: str
    alt: str
    files: dict[str, bytes]

    @property
    def address(self) -> str:
        """The SVG as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.files['svg']).decode()}"


@dataclass(frozen=True)
class Plot:
    """Images that are read together: beside each other where there is room, else below each other.

    Attributes:
        caption: how to read them.
        images: at least one.
    """

    caption: str
    images: tuple[Image, ...]


@contextmanager
def style() -> Iterator[None]:
    """Our settings over matplotlib's defaults; what was set before is set again afterwards."""
    defaults: dict[Any, Any] = {
        k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "_", "interactive"))
    }
    with mpl.rc_context():
        mpl.rcParams.update(defaults | _STYLE)
        yield


def figure(height: float) -> Figure:
    """An empty one of so many inches, whose layout leaves room for every label."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def panel(names: int) -> tuple[Figure, Axes]:
    """Axes of a fixed place, with room beside them for so many names."""
    height = max(2.9, 0.6 + _LINE * names)
    drawn = Figure(figsize=(_PANEL, height))
    left, right, bottom, top = _MARGINS
    across, up = _PANEL - left - right, height - bottom - top
    return drawn, drawn.add_axes((left / _PANEL, bottom / height, across / _PANEL, up / height))


def saved(drawn: Figure, name: str, alt: str) -> Image:
    """To every format, without dates."""
    files = {}
    for kind, date in (("svg", "Date"), ("pdf", "CreationDate"), ("png", None)):
        stream = io.BytesIO()
        drawn.savefig(stream, format=kind, metadata={date: None} if date else {})
        drawn.set_layout_engine("none")  # it is laid out by now; to do so again takes most of the time
        files[kind] = stream.getvalue()
    return Image(name, alt, files)


def colour(label: str, own: str | None) -> str:
    """Of a method's marks."""
    return OWN if label == own else OTHERS


def name_points(
    axes: Axes,
    named: Sequence[tuple[float, float, str, str]],
    points: Sequence[tuple[float, float]] = (),
    levels: Sequence[float] = (),
) -> None:
    """Write a name beside each point, as near as the other names, the points and the figure's edges leave room.

    Args:
        axes: with its final limits.
        named: x, y, name and colour.
        points: all that a name must not cover.
        levels: heights of lines that it must not, either.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer, point, (left, bottom, right, _) = (
        FigureCanvasAgg(figure).get_renderer(),
        figure.dpi / 72,
        axes.bbox.extents,
    )
    font, edge, top = FontProperties(size=7), figure.bbox.x1 - 1, figure.bbox.y1 - 1
    lines = [bottom, *(axes.transData.transform((1, level))[1] for level in levels)]
    taken = [Bbox.from_extents(left, y - 1, right, y + 1) for y in lines]
    taken += [Bbox([p, p]).padded(3 * point) for p in axes.transData.transform([*points, *(n[:2] for n in named)])]
    steps = sorted(range(-500, 501, 4), key=abs)
    for x, y, text, ink in named:
        x0, y0 = axes.transData.transform((x, y))
        wide, high, _ = renderer.get_text_width_height_descent(text, font, False)
        places: list[tuple[bool, int, tuple[float, float], tuple[Side, float], Bbox]] = []
        for up, (side, across, share) in product(steps, _SIDES):
            box = Bbox.from_bounds(x0 + across * point - wide * share, y0 + up * point - high / 2, wide, high)
            if left <= box.x0 and box.x1 <= edge and bottom <= box.y0 and box.y1 <= top:
                room = box.padded(1)
                hides = any(room.overlaps(other) for other in taken)
                places.append((hides, len(places), (across, up), (side, share), box))
                if not hides:
                    break
        if not places:  # wider than the figure
            continue
        # Over another one only if there is no free place.
        _, _, offset, (side, share), box = min(places, key=lambda place: place[:2])
        taken.append(box)
        axes.annotate(
            text,
            (x, y),
            offset,
            textcoords="offset points",
            horizontalalignment=side,
            verticalalignment="center",
            fontproperties=font,
            color=ink,
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": ink, "relpos": (share, 0.5)},
        )


def short(label: str, most: int) -> str:
    """A label of at most `most` characters, cut in the middle: variants of a method differ at the end."""
    label = " ".join(label.split())
    head = most * 3 // 5
    return label if len(label) <= most else f"{label[:head]}…{label[len(label) - (most - head - 1) :]}"


def bare(axes: Axes) -> None:
    """Without grid, spines and ticks' strokes: for cells of colour."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
