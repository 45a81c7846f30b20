"""From a study's numbers to its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd

from zerounlearn.errors import ConfigError, did_you_mean
from zerounlearn.report.columns import Column, Goal, Group, columns
from zerounlearn.report.frame import Frames
from zerounlearn.report.marks import marked
from zerounlearn.report.matched import KEPT, SAID, Values, matched
from zerounlearn.report.table import BASE, Entry, Row, Table


def tables(
    frames: Frames, reference: str | None = None, sweeps: Mapping[str, Sequence[str]] | None = None
) -> list[Table]:
    """Every table, by data set, size and group of columns.

    Args:
        frames: the study's cells.
        reference: label of the method that the others are tested against; by default the best of each column.
        sweeps: labels of the settings of each swept method; every method that is not swept then has a table of what
            these reach where it stands.

    Raises:
        ConfigError: no method is called `reference`.
    """
    if reference is not None and reference not in frames.methods:
        hint = did_you_mean(reference, frames.methods, f"choose one of {frames.methods}")
        raise ConfigError(f"reference={reference!r} is no method of this study: {hint}")
    found: list[Table] = []
    for (dataset, n), part in groupby(frames.cells, key=lambda c: (c["cell"]["dataset"], c["cell"]["n"])):
        place = [(c["cell"]["method"], c["cell"]["seed"], c["status"]) for c in part]
        results = frames.results[(frames.results["dataset"] == dataset) & (frames.results["n"] == n)]
        found += _tables(dataset, n, place, results, reference, sweeps or {})
    return found


def _tables(
    dataset: str,
    n: int,
    cells: Sequence[tuple[str, int, str]],
    results: pd.DataFrame,
    reference: str | None,
    sweeps: Mapping[str, Sequence[str]],
) -> Iterator[Table]:
    seeds = tuple(sorted({seed for _, seed, _ in cells}))
    done = results[(results["phase"] != "before") & (results["status"] == "done")]
    before = results[results["phase"] == "before"].drop_duplicates(["seed", "metric"])
    after = {
        (method, metric): dict(zip(part["seed"], part["value"], strict=True))
        for (method, metric), part in done.groupby(["method", "metric"])
    }
    base = {m: dict(zip(part["seed"], part["value"], strict=True)) for m, part in before.groupby("metric")}
    for group, of_group in groupby(columns([*base, *(metric for _, metric in after)]), key=lambda c: c.group):
        chosen = tuple(of_group)
        rows = []
        for method, own in groupby(cells, key=lambda c: c[0]):
            states = [status for _, _, status in own]
            entries = tuple(_entry(c, after.get((method, c.metric))) for c in chosen)
            rows.append(Row(method, entries, states.count("done"), states.count("failed")))
        first = Row(BASE, tuple(_entry(c, base.get(c.metric)) for c in chosen), len(seeds))
        table = Table(dataset, n, group, chosen, first if any(first.entries) else None, tuple(rows), seeds)
        yield marked(_placed(table), after, reference)
        if group is Group.CORE and sweeps:
            yield from _matched(table, after, base, sweeps)


def _matched(
    core: Table, after: Values, base: Mapping[str, Mapping[int, float]], sweeps: Mapping[str, Sequence[str]]
) -> Iterator[Table]:
    """The swept methods at the place of each other one."""
    swept = {label for labels in sweeps.values() for label in labels}
    named = {f"{name} (swept)": labels for name, labels in sweeps.items()}
    chosen = tuple(columns((*SAID, KEPT)))
    for point in core.rows:
        values = {} if point.label in swept else matched(after, base, point.label, named)
        if (point.label, KEPT) not in values:
            continue
        rows = [
            Row(label, tuple(_entry(c, values.get((label, c.metric))) for c in chosen), _seeds(values, label))
            for label in (point.label, *named)
        ]
        first = core.base and Row(BASE, tuple(core.entry(core.base, c.metric) for c in chosen), core.base.seeds)
        table = Table(
            core.dataset, core.n, Group.MATCHED, chosen, first, tuple(rows), core.seeds, at=point.label
        )  # fmt: skip
        table = marked(_placed(table), values, point.label)
        how = (
            f"A swept method's Eff. and Gen. are read where it keeps the Spe. of {point.label}, its Spe. where it has "
            f"the Eff. of {point.label}: a seed at a time, between the best of its settings and the base model; there "
            "is no Spe. where no setting says so little."
        )
        yield replace(table, notes=(how, *table.notes))


def _seeds(values: Values, label: str) -> int:
    return len({seed for (method, _), found in values.items() if method == label for seed in found})


def _entry(column: Column, values: Mapping[int, float] | None) -> Entry | None:
    if not values:
        return None
    array = np.array([values[seed] for seed in sorted(values)], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(array.mean())
    spread = len(array) > 1 and bool(np.isfinite(array).all())
    return Entry(column, mean, float(array.std(ddof=1)) if spread else None, len(array))


def _placed(table: Table) -> Table:
    """With first and second places; a row that lacks a seed, or whose value is not finite, has none."""
    rows = [list(row.entries) for row in table.rows]
    for j, c in enumerate(table.columns):
        if c.goal is Goal.NONE:
            continue
        able = [
            (i, e)
            for i, row in enumerate(table.rows)
            if (e := row.entries[j]) is not None
            and e.count == len(table.seeds)  # a failed cell has no value
            and math.isfinite(e.mean)
        ]
        # Ties are judged by what the reader sees: 0.04 and 0.01 are both "0.0".
        badness = {i: round(float(c.badness(float(e.shown) / c.scale)), 12) for i, e in able}
        for i, e in able:
            place = 1 + sum(other < badness[i] for other in badness.values())
            if place <= 2:
                rows[i][j] = replace(e, place=place)
    filled = tuple(replace(row, entries=tuple(entries)) for row, entries in zip(table.rows, rows, strict=True))
    return replace(table, rows=filled)
