"""A table of a study as values: mean ± standard deviation over seeds, places and marks; not yet any markup."""

from __future__ import annotations

from dataclasses import dataclass

from zerounlearn.report.columns import Column, Group
from zerounlearn.report.significance import Comparison

BASE = "base"
"""Row of the model before unlearning."""


@dataclass(frozen=True)
class Entry:
    """One metric of one row, over seeds.

    Attributes:
        column: of the table.
        mean: in the stored unit; infinite or NaN if a seed's value is.
        sd: sample standard deviation; None with one seed or a value that is not finite.
        count: seeds with a value.
        low: the least of the seeds' values.
        high: the greatest.
        place: 1 for the best, 2 for the second, by the mean as shown: equal ones share a place, and two firsts
            leave no second.
        mark: significance against the reference.
    """

    column: Column
    mean: float
    sd: float | None
    count: int
    low: float
    high: float
    place: int | None = None
    mark: str = ""

    @property
    def shown(self) -> str:
        """Mean alone."""
        return self.column.text(self.mean)

    @property
    def spread(self) -> str:
        """Standard deviation alone; empty where there is none."""
        return "" if self.sd is None else self.column.text(self.sd)


@dataclass(frozen=True)
class Row:
    """One method, or the base model.

    Attributes:
        label: the method's.
        entries: one a column; None where nothing was measured.
        seeds: seeds with a finished cell.
        failed: seeds whose cell failed.
        collapsed: seeds whose model keeps next to nothing, see `zerounlearn.evaluation.joint_score`.
    """

    label: str
    entries: tuple[Entry | None, ...]
    seeds: int
    failed: int = 0
    collapsed: int = 0

    @property
    def state(self) -> str:
        """What its label must say beside itself."""
        return " (failed)" if self.failed and not self.seeds else " (collapsed)" if self.collapsed else ""


@dataclass(frozen=True)
class Table:
    """Some columns of one data set and size.

    Attributes:
        dataset: name.
        n: facts forgotten.
        group: which columns.
        columns: in order.
        base: the model before; None where these columns have no such values.
        rows: methods by label.
        seeds: of the data set and size, whether their cells are finished or not.
        comparisons: every test of this table, corrected together.
        notes: what a reader must know, in sentences.
        at: label of the method at whose place swept methods are read; empty in other tables.
    """

    dataset: str
    n: int
    group: Group
    columns: tuple[Column, ...]
    base: Row | None
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    at: str = ""

    @property
    def title(self) -> str:
        """For headings under the data set and size."""
        return f"Swept methods where {self.at} stands" if self.at else self.group.value

    @property
    def name(self) -> str:
        """For headings by themselves: title, data set and size."""
        return f"{self.title}: {self.dataset}, n = {self.n}"

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """Means by label, the base model's too, then by metric."""
        rows = (*((self.base,) if self.base else ()), *self.rows)
        return {row.label: {e.column.metric: e.mean for e in row.entries if e} for row in rows}

    def row(self, label: str) -> Row | None:
        """A method's row, or by `BASE` the base model's; None where there is none."""
        return self.base if label == BASE else next((row for row in self.rows if row.label == label), None)

    def entry(self, row: Row, metric: str) -> Entry | None:
        """A row's entry by metric; None where the table has no such column, too."""
        return next((e for e in row.entries if e is not None and e.column.metric == metric), None)

    def complete(self, row: Row) -> bool:
        """Whether every seed of the table has a finished cell in the row, and a model that did not collapse."""
        return not row.failed and not row.collapsed and row.seeds == len(self.seeds)
