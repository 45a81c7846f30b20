"""The self-contained report: one HTML file with its styles, its script and its plots in it, which asks for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import jinja2
import pandas as pd
from markupsafe import Markup

from zerounlearn.evaluation.joint_score import forgotten, kept
from zerounlearn.report.canvas import Plot, short
from zerounlearn.report.columns import Group, columns
from zerounlearn.report.frame import Frames
from zerounlearn.report.provenance import environment, settings
from zerounlearn.report.table import BASE, Table
from zerounlearn.resources import template


@dataclass(frozen=True)
class About:
    """What the cells do not say of their study.

    Attributes:
        title: of the study.
        model: its name and precision.
        reference: label of the method that the others are tested against; by default the best of each column.
        sweeps: labels of the settings of each swept method, by its own.
        highlight: label of the method, or swept one, that plots show in colour.
    """

    title: str
    model: str = ""
    reference: str | None = None
    sweeps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    highlight: str | None = None


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, its tables, its plots, and a table of each fact, by its words."""

    name: str
    title: str
    tables: Sequence[Table]
    plots: Sequence[Plot]
    facts: Mapping[str, str] = field(default_factory=dict)


def report(about: About, frames: Frames, sections: Sequence[Section], tests: pd.DataFrame) -> str:
    """The page; the sections' names are the anchors, `tests` all comparisons."""
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Our own files; a closing tag in them would end them early, but for that they need no escape.
    style, script = template("report", "report.css"), template("report", "report.js")
    return env.from_string(template("report", "report.html.jinja")).render(
        about=about,
        dates=" to ".join(dict.fromkeys((*frames.dates[:1], *frames.dates[-1:]))),
        results=list(_results([table for section in sections for table in section.tables])),
        reasons=_reasons(frames.failures["error"]),
        frames=frames,
        sections=sections,
        counts=_counts(frames),
        tests=_tests(tests),
        glossary=columns(frames.results["metric"]),
        settings=settings(frames.cells),
        environment=environment(frames.cells),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _results(tables: Sequence[Table]) -> Iterator[str]:
    """A line a data set and size: the method of the highest joint score, in words."""
    core = [table for table in tables if table.group is Group.CORE]
    for table in core:
        where = f"{table.dataset}, n = {table.n}: " if len(core) > 1 else ""
        scores = [(e.mean, row) for row in table.rows if table.complete(row) and (e := table.entry(row, "score"))]
        if not scores:
            yield f"{where}no method has finished every seed with a model that is left to speak of."
            continue
        score, best = max(scores, key=lambda one: one[0])
        before, after = table.values[BASE], table.values[best.label]
        gone, still = forgotten(before, after)[0], [min(share, 1.0) for share in kept(before, after)]
        eff = table.columns[0]
        then, now = (eff.text(means[eff.metric]) for means in (before, after))
        yield (
            f"{where}{best.label} forgets {100 * gone:.0f} % of what was known ({eff.label} {then} → {now}) "
            f"and keeps {100 * fmean(still):.0f} % of the rest; joint score {score:.2f}."
        )


def _reasons(errors: Sequence[str]) -> list[str]:
    """The first line of each error, with how many cells it is of."""
    firsts = Counter(short((error.strip() or "no reason given").splitlines()[0], 160) for error in errors)
    return [f"{line} ({count})" if count > 1 else line for line, count in firsts.most_common()]


def _tests(tests: pd.DataFrame) -> str:
    """As HTML; empty where there are too few seeds for any, as a note under each table says."""
    if not tests["test"].any():
        return ""
    return tests.to_html(index=False, border=0, float_format="{:.2g}".format, na_rep="–", classes="words")


def _counts(frames: Frames) -> list[tuple[int, str]]:
    """Of what the study has, for its first line."""
    what = [cell["cell"] for cell in frames.cells]
    counts = {
        ("method", "methods"): len(frames.methods),
        ("data set", "data sets"): len({w["dataset"] for w in what}),
        ("size", "sizes"): len({w["n"] for w in what}),
        ("seed", "seeds"): len({w["seed"] for w in what}),
        ("cell done", "cells done"): sum(cell["status"] == "done" for cell in frames.cells),
    }
    return [(count, one if count == 1 else several) for (one, several), count in counts.items()]
