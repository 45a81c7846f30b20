"""From a study's numbers to its tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from zerounlearn.errors import ConfigError, did_you_mean
from zerounlearn.evaluation.joint_score import collapsed
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
        results = frames.results[(frames.results["dataset"] == dataset) & (frames.results["n"] == n)]
        found += _tables(dataset, n, list(part), results, reference, sweeps or {})
    return found


def _tables(
    dataset: str,
    n: int,
    cells: Sequence[Mapping[str, Any]],
    results: pd.DataFrame,
    reference: str | None,
    sweeps: Mapping[str, Sequence[str]],
) -> Iterator[Table]:
    seeds = tuple(sorted({c["cell"]["seed"] for c in cells}))
    done = results[(results["phase"] != "before") & (results["status"] == "done")]
    first = results[results["phase"] == "before"].drop_duplicates(["seed", "metric"])
    after = {key: dict(zip(own["seed"], own["value"], strict=True)) for key, own in done.groupby(["method", "metric"])}
    base = {key: dict(zip(own["seed"], own["value"], strict=True)) for key, own in first.groupby("metric")}
    frame = Table(dataset, n, Group.CORE, (), None, tuple(_rows(cells)), seeds)
    for group, of_group in groupby(columns([*base, *(metric for _, metric in after)]), key=lambda c: c.group):
        table = _filled(replace(frame, group=group), tuple(of_group), after, base)
        yield marked(_placed(table), after, reference)
        if group is Group.CORE:
            yield from _relative(table, cells, after, base)
            yield from _matched(table, after, base, sweeps)


def _rows(cells: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Of each method, without its numbers."""
    for method, part in groupby(cells, key=lambda c: c["cell"]["method"]):
        own = list(part)
        done = [c for c in own if c["status"] == "done"]
        broken = sum(collapsed(c.get("before") or {}, c.get("after") or {}) for c in done)
        yield Row(method, (), len(done), len(own) - len(done), broken)


def _filled(table: Table, chosen: tuple[Column, ...], after: Values, base: Mapping[str, Mapping[int, float]]) -> Table:
    """The table with these columns."""
    first = Row(BASE, tuple(_entry(c, base.get(c.metric)) for c in chosen), len(table.seeds))
    rows = tuple(
        replace(row, entries=tuple(_entry(c, after.get((row.label, c.metric))) for c in chosen)) for row in table.rows
    )
    return replace(table, columns=chosen, base=first if any(first.entries) else None, rows=rows)


def _relative(
    core: Table, cells: Sequence[Mapping[str, Any]], after: Values, base: Mapping[str, Mapping[int, float]]
) -> Iterator[Table]:
    """What is forgotten and kept of what the base model knew, a seed at a time."""
    known = {c: base[c.metric] for c in core.columns if any(base.get(c.metric, {}).values())}
    values = {
        (row.label, c.metric): {
            seed: 1 - now / then if c.unit and c.goal is Goal.LOWER else now / then
            for seed, now in after.get((row.label, c.metric), {}).items()
            if (then := before.get(seed))
        }
        for row in core.rows
        for c, before in known.items()
    }
    if not known:
        return
    chosen = tuple(_of_base(c) for c in known)
    table = marked(_placed(_filled(replace(core, group=Group.RELATIVE), chosen, values, {})), values, None)
    counts: dict[str, Counter[str]] = {}
    for draw in {c["cell"]["seed"]: c.get("known") or {} for c in cells if c["status"] == "done"}.values():
        for metric, count in draw.items():
            counts.setdefault(metric, Counter()).update(count)
    shown = [
        f"{c.label} {counts[c.metric]['said']} of {counts[c.metric]['asked']}" for c in known if c.metric in counts
    ]
    notes = (f"Prompts that the base model answers, of all that are asked: {', '.join(shown)}.",) if shown else ()
    yield replace(table, notes=(*notes, *table.notes))


def _of_base(c: Column) -> Column:
    """A column's relative one: of shares what is forgotten or kept, of other numbers how many times as much."""
    if not c.unit:
        return replace(c, label=f"{c.label}, × base")
    if c.goal is Goal.LOWER:
        return replace(c, label=f"{c.label} forgotten", goal=Goal.HIGHER)
    return replace(c, label=f"{c.label} kept")


def _matched(
    core: Table, after: Values, base: Mapping[str, Mapping[int, float]], sweeps: Mapping[str, Sequence[str]]
) -> Iterator[Table]:
    """The swept methods at the place of each other one; nothing where none is swept."""
    swept = {label for labels in sweeps.values() for label in labels}
    named = {f"{name} (swept)": labels for name, labels in sweeps.items()}
    chosen = tuple(columns((*SAID, KEPT)))
    for point in core.rows if sweeps else ():
        values = {} if point.label in swept else matched(after, base, point.label, named)
        if (point.label, KEPT) not in values:
            continue
        own = Row(point.label, (), _seeds(values, point.label), collapsed=point.collapsed)
        rows = (own, *(Row(label, (), _seeds(values, label)) for label in named))
        table = replace(core, group=Group.MATCHED, rows=rows, at=point.label)
        table = _filled(table, chosen, values, base)
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
    sd = float(array.std(ddof=1)) if spread else None
    return Entry(column, mean, sd, len(array), float(array.min()), float(array.max()))


def _placed(table: Table) -> Table:
    """With first and second places; a row that collapsed, lacks a seed, or whose value is not finite, has none."""
    rows = [list(row.entries) for row in table.rows]
    for j, c in enumerate(table.columns):
        if c.goal is Goal.NONE:
            continue
        able = [
            (i, e)
            for i, row in enumerate(table.rows)
            if (e := row.entries[j]) is not None
            and not row.collapsed
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
