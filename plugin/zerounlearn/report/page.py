"""The self-contained report: one HTML file with its styles, its script and its plots in it, which asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from zerounlearn.report.canvas import Plot, inline
from zerounlearn.report.columns import column, columns
from zerounlearn.report.frame import Frames
from zerounlearn.report.markup import template
from zerounlearn.report.provenance import environment, settings
from zerounlearn.report.table import Table


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, its tables, its plots."""

    name: str
    title: str
    tables: Sequence[Table]
    plots: Sequence[Plot]


def report(title: str, frames: Frames, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: of the study.
        frames: its cells.
        sections: in order; their names are the anchors.
    """
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Our own files; a closing tag in them would end them early, but for that they need no escape.
    style, script = template("report.css"), template("report.js")
    comparisons = [(table, c) for section in sections for table in section.tables for c in table.comparisons]
    if not any(c.test for _, c in comparisons):  # too few seeds, as a note under each table says
        comparisons = []
    return env.from_string(template("report.html.jinja")).render(
        title=title,
        frames=frames,
        sections=sections,
        counts=_counts(frames),
        comparisons=comparisons,
        column=column,
        glossary=columns(frames.results["metric"]),
        settings=settings(frames.cells),
        environment=environment(frames.cells),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        inline=lambda plot: Markup(inline(plot)),
    )


def _counts(frames: Frames) -> list[tuple[int, str]]:
    """Of what the study has, for its first line."""
    what = [cell["cell"] for cell in frames.cells]
    counts = {
        ("method", "methods"): len(frames.methods),
        ("data set", "data sets"): len({w["dataset"] for w in what}),
        ("size", "sizes"): len({w["n"] for w in what}),
        ("seed", "seeds"): len({w["seed"] for w in what}),
        ("cell done", "cells done"): sum(cell["status"] == "done" for cell in frames.cells),
        ("cell failed", "cells failed"): len(frames.failures),
    }
    return [(count, one if count == 1 else several) for (one, several), count in counts.items()]
