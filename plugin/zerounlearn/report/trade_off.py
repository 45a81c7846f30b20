"""What forgetting costs: forgetting against specificity, and everything against the number of facts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from zerounlearn.report.canvas import INK, LABEL, OWN, Image, Plot, colour, name_points, panel, saved, short, style
from zerounlearn.report.columns import Column
from zerounlearn.report.matched import front
from zerounlearn.report.table import BASE, Entry, Row, Table

KEPT = ("spe", "spe_relation", "spe_subject", "spe_unrelated")
NARROWEST = 5.0
"""Percentage points that an axis shows at least: less would make nothing look like something."""
_APART = 7.0
"""Points (1/72 inch) between marks whose values are the same."""


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

    @property
    def at(self) -> tuple[float, float]:
        """As shown."""
        return self.x.mean * self.x.column.scale, self.y.mean * self.y.column.scale


def pareto(
    table: Table,
    name: str,
    forget: str = "eff",
    *,
    own: str | None = None,
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> Plot | None:
    """Forgetting (`eff` or `gen`) against every specificity that was measured, an image each; None without any.

    The front joins the methods that no other beats in one of the two without losing in the other; a method that
    failed, collapsed or lacks a seed is drawn, but not on it. The settings of a sweep look alike, and those that no
    other of it beats are joined, too. The base model is a line at its specificity: as a point, far off, it would
    leave the methods no room.

    Args:
        table: of the core metrics.
        name: of the image's files.
        forget: what is on the horizontal axis.
        own: label of the method, or sweep, that has a colour.
        sweeps: labels of the settings of each swept method, by its own.
    """
    of = {label: sweep for sweep, labels in (sweeps or {}).items() for label in labels}
    panels = {metric: points for metric in KEPT if (points := _points(table, forget, metric, of))}
    if not panels:
        return None
    with style():
        images = [_panel(table, f"{name}-{metric}", metric, points, own) for metric, points in panels.items()]
    head = next(iter(panels.values()))[0].x.column.head
    return Plot(
        f"Forgetting ({head}) against what is kept: means, with bars from the seeds' lowest to their highest; upper "
        "left is better. The solid line is the Pareto front, the dotted one the base model's specificity. Marks of the "
        "same values stand beside each other."
        + (" Small marks are settings of one method, means only, the best of them joined." if of else ""),
        tuple(images),
    )


def by_size(tables: Sequence[Table], name: str, *, own: str | None = None) -> Plot | None:
    """Each metric of these tables (one data set and group) against the number of facts; None with one size only."""
    tables = sorted(tables, key=lambda t: t.n)
    sizes = [t.n for t in tables]
    if len(sizes) < 2:
        return None
    labels = [BASE, *dict.fromkeys(row.label for t in tables for row in t.rows)]
    images, left_out = [], set()
    with style():
        for c in {c.metric: c for t in tables for c in t.columns}.values():
            found = {
                label: [(t.n, e) for t in tables if (row := t.row(label)) and (e := t.entry(row, c.metric))]
                for label in labels
            }
            left_out |= {f"{x} ({c.label})" for x in labels for _, e in found[x] if not math.isfinite(e.mean)}
            curves = {x: [(n, e) for n, e in found[x] if math.isfinite(e.mean)] for x in labels}
            images.append(_curves(f"{name}-{c.metric}".replace("/", "-"), c, sizes, curves, own, tables[0].dataset))
    missing = f" Not finite, so not drawn: {', '.join(sorted(left_out))}." if left_out else ""
    return Plot(
        f"By the number of facts forgotten: means, with bands from the seeds' lowest to their highest.{missing}",
        tuple(images),
    )


def limits(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """Of an axis of percentages: around all values with some air, `NARROWEST` wide at least, from 0 to 100 at most."""
    low, high = min(lows), max(highs)
    air = max(0.06 * (high - low), (NARROWEST - (high - low)) / 2)
    low, high = max(0.0, low - air), min(100.0, high + air)
    return min(low, 100.0 - NARROWEST), max(high, NARROWEST)


def dodged(places: Sequence[tuple[float, float]]) -> list[float]:
    """How far each mark moves to the right, in points, so that marks of the same place stand beside each other."""
    same: dict[tuple[float, float], list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        same[place].append(i)
    return [_APART * (same[place].index(i) - (len(same[place]) - 1) / 2) for i, place in enumerate(places)]


def _panel(table: Table, name: str, metric: str, points: Sequence[_Point], own: str | None) -> Image:
    named = {p.label: p for p in points}  # of a sweep its last setting
    drawn, axes = panel(len(named) + 1)
    across, up = points[0].x.column, points[0].y.column
    base = table.entry(table.base, metric) if table.base else None
    heights = [p.y for p in points] + ([base] if base and math.isfinite(base.mean) else [])
    for set_limits, entries in ((axes.set_xlim, [p.x for p in points]), (axes.set_ylim, heights)):
        scale = entries[0].column.scale
        set_limits(*limits([e.low * scale for e in entries], [e.high * scale for e in entries]))
    levels = [base.mean * up.scale] if base and math.isfinite(base.mean) else []
    for level in levels:
        axes.axhline(level, color=INK, linewidth=1.0, linestyle=":")
    for sweep in dict.fromkeys(p.label for p in points if p.swept):
        best = _unbeaten([p for p in points if p.swept and p.label == sweep])
        axes.plot(*zip(*(p.at for p in best), strict=True), color=colour(sweep, own), linestyle=":", linewidth=1.0)
    on = _unbeaten([p for p in points if p.able])
    if on:
        axes.plot(*zip(*(p.at for p in on), strict=True), color=INK, drawstyle="steps-post", linewidth=0.8, zorder=1.5)
    shown = [(round(p.at[0], 1), round(p.at[1], 1)) for p in points]
    for p, aside in zip(points, dodged(shown), strict=True):
        _mark(axes, p, aside, colour(p.label, own))
    order = sorted(named.values(), key=lambda p: p.label != own)
    names = [(*p.at, short(p.label, LABEL), OWN if p.label == own else INK) for p in order]
    names += [(axes.get_xlim()[1], level, BASE, INK) for level in levels]
    name_points(axes, names, [p.at for p in points], levels)
    axes.set_xlabel(across.axis)
    axes.set_ylabel(up.axis)
    front = ", ".join(p.row.label for p in on) or "none"
    where = f"on {table.dataset}, n = {table.n}"
    return saved(drawn, name, f"{across.label} against {up.label} {where}. On the front: {front}.")


def _points(table: Table, x: str, y: str, of: Mapping[str, str]) -> list[_Point]:
    found = []
    for row in table.rows:
        a, b = table.entry(row, x), table.entry(row, y)
        if a and b and math.isfinite(a.mean) and math.isfinite(b.mean):
            label = of.get(row.label, row.label)
            found.append(_Point(row, a, b, table.complete(row), label, row.label in of))
    return found


def _unbeaten(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other beats, in order: less of x is better, more of y is; equal ones all stay."""
    best = set(front((p.y.mean, p.x.mean) for p in points))
    on = [p for p in points if (p.y.mean, p.x.mean) in best]
    return sorted(on, key=lambda p: (p.x.mean, p.y.mean))


def _mark(axes: Axes, point: _Point, aside: float, ink: str) -> None:
    """The mean and, but for the many settings of a sweep, the range of the seeds."""
    (x, y), figure = point.at, axes.get_figure(root=True)
    assert figure is not None
    axes.errorbar(
        x,
        y,
        xerr=None if point.swept else _range(point.x),
        yerr=None if point.swept else _range(point.y),
        marker="o",
        markersize=3.5 if point.swept else 6,
        color=ink,
        elinewidth=0.7,
        linestyle=" ",
        clip_on=False,
        zorder=4 if ink == OWN else 3,
        transform=axes.transData + ScaledTranslation(0 if point.swept else aside / 72, 0, figure.dpi_scale_trans),
    )


def _range(entry: Entry) -> list[list[float]]:
    scale = entry.column.scale
    return [[(entry.mean - entry.low) * scale], [(entry.high - entry.mean) * scale]]


def _curves(
    name: str,
    c: Column,
    sizes: Sequence[int],
    curves: Mapping[str, Sequence[tuple[int, Entry]]],
    own: str | None,
    dataset: str,
) -> Image:
    drawn, axes = panel(len(curves))
    ends: list[tuple[float, float, str, str]] = []
    values: list[float] = []
    for label, found in sorted(curves.items(), key=lambda item: item[0] != own):
        if not found:
            continue
        x, mean = [n for n, _ in found], [e.mean * c.scale for _, e in found]
        ink, line = (INK, ":") if label == BASE else (colour(label, own), "-")
        axes.plot(
            x, mean, color=ink, linestyle=line, linewidth=1.2, marker="" if label == BASE else "o", markersize=3.5
        )
        if label != BASE:
            low, high = ([getattr(e, end) * c.scale for _, e in found] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=ink, alpha=0.1, linewidth=0)
        ends.append((x[-1], mean[-1], short(label, LABEL), OWN if label == own else INK))
        values += [end * c.scale for _, e in found for end in (e.low, e.high)]
    axes.set_xscale("log" if max(sizes) >= 8 * min(sizes) else "linear")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("facts forgotten")
    axes.set_ylabel(c.axis)
    if values and c.unit == "%":
        axes.set_ylim(*limits(values, values))
    elif values and min(values) > 0 and max(values) > 20 * min(values):
        # A broken model's perplexity would flatten every other curve.
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}" if y >= 1e5 else f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.autoscale_view()
    name_points(axes, ends)
    alt = f"{c.label} by the number of facts forgotten on {dataset}, sizes {', '.join(map(str, sizes))}."
    return saved(drawn, name, alt)
