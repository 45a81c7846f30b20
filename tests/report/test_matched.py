"""Swept methods at another one's place: the reading is the best that the sweep reaches, seed by seed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.report.made_cells import cell
from tests.report.test_page import Ids
from zerounlearn.report.columns import Group
from zerounlearn.report.frame import Frames
from zerounlearn.report.matched import Point, front, kept_at, said_at
from zerounlearn.report.outputs import outputs
from zerounlearn.report.page import About
from zerounlearn.report.summary import tables
from zerounlearn.report.table import Table
from zerounlearn.report.trade_off import pareto

SWEEPS = {"FT": ["FT lr=1", "FT lr=2"]}
shares = st.integers(0, 20).map(lambda k: k / 20)
clouds = st.lists(st.tuples(shares, shares), min_size=1, max_size=12)


def made(ours: list[tuple[float, float, float]], *settings: list[tuple[float, float, float]]) -> list[dict[str, Any]]:
    """Cells with these Spe., Eff. and Gen. a seed: ours, and each setting of FT's."""
    return [
        cell(method, seed, after=dict(zip(("spe", "eff", "gen"), values, strict=True)))
        for method, seeds in zip(("ours", *SWEEPS["FT"]), (ours, *settings), strict=True)
        for seed, values in enumerate(seeds)
    ]


def matched(cells: list[dict[str, Any]]) -> Table:
    (table,) = (t for t in tables(Frames.of(cells), sweeps=SWEEPS) if t.group is Group.MATCHED)
    return table


def mean(table: Table, label: str, metric: str) -> float:
    row = table.row(label)
    assert row is not None
    entry = table.entry(row, metric)
    assert entry is not None
    return entry.mean


@given(clouds)
def test_the_front_is_what_no_other_point_beats(points: list[Point]) -> None:
    found = front(points)
    for (kept, said), (more, louder) in itertools.pairwise(found):
        assert kept < more and said < louder
    for point in points:
        better = [p for p in points if p[0] >= point[0] and p[1] <= point[1] and p != point]
        assert (point in found) == (not better)


@given(clouds, shares)
def test_no_setting_that_keeps_as_much_says_less(points: list[Point], kept: float) -> None:
    least = said_at(points, kept)
    assert all(least <= said + 1e-12 for keeps, said in points if keeps >= kept)
    assert min(said for _, said in points) <= least <= max(said for _, said in front(points))


@given(clouds, shares)
def test_no_setting_that_says_as_little_keeps_more(points: list[Point], said: float) -> None:
    most = kept_at(points, said)
    below = [keeps for keeps, says in points if says <= said]
    assert (most is None) == (not below)
    assert most is None or all(keeps <= most + 1e-12 for keeps in below)


@given(clouds, shares)
def test_reading_one_way_and_back_comes_home(points: list[Point], kept: float) -> None:
    ends = front(points)
    assume(ends[0][0] <= kept <= ends[-1][0])
    assert kept_at(points, said_at(points, kept)) == pytest.approx(kept)


def test_by_hand() -> None:
    """The base model has Spe. 0.9, Eff. 1 and Gen. 0.7."""
    table = matched(made([(0.5, 0.2, 0.1)], [(0.7, 0.6, 0.4)], [(0.3, 0.0, 0.2)]))
    assert mean(table, "FT (swept)", "eff") == pytest.approx(0.3)  # half way from (0.3, 0.0) to (0.7, 0.6)
    assert mean(table, "FT (swept)", "gen") == pytest.approx(0.3)
    assert mean(table, "FT (swept)", "spe") == pytest.approx(0.3 + 0.4 / 3)  # a third of the way
    assert [mean(table, "ours", m) for m in ("eff", "gen", "spe")] == [0.2, 0.1, 0.5]
    weak = matched(made([(0.8, 0.7, 0.5)], [(0.7, 0.6, 0.4)], [(0.3, 0.0, 0.2)]))
    assert mean(weak, "FT (swept)", "eff") == pytest.approx(0.8)  # towards the base model


def test_where_no_setting_says_so_little_there_is_no_specificity() -> None:
    table = matched(made([(0.5, 0.0, 0.1)] * 2, [(0.7, 0.6, 0.4)] * 2, [(0.3, 0.1, 0.2), (0.3, 0.0, 0.2)]))
    row = table.row("FT (swept)")
    assert row is not None
    eff, spe = (table.entry(row, m) for m in ("eff", "spe"))
    assert eff is not None and eff.count == 2
    assert spe is not None and (spe.count, spe.mean, spe.place) == (1, pytest.approx(0.3), None)
    assert "FT (swept): Spe. (1 of 2) is not there for every seed; takes no place there." in table.notes
    never = matched(made([(0.5, 0.0, 0.1)], [(0.7, 0.6, 0.4)], [(0.3, 0.1, 0.2)]))
    row = never.row("FT (swept)")
    assert row is not None and never.entry(row, "spe") is None


def test_a_failed_setting_is_not_there_and_a_failed_point_has_no_table() -> None:
    cells = made([(0.5, 0.2, 0.1)], [(0.7, 0.6, 0.4)], [(0.3, 0.0, 0.2)])
    cells[2] = cell("FT lr=2", 0, error="RuntimeError: no")
    assert mean(matched(cells), "FT (swept)", "eff") == pytest.approx(0.6)
    cells[0] = cell("ours", 0, error="RuntimeError: no")
    assert not [t for t in tables(Frames.of(cells), sweeps=SWEEPS) if t.group is Group.MATCHED]
    assert not [t for t in tables(Frames.of(cells)) if t.group is Group.MATCHED]


def test_the_sweep_is_tested_against_the_point_seed_by_seed() -> None:
    wobble = [0.02 * s for s in range(5)]
    ours = [(0.5, 0.1 + w, 0.3 + w) for w in wobble]
    table = matched(
        made(ours, [(0.7, 0.6 + w, 0.4 + w) for w in wobble], [(0.5, 0.5 + w / 3, 0.3 + w) for w in wobble])
    )
    assert {(c.method, c.reference) for c in table.comparisons} == {("FT (swept)", "ours")}
    marks = {c.metric: c.mark for c in table.comparisons}
    assert marks == {"eff": "‡", "gen": ""}  # no setting has so little an Eff., so no Spe. is compared
    assert table.notes[0].startswith("A swept method's Eff. and Gen. are read where it keeps the Spe. of ours,")


def test_every_output_has_them() -> None:
    cells = made(*([(0.5 + 0.01 * s, x, x) for s in range(3)] for x in (0.1, 0.4, 0.2)))
    cells += [{**one, "id": f"too {one['id']}", "cell": {**one["cell"], "method": "other"}} for one in cells[:3]]
    files = outputs(cells, About("t", sweeps=SWEEPS))
    page = files["report.html"].decode()
    parsed = Ids()
    parsed.feed(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    for point in ("ours", "other"):
        assert f"## Swept methods where {point} stands: packaged, n = 10" in files["tables.md"].decode()
        assert f"Swept methods where {point} stands</h3>" in page
        assert rf"\label{{tab:packaged-n10-matched-{point}}}" in files["tables.tex"].decode()
    assert "FT (swept),ours" in files["significance.csv"].decode()


def test_the_settings_of_a_sweep_look_alike_in_a_plot() -> None:
    cells = made([(0.5, 0.2, 0.1)], [(0.7, 0.6, 0.4)], [(0.3, 0.0, 0.2)])
    frames = Frames.of(cells)
    table = next(t for t in tables(frames) if t.group is Group.CORE)
    plot = pareto(table, "p", sweeps=SWEEPS)
    assert plot is not None
    drawn = plot.images[0].files["svg"].decode()
    assert ">FT<" in drawn and "lr=" not in drawn
    assert "FT lr=2" in plot.images[0].alt.partition("On the front: ")[2]
    assert "settings of one method" in plot.caption
    apart = pareto(table, "p")
    assert apart is not None and "lr=" in apart.images[0].files["svg"].decode()
