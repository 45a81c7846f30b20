"""How a plot looks and how it is saved: vector, print size, the same bytes for the same numbers.

Figures are made without pyplot, so neither its backend nor its list of open figures is touched; the settings hold
inside `style` only, whatever the user's own are.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK = "#1b1f24"
GRID = "#c8cdd4"
WIDTH = 7.0
"""Inches: the text width of a two-column page."""
# After Okabe and Ito's colour-blind safe palette, without those too pale for white paper or too dark for a dark page.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5679a", "#7f7f7f", "#a67c00", "#6f63c5")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
Line = Literal["-", "--", "-.", ":", " "]
_LINES: tuple[Line, ...] = ("-", "--", "-.", ":")
DOTTED = (0.0, (1.0, 2.0))
"""The base model's line."""
LABEL = 34
"""Characters of a label in a plot."""
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "figure.titlesize": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
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
}
_PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)"}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a method: the same in every plot of a study, and distinct without the colour."""

    colour: str
    marker: str
    line: Line


@dataclass(frozen=True)
class Plot:
    """A finished figure.

    Attributes:
        name: for file names; letters, digits and hyphens.
        alt: what it shows, for those who do not see it.
        caption: how to read it.
        svg: with text as text.
        pdf: with embedded fonts.
    """

    name: str
    alt: str
    caption: str
    svg: bytes
    pdf: bytes


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each label; 70 methods have a pair of colour and marker each."""
    return {
        method: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
        for i, method in enumerate(methods)
    }


@contextmanager
def style() -> Iterator[None]:
    """Our settings over matplotlib's defaults; what was set before is set again afterwards."""
    defaults: dict[Any, Any] = {
        k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "_", "interactive"))
    }
    with mpl.rc_context():
        mpl.rcParams.update(defaults | _STYLE)
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty one of so many inches, whose layout leaves room for every label."""
    return Figure(figsize=(width, height), layout="constrained")


def saved(drawn: Figure, name: str, alt: str, caption: str) -> Plot:
    """To vector formats, without dates."""
    svg, pdf = io.BytesIO(), io.BytesIO()
    drawn.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    drawn.set_layout_engine("none")  # it is laid out by now; to do so again takes most of the time
    drawn.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Plot(name, alt, caption, svg.getvalue(), pdf.getvalue())


def handle(look: Look, line: Line | None = None) -> Line2D:
    """A method's entry in a legend."""
    style = look.line if line is None else line
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=5, linestyle=style, linewidth=1.2)


def base_handle() -> Line2D:
    """The base model's."""
    return Line2D([], [], color=INK, linewidth=1.0, linestyle=DOTTED)


def legend_below(drawn: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """One for the whole figure, outside its axes, where it covers nothing."""
    drawn.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels))


def legend_height(labels: Sequence[str]) -> float:
    """Inches that `legend_below` takes."""
    return 0.17 * math.ceil(len(labels) / _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    """As many as the width of a page has room for, a hundred characters or so."""
    return max(1, min(len(labels), 4, 100 // (6 + max(len(label) for label in labels))))


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


def inline(plot: Plot) -> str:
    """The SVG for an HTML page: an image with a name, identifiers of its own, ink and lines in the page's colours."""
    root = ElementTree.fromstring(plot.svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # the latter would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _own(key, value, plot.name) for key, value in element.attrib.items()
        }  # fmt: skip
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": plot.alt, "class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{name}-", 1)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    for ours, page in _PAGE_COLOURS.items():
        value = value.replace(ours, page)
    return value
