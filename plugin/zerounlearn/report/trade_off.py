"""What forgetting costs: forgetting against specificity, and everything against the number of facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from zerounlearn.report.canvas import (
    DOTTED,
    INK,
    LABEL,
    WIDTH,
    Look,
    Plot,
    base_handle,
    figure,
    handle,
    legend_below,
    legend_height,
    saved,
    short,
    style,
)
from zerounlearn.report.columns import Column
from zerounlearn.report.matched import front
from zerounlearn.report.table import BASE, Entry, Row, Table

KEPT = ("spe", "spe_relation", "spe_subject", "spe_unrelated")


@dataclass(frozen=True)
class _Point:
    row: Row
    x: Entry
    y: Entry
    able: bool
    """Whether it may be on the front."""
    label: str
    """Of the row, or of the sweep that it is a setting of."""
    swept: bool


def pareto(
    table: Table,
    looks: Mapping[str, Look],
    name: str,
    forget: str = "eff",
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> Plot | None:
    """Forgetting (`eff` or `gen`) against every specificity that was measured, a panel each; None without any.

    The front joins the methods that no other beats in one of the two without losing in the other; a method that
    failed or lacks a seed is drawn, but not on it. The settings of a sweep look alike, and those that no other of it
    beats are joined, too. The base model is a line at its specificity: as a point, far off, it would leave the
    methods no room.
    """
    of = {label: sweep for sweep, labels in (sweeps or {}).items() for label in labels}
    panels = {m: points for m in KEPT if (points := _points(table, forget, m, of))}
    if not panels:
        return None
    drawn_rows = {p.row.label for points in panels.values() for p in points}
    labels = list(dict.fromkeys(of.get(row.label, row.label) for row in table.rows if row.label in drawn_rows))
    wide = 2 if len(panels) > 1 else 1
    high = -(-len(panels) // wide)
    shown = [short(label, LABEL) for label in labels]
    with style():
        drawn = figure(0.5 + 2.5 * high + legend_height([*shown, BASE, "Pareto front"]), WIDTH if wide > 1 else 4.6)
        fronts = {}
        for k, (metric, points) in enumerate(panels.items()):
            axes = drawn.add_subplot(high, wide, k + 1)
            for p in points:
                _mark(axes, p, looks[p.label])
            for label in labels:
                own = _unbeaten([p for p in points if p.swept and p.label == label])
                _join(axes, own, looks[label].colour, line=":")
            on = _unbeaten([p for p in points if p.able])
            _join(axes, on, INK, drawstyle="steps-post")
            fronts[metric] = [p.row.label for p in on]
            axes.set_xlabel(points[0].x.column.axis)
            axes.set_ylabel(points[0].y.column.axis)
            base = table.entry(table.base, metric) if table.base else None
            heights = [p.y for p in points]
            if base and math.isfinite(base.mean):
                axes.axhline(base.mean * base.column.scale, color=INK, linewidth=1.0, linestyle=DOTTED)
                heights.append(base)
            axes.set_xlim(*_limits([p.x for p in points]))
            axes.set_ylim(*_limits(heights))
        handles = [handle(looks[label], line=" ") for label in labels]
        line = Line2D([], [], color=INK, linewidth=1.0)
        legend_below(drawn, [*handles, base_handle(), line], [*shown, BASE, "Pareto front"])
        column = next(iter(panels.values()))[0].x.column
        best = "; ".join(
            f"{points[0].y.column.label} {', '.join(fronts[m]) or 'none'}" for m, points in panels.items()
        )  # fmt: skip
        return saved(
            drawn,
            name,
            f"{column.label} against specificity on {table.dataset}, n = {table.n}. On the front: {best}.",
            f"Forgetting ({column.head}) against what is kept, mean ± standard deviation over seeds; upper left is "
            f"better. The line is the Pareto front, the dotted one the base model's specificity."
            + (" Marks of one kind are settings of one method, means only, the best of them joined." if of else ""),
        )


def by_size(tables: Sequence[Table], looks: Mapping[str, Look], name: str) -> Plot | None:
    """Each metric of these tables (one data set and group) against the number of facts; None with one size only."""
    tables = sorted(tables, key=lambda t: t.n)
    metrics = {c.metric: c for t in tables for c in t.columns}
    sizes = [t.n for t in tables]
    if len(sizes) < 2:
        return None
    drawable = {r.label for t in tables for r in t.rows if any(e and math.isfinite(e.mean) for e in r.entries)}
    labels = [label for label in looks if label in drawable]
    shown = [short(label, LABEL) for label in labels]
    high = -(-len(metrics) // 2)
    left_out = set()
    with style():
        drawn = figure(0.4 + 1.95 * high + legend_height([*shown, BASE]))
        for k, c in enumerate(metrics.values()):
            axes = drawn.add_subplot(high, 2, k + 1)
            means: list[float] = []
            for label in [BASE, *labels]:
                found = [(t.n, e) for t in tables if (row := t.row(label)) and (e := t.entry(row, c.metric))]
                finite = [(n, e) for n, e in found if math.isfinite(e.mean)]
                left_out |= {f"{label} ({c.label})" for _ in range(len(found) - len(finite))}
                _curve(axes, c, finite, looks.get(label))
                means += [e.mean * c.scale for _, e in finite]
            axes.set_xscale("log" if max(sizes) >= 8 * min(sizes) else "linear")
            axes.xaxis.set_major_locator(FixedLocator(sizes))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.set_xlabel("facts forgotten")
            axes.set_ylabel(c.axis)
            _readable(axes, means, share=c.unit == "%")
        legend_below(drawn, [*(handle(looks[label]) for label in labels), base_handle()], [*shown, BASE])
        missing = f" Not finite, so not drawn: {', '.join(sorted(left_out))}." if left_out else ""
        group = tables[0].group.value
        return saved(
            drawn,
            name,
            f"{group} by the number of facts forgotten on {tables[0].dataset}, sizes {', '.join(map(str, sizes))}.",
            f"By the number of facts forgotten, mean over seeds; bands are ± one standard deviation.{missing}",
        )


def _points(table: Table, x: str, y: str, of: Mapping[str, str]) -> list[_Point]:
    found = []
    for row in table.rows:
        a, b = table.entry(row, x), table.entry(row, y)
        if a and b and math.isfinite(a.mean) and math.isfinite(b.mean):
            swept = row.label in of
            if swept:  # many, close together: their bars would hide them
                a, b = replace(a, sd=None), replace(b, sd=None)
            found.append(_Point(row, a, b, table.complete(row), of.get(row.label, row.label), swept))
    return found


def _unbeaten(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other beats, in order: less of x is better, more of y is; equal ones all stay."""
    best = set(front((p.y.mean, p.x.mean) for p in points))
    on = [p for p in points if (p.y.mean, p.x.mean) in best]
    return sorted(on, key=lambda p: (p.x.mean, p.y.mean))


def _join(axes: Axes, points: Sequence[_Point], colour: str, line: str = "-", drawstyle: str = "default") -> None:
    axes.plot(
        [p.x.mean * p.x.column.scale for p in points], [p.y.mean * p.y.column.scale for p in points],
        color=colour, linestyle=line, drawstyle=drawstyle, linewidth=1.0, zorder=1.5,
    )  # fmt: skip


def _mark(axes: Axes, point: _Point, look: Look) -> None:
    x, y = point.x, point.y
    axes.errorbar(
        x.mean * x.column.scale, y.mean * y.column.scale,
        xerr=None if x.sd is None else x.sd * x.column.scale, yerr=None if y.sd is None else y.sd * y.column.scale,
        marker=look.marker, markersize=4 if point.swept else 6, color=look.colour, elinewidth=0.7, linestyle=" ",
        clip_on=False, zorder=3,
    )  # fmt: skip


def _curve(axes: Axes, c: Column, found: Sequence[tuple[int, Entry]], look: Look | None) -> None:
    """A method's, or without a look the base model's."""
    x = [n for n, _ in found]
    mean = np.array([e.mean for _, e in found]) * c.scale
    if look is None:
        axes.plot(x, mean, color=INK, linewidth=1.0, linestyle=DOTTED)
        return
    sd = np.array([e.sd or 0.0 for _, e in found]) * c.scale
    axes.plot(x, mean, color=look.colour, marker=look.marker, markersize=4.5, linestyle=look.line, linewidth=1.2)
    if sd.any():
        axes.fill_between(x, mean - sd, mean + sd, color=look.colour, alpha=0.13, linewidth=0)


def _limits(entries: Sequence[Entry]) -> tuple[float, float]:
    """Around the means and their deviations, with some air."""
    scale = entries[0].column.scale
    low = min(e.mean - (e.sd or 0.0) for e in entries) * scale
    high = max(e.mean + (e.sd or 0.0) for e in entries) * scale
    air = 0.06 * (high - low) or 1.0
    return low - air, high + air


def _readable(axes: Axes, values: Sequence[float], *, share: bool) -> None:
    """A broken model's perplexity would flatten every other curve: orders of magnitude get a logarithmic axis."""
    if not share and values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}" if y >= 1e5 else f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
