"""Everything that a finished study leaves beside its cells."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from zerounlearn.files import whole_file
from zerounlearn.report.breakdown import heat_map, one_by_one, time_bars
from zerounlearn.report.canvas import Plot
from zerounlearn.report.columns import Group
from zerounlearn.report.frame import Frames
from zerounlearn.report.markup import latex, markdown
from zerounlearn.report.page import About, Section, report
from zerounlearn.report.significance import Comparison
from zerounlearn.report.summary import tables
from zerounlearn.report.table import Table
from zerounlearn.report.trade_off import by_size, pareto

log = logging.getLogger(__name__)
T = TypeVar("T")


def write_outputs(folder: Path, cells: Sequence[Mapping[str, Any]], about: About) -> None:
    """Write a study's tables, statistics, plots and report, each file whole or not at all.

    results.csv and .parquet (one number a row), failures.csv, facts.csv, significance.csv, tables.md, tables.tex,
    plots/*.svg, *.pdf and *.png, report.html. The same cells give the same bytes, whatever their order.

    Args:
        folder: is made if absent; other files in it stay.
        cells: as the engine writes them, finished and failed ones.
        about: the study.

    Raises:
        ConfigError: there is no cell, a cell is malformed or there twice, or no method is called `about.reference`.
        OutputError: a file cannot be written.
    """
    for name, content in outputs(cells, about).items():
        with whole_file(folder / name, "wb", remedy="name another folder or free space") as stream:
            stream.write(content)


def outputs(cells: Sequence[Mapping[str, Any]], about: About) -> dict[str, bytes]:
    """The files of `write_outputs` by name, not written.

    Raises:
        ConfigError: see `write_outputs`.
    """
    frames = Frames.of(cells)
    found = tables(frames, about.reference, about.sweeps)
    sections, tests = _sections(found, frames, about), _comparisons(found)
    texts = {
        "failures.csv": _csv(frames.failures),
        "facts.csv": _csv(frames.facts),
        "significance.csv": _csv(tests),
        "tables.md": markdown(found, about.title, frames.warnings),
        "tables.tex": latex(found, about.title),
        "report.html": report(about, frames, sections, tests),
        "results.csv": _csv(frames.results),
    }
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    files["results.parquet"] = frames.results.to_parquet(None, engine="pyarrow", index=False)
    for image in (image for section in sections for plot in section.plots for image in plot.images):
        files |= {f"plots/{image.name}.{kind}": content for kind, content in image.files.items()}
    return files


def _sections(found: Sequence[Table], frames: Frames, about: About) -> list[Section]:
    """One a data set and size; then one a data set with several sizes."""
    sections = []
    taken: set[str] = set()
    for (dataset, n), part in groupby(found, key=lambda t: (t.dataset, t.n)):
        own = list(part)
        name = _slug(f"{dataset}-n{n}", taken)
        here = frames.facts[(frames.facts["dataset"] == dataset) & (frames.facts["n"] == n)]
        plots = _plots(own, here, frames.methods, name, about)
        facts = _tried(partial(one_by_one, here, frames.methods)) or {}
        sections.append(Section(name, f"{dataset}, {n} facts", own, plots, facts))
    for dataset, part in groupby(found, key=lambda t: t.dataset):
        core = [t for t in part if t.group is Group.CORE]
        name = _slug(f"{dataset}-by-size", taken)
        plot = _tried(partial(by_size, core, name, own=about.highlight))
        if plot:
            sections.append(Section(name, f"{dataset} by size", [], [plot]))
    return sections


def _plots(own: Sequence[Table], facts: pd.DataFrame, methods: Sequence[str], name: str, about: About) -> list[Plot]:
    """Of one data set and size."""
    core = next(t for t in own if t.group is Group.CORE)
    drawn = [
        partial(pareto, core, f"{name}-pareto-{forget}", forget, own=about.highlight, sweeps=about.sweeps)
        for forget in ("eff", "gen")
    ]
    drawn += [partial(time_bars, t, f"{name}-time", own=about.highlight) for t in own if t.group is Group.COST]
    drawn.append(partial(heat_map, facts, methods, f"{name}-facts"))
    return [plot for draw in drawn if (plot := _tried(draw))]


def _tried(draw: Callable[[], T | None]) -> T | None:
    """The plot, or whatever is drawn; what cannot be drawn costs itself, and not the tables."""
    try:
        return draw()
    except Exception as error:  # whatever a drawing library raises on data of nobody's expectation
        log.warning("a plot is missing: %s: %s", type(error).__name__, error)
        return None


def _comparisons(found: Sequence[Table]) -> pd.DataFrame:
    columns = ["dataset", "n", *Comparison.__dataclass_fields__, "mark"]
    rows = [{"dataset": t.dataset, "n": t.n, **asdict(c), "mark": c.mark} for t in found for c in t.comparisons]
    return pd.DataFrame(rows, columns=columns)


def _csv(frame: pd.DataFrame) -> str:
    """Infinity is "inf", NaN "NaN"; a text that a spreadsheet would take for a formula begins with an apostrophe.

    A NUL is shown as U+FFFD: readers of tables end a text there, and Python 3.10 writes none.
    """
    texts = frame.select_dtypes(include=["object", "string"])
    safe = frame.assign(**{name: texts[name].map(_defused) for name in texts})
    return safe.to_csv(None, index=False, na_rep="NaN", lineterminator="\n")


def _defused(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.replace("\0", "\ufffd")
    return f"'{value}" if value.lstrip()[:1] in ("=", "+", "-", "@") or value[:1] in ("\t", "\r") else value


def _slug(name: str, taken: set[str]) -> str:
    """For file names and anchors: a name's letters and digits, with a number where that is taken."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "unnamed"
    numbered = itertools.chain([plain], (f"{plain}-{k}" for k in itertools.count(2)))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free
