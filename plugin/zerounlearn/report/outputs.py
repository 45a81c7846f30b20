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
from typing import Any

import pandas as pd

from zerounlearn.files import whole_file
from zerounlearn.report.breakdown import heat_map, time_bars
from zerounlearn.report.canvas import Look, Plot, looks
from zerounlearn.report.columns import Group
from zerounlearn.report.frame import Frames
from zerounlearn.report.markup import latex, markdown
from zerounlearn.report.page import Section, report
from zerounlearn.report.significance import Comparison
from zerounlearn.report.summary import tables
from zerounlearn.report.table import Table
from zerounlearn.report.trade_off import by_size, pareto

log = logging.getLogger(__name__)


def write_outputs(
    folder: Path,
    cells: Sequence[Mapping[str, Any]],
    title: str,
    *,
    reference: str | None = None,
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a study's tables, statistics, plots and report, each file whole or not at all.

    results.csv and .parquet (one number a row), failures.csv, facts.csv, significance.csv, tables.md, tables.tex,
    plots/*.svg and *.pdf, report.html. The same cells give the same bytes, whatever their order.

    Args:
        folder: is made if absent; other files in it stay.
        cells: as the engine writes them, finished and failed ones.
        title: of the study.
        reference: label of the method that the others are tested against; by default the best of each column.
        sweeps: labels of the settings of each swept method, by its own.

    Raises:
        ConfigError: there is no cell, a cell is malformed or there twice, or no method is called `reference`.
        OutputError: a file cannot be written.
    """
    for name, content in outputs(cells, title, reference=reference, sweeps=sweeps).items():
        with whole_file(folder / name, "wb", remedy="name another folder or free space") as stream:
            stream.write(content)


def outputs(
    cells: Sequence[Mapping[str, Any]],
    title: str,
    *,
    reference: str | None = None,
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, bytes]:
    """The files of `write_outputs` by name, not written.

    Raises:
        ConfigError: see `write_outputs`.
    """
    frames = Frames.of(cells)
    found = tables(frames, reference, sweeps)
    sections = _sections(found, frames, sweeps or {})
    texts = {
        "failures.csv": _csv(frames.failures),
        "facts.csv": _csv(frames.facts),
        "significance.csv": _csv(_comparisons(found)),
        "tables.md": markdown(found, title, frames.warnings),
        "tables.tex": latex(found, title),
        "report.html": report(title, frames, sections),
        "results.csv": _csv(frames.results),
    }
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    files["results.parquet"] = frames.results.to_parquet(None, engine="pyarrow", index=False)
    for plot in (plot for section in sections for plot in section.plots):
        files |= {f"plots/{plot.name}.svg": plot.svg, f"plots/{plot.name}.pdf": plot.pdf}
    return files


def _sections(found: Sequence[Table], frames: Frames, sweeps: Mapping[str, Sequence[str]]) -> list[Section]:
    """One a data set and size; then one a data set with several sizes."""
    swept = [label for labels in sweeps.values() for label in labels]
    # A sweep looks like one method where its settings are drawn together; those have looks of their own beside it.
    look = looks([*(m for m in frames.methods if m not in swept), *sweeps, *swept])
    sections = []
    taken: set[str] = set()
    for (dataset, n), part in groupby(found, key=lambda t: (t.dataset, t.n)):
        own = list(part)
        name = _slug(f"{dataset}-n{n}", taken)
        here = frames.facts[(frames.facts["dataset"] == dataset) & (frames.facts["n"] == n)]
        heat = _tried(partial(heat_map, here, frames.methods, f"{name}-facts"))
        plots = [*_plots(own, look, name, sweeps), heat]
        sections.append(Section(name, f"{dataset}, {n} facts", own, [p for p in plots if p]))
    for dataset, part in groupby(found, key=lambda t: t.dataset):
        core = [t for t in part if t.group is Group.CORE]
        name = _slug(f"{dataset}-by-size", taken)
        plot = _tried(partial(by_size, core, look, name))
        if plot:
            sections.append(Section(name, f"{dataset} by size", [], [plot]))
    return sections


def _plots(
    own: Sequence[Table], look: Mapping[str, Look], name: str, sweeps: Mapping[str, Sequence[str]]
) -> list[Plot | None]:
    """Of one data set and size."""
    found = []
    for table in own:
        if table.group is Group.CORE:
            for forget in ("eff", "gen"):
                found.append(_tried(partial(pareto, table, look, f"{name}-pareto-{forget}", forget, sweeps)))
        if table.group is Group.COST:
            found.append(_tried(partial(time_bars, table, look, f"{name}-time")))
    return found


def _tried(draw: Callable[[], Plot | None]) -> Plot | None:
    """The plot; one that cannot be drawn costs itself, and not the tables."""
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
    """Infinity is "inf", NaN "NaN"; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    texts = frame.select_dtypes(include=["object", "string"])
    safe = frame.assign(**{name: texts[name].map(_defused) for name in texts})
    return safe.to_csv(None, index=False, na_rep="NaN", lineterminator="\n")


def _defused(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.lstrip()[:1] in ("=", "+", "-", "@") or value[:1] in ("\t", "\r") else value


def _slug(name: str, taken: set[str]) -> str:
    """For file names and anchors: a name's letters and digits, with a number where that is taken."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "unnamed"
    numbered = itertools.chain([plain], (f"{plain}-{k}" for k in itertools.count(2)))
    free = next(candidate for candidate in numbered if candidate.casefold() not in taken)
    taken.add(free.casefold())
    return free
