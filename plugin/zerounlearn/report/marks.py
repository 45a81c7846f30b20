"""Significance marks and the sentences under a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from zerounlearn.report.columns import Column, Goal, Group
from zerounlearn.report.significance import FEW, MINIMUM, Comparison, compare, corrected
from zerounlearn.report.table import Row, Table

_UNTESTED = (Group.COST, Group.RELATIVE)


def marked(table: Table, after: Mapping[tuple[str, str], Mapping[int, float]], named: str | None) -> Table:
    """A table with places, with its tests, their marks, and notes.

    Cost is not tested: its seeds are repetitions on one machine, no sample. What is relative to the base model has its
    tests where it is not.

    Args:
        table: as measured.
        after: values by seed of each method and metric.
        named: the method to test against; None takes the best of each column.
    """
    family: list[Comparison] = []
    for j, c in enumerate(table.columns):
        reference = _reference(table, j, named)
        if reference is None or table.group in _UNTESTED:
            continue

        def values(label: str, c: Column = c) -> Mapping[int, float]:
            found = after.get((label, c.metric), {})
            return {s: abs(v - 0.5) for s, v in found.items()} if c.goal is Goal.HALF else found

        family += [
            compare(c.metric, row.label, reference, values(row.label), values(reference))
            for row in table.rows
            if row.label != reference and row.entries[j] is not None and values(reference)
        ]
    tested = corrected(family)
    marks = {(t.method, t.metric): t.mark for t in tested}
    rows = tuple(
        replace(
            row,
            entries=tuple(
                e and replace(e, mark=marks.get((row.label, c.metric), ""))
                for e, c in zip(row.entries, table.columns, strict=True)
            ),
        )
        for row in table.rows
    )
    table = replace(table, rows=rows, comparisons=tuple(tested))
    return replace(table, notes=tuple(_notes(table, named)))


def _reference(table: Table, j: int, named: str | None) -> str | None:
    """The named method, or of the first places the one whose mean is really best."""
    if named is not None:
        return named
    c = table.columns[j]
    firsts = [(float(c.badness(e.mean)), row.label) for row in table.rows if (e := row.entries[j]) and e.place == 1]
    return min(firsts)[1] if firsts else None


def _notes(table: Table, named: str | None) -> Iterator[str]:
    seeds = len(table.seeds)
    yield f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else f"One seed ({table.seeds[0]})."
    for row in table.rows:
        yield from _of_row(row, seeds)
    if table.group in _UNTESTED or len(table.rows) < 2:
        return
    against = f"from {named}" if named else "from the best of the column"
    tests = [c for c in table.comparisons if c.test]
    if seeds < MINIMUM:
        yield f"No significance test: {seeds} seed{'s' * (seeds > 1)}, and a paired test needs at least {MINIMUM}."
    elif not tests:
        yield f"No significance test: no method shares {MINIMUM} seeds of finite values with a reference."
    else:
        yield (
            f"† p < 0.05, ‡ p < 0.01: differs {against}, by a paired t test over seeds (Wilcoxon where all differences "
            f"are equal), corrected by Holm for the {len(tests)} tests of this table."
        )
        if seeds < FEW:
            yield f"With {seeds} seeds these tests have little power and lean on normality: no mark, no conclusion."
        skipped = sorted({c.method for c in table.comparisons if not c.test})
        if skipped:
            yield f"Not tested in every column, for want of paired finite values: {', '.join(skipped)}."


def _of_row(row: Row, seeds: int) -> Iterator[str]:
    if not row.seeds:
        yield f"{row.label}: failed in every seed."
    elif row.failed:
        yield f"{row.label}: failed in {row.failed} of {seeds} seeds, the mean is over the others; takes no place."
    elif row.seeds < seeds:
        yield f"{row.label}: {row.seeds} of {seeds} seeds so far; takes no place."
    if row.collapsed:
        yield (
            f"{row.label}: collapsed in {row.collapsed} of {seeds} seeds (keeps less than a tenth of what was said "
            "beside the forget set, or has ten times the perplexity); takes no place."
        )
    lacking = [f"{e.column.label} ({e.count} of {row.seeds})" for e in row.entries if e and e.count < row.seeds]
    if lacking:
        yield f"{row.label}: {', '.join(lacking)} is not there for every seed; takes no place there."
    broken = [e.column.label for e in row.entries if e and not math.isfinite(e.mean)]
    if broken:
        yield f"{row.label}: {', '.join(broken)} is not finite for at least one seed."
