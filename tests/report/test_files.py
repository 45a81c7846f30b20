"""The files of a study: complete, tidy, the same bytes for the same cells, and nothing global touched."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.made_cells import cell, study
from zerounlearn.errors import ConfigError, OutputError
from zerounlearn.report.breakdown import heat_map
from zerounlearn.report.canvas import OTHERS, OWN
from zerounlearn.report.columns import Group
from zerounlearn.report.frame import Frames
from zerounlearn.report.outputs import outputs, write_outputs
from zerounlearn.report.page import About
from zerounlearn.report.provenance import merged
from zerounlearn.report.summary import tables
from zerounlearn.report.trade_off import KEPT, NARROWEST, by_size, dodged, limits, pareto

ROOT = Path(__file__).resolve().parents[2]
TITLE = "A study of <four> methods"


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    """Two sizes, a method with a broken perplexity, one that fails, one with a metric less."""
    made = study(["ZeroUnlearn", "GA"], seeds=(0, 1, 2), sizes=(10, 50))
    made += [cell("Broken", s, n, after={"ppl": math.inf if s else math.nan}) for s in range(3) for n in (10, 50)]
    made += [cell("Dead $x_1$", s, error="RuntimeError: <b>no</b>\nat line 2") for s in range(3)]
    del made[0]["after"]["gen"]
    return made


@pytest.fixture(scope="module")
def files(cells: list[dict[str, Any]]) -> dict[str, bytes]:
    """All of them."""
    return outputs(cells, About(TITLE))


def test_every_file_is_there(files: dict[str, bytes], cells: list[dict[str, Any]], tmp_path: Path) -> None:
    core = ("eff", "gen", "ppl", "score", *KEPT)
    plots = [f"by-size-{metric}" for metric in core]
    plots += [f"n{n}-pareto-{forget}-{kept}" for n in (10, 50) for forget in ("eff", "gen") for kept in KEPT]
    plots += [f"n{n}-{kind}" for n in (10, 50) for kind in ("facts", "time")]
    tables = {"results.csv", "results.parquet", "failures.csv", "facts.csv", "significance.csv"}
    pages = {"tables.md", "tables.tex", "report.html"}
    expected = {f"plots/packaged-{plot}.{kind}" for plot in plots for kind in ("svg", "pdf", "png")} | tables | pages
    assert set(files) == expected
    write_outputs(tmp_path / "new", cells[:2], About(TITLE))
    on_disk = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert {"results.parquet", "report.html", "plots/packaged-n10-time.pdf"} <= on_disk
    assert not [name for name in on_disk if name.endswith(".tmp")]


@pytest.mark.slow
def test_the_same_cells_give_the_same_bytes_in_any_order_and_process(
    files: dict[str, bytes], cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    shuffled = random.Random(1).sample(cells, len(cells))
    (tmp_path / "cells.json").write_text(json.dumps(shuffled), encoding="utf-8")
    code = (
        "import hashlib, json, sys; from zerounlearn.report.outputs import outputs;"
        "from zerounlearn.report.page import About;"
        "found = outputs(json.load(open(sys.argv[1], encoding='utf-8')), About(sys.argv[2]));"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was imported';"
        "print(json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in found.items()}))"
    )
    # Other hash seeds order sets otherwise, and a user's own style must not show.
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 20\n")
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cells.json"), TITLE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    other = json.loads(run.stdout.splitlines()[-1])
    assert other == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_matplotlibs_settings_are_as_before(cells: list[dict[str, Any]]) -> None:
    with mpl.rc_context({"font.size": 33.0, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        table = next(t for t in tables(Frames.of(cells)) if t.group is Group.CORE)
        assert pareto(table, "p") is not None
        assert dict(mpl.rcParams) == before


def test_results_are_one_number_a_row_and_csv_equals_parquet(
    files: dict[str, bytes], cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "results.csv").write_bytes(files["results.csv"])
    (tmp_path / "results.parquet").write_bytes(files["results.parquet"])
    # Other spellings of missing, such as "None", are labels that a method may have.
    frame = pd.read_csv(tmp_path / "results.csv", keep_default_na=False, na_values={"value": ["NaN"]})
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tmp_path / "results.parquet"), check_dtype=False)
    assert not frame.duplicated(["id", "phase", "metric"]).any()
    for made in cells:
        own = frame[frame["id"] == made["id"]]
        after = dict(zip(own[own.phase == "after"].metric, own[own.phase == "after"].value, strict=True))
        score = after.pop("score", None)
        assert (score is None) == bool(made["error"])
        assert after == pytest.approx(made["after"], nan_ok=True)
        cost = dict(zip(own[own.phase == "cost"].metric, own[own.phase == "cost"].value, strict=True))
        assert cost.get("unlearn_seconds") == (None if made["error"] else made["seconds"]["unlearn"])
    assert math.inf in frame["value"].tolist()


def test_other_csv_files_hold_failures_facts_and_tests(files: dict[str, bytes], tmp_path: Path) -> None:
    read = {}
    for name in ("failures.csv", "facts.csv", "significance.csv"):
        (tmp_path / name).write_bytes(files[name])
        read[name] = pd.read_csv(tmp_path / name)
    assert read["failures.csv"]["error"].tolist() == ["RuntimeError: <b>no</b>\nat line 2"] * 3
    assert len(read["facts.csv"]) == 3 * 18
    found = read["significance.csv"]
    assert {"p_t", "p_wilcoxon", "p_holm", "reference", "pairs", "why_not"} <= set(found.columns)
    assert (found["p_holm"].dropna() >= found["p_t"][found["p_holm"].notna()].fillna(0) - 1e-12).all()


def test_a_folder_that_is_a_file_is_refused(cells: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        write_outputs(tmp_path / "taken", cells[:1], About(TITLE))


def test_bad_cells_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_outputs(tmp_path / "new", [], About(TITLE))
    assert not (tmp_path / "new").exists()


def front(table: Any, forget: str, keep: str) -> set[str]:
    """By definition, from the rows: no other complete method is as good in both and better in one."""
    points = {
        row.label: (table.entry(row, forget).mean, -table.entry(row, keep).mean)
        for row in table.rows
        if table.complete(row)
    }
    return {
        label
        for label, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }


@pytest.mark.parametrize("forget", ["eff", "gen"])
def test_the_front_joins_the_methods_that_none_dominates(forget: str) -> None:
    made = [*study([f"m{i:02}" for i in range(14)], seeds=(0, 1)), cell("m00x", 0, after={"eff": 0.0, "spe": 1.0})]
    made.append(cell("m00x", 1, error="failed"))
    made += [cell("wreck", s, after={"eff": 0.0, "gen": 0.0, "ppl": 5000.0}) for s in (0, 1)]
    table = core(made)
    plot = pareto(table, "p", forget)
    assert plot is not None
    on = plot.images[0].alt.partition("On the front: ")[2].rstrip(".")
    expected = front(table, forget, "spe")
    assert set(on.split(", ")) == expected
    assert not {"m00x", "wreck"} & expected


def core(cells: list[dict[str, Any]]) -> Any:
    return next(t for t in tables(Frames.of(cells)) if t.group is Group.CORE)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_an_axis_of_percentages_is_within_bounds_wide_enough_and_shows_all(values: list[float]) -> None:
    low, high = limits(values, values)
    assert 0 <= low <= min(values) <= max(values) <= high <= 100
    assert high - low >= NARROWEST - 1e-9


@given(st.lists(st.sampled_from([(0.0, 90.0), (0.0, 80.0), (5.0, 90.0)]), max_size=8))
def test_equal_points_stand_beside_each_other(places: list[tuple[float, float]]) -> None:
    moved = dodged(places)
    for place in set(places):
        own = sorted(x for x, at in zip(moved, places, strict=True) if at == place)
        assert sum(own) == pytest.approx(0)
        assert all(b - a >= 6 for a, b in itertools.pairwise(own)), "a mark is six points wide"


def marks(svg: bytes, colour: str) -> list[tuple[float, float]]:
    """Where the points of a colour are."""
    uses = [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}use")]
    return [
        (float(e.attrib["x"]), float(e.attrib["y"])) for e in uses if f"fill: {colour}" in e.attrib.get("style", "")
    ]


def test_the_own_method_has_the_colour_and_every_method_a_name() -> None:
    same = {"eff": 0.0, "gen": 0.1, "spe": 0.8}
    made = [cell(method, s, after=same) for method in ("A", "B", "Ours") for s in (0, 1)]
    plot = pareto(core(made), "p", own="Ours")
    assert plot is not None
    svg = plot.images[0].files["svg"]
    (own,), others = marks(svg, OWN), marks(svg, OTHERS)
    assert len({own, *others}) == 3, "three marks of the same values, none on another"
    names = [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]
    inks = {e.text: e.attrib["style"] for e in names if e.text in ("A", "B", "Ours")}
    assert len(inks) == 3
    assert [name for name, ink in inks.items() if OWN in ink] == ["Ours"]


def test_intervals_stay_within_their_bounds() -> None:
    """Half a standard deviation below two seeds of 0 and 30 % would be below nothing."""
    table = core([cell("A", s, after={"eff": 0.3 * s, "spe": 1.0 - 0.2 * s}) for s in (0, 1)])
    eff, spe = (table.entry(table.rows[0], m) for m in ("eff", "spe"))
    assert eff.mean - eff.sd < 0 < 1 < spe.mean + spe.sd
    assert (eff.low, eff.high, spe.low, spe.high) == (0.0, 0.3, 0.8, 1.0)
    plot = pareto(table, "p")
    assert plot is not None
    root = ElementTree.fromstring(plot.images[0].files["svg"])
    bars = [
        e.attrib["d"]
        for e in root.iter()
        if e.attrib.get("id", "").startswith("LineCollection")
        for e in e.iter()
        if e.tag.endswith("}path")
    ]
    assert len(bars) == 2
    axes = next(e for e in root.iter() if e.attrib.get("id") == "patch_2")
    frame = [float(x) for x in re.findall(r"[\d.]+", next(iter(axes)).attrib["d"])]
    for d in bars:
        numbers = [float(x) for x in re.findall(r"[\d.]+", d)]
        for x, y in zip(numbers[::2], numbers[1::2], strict=True):
            assert min(frame[::2]) - 0.1 <= x <= max(frame[::2]) + 0.1
            assert min(frame[1::2]) - 0.1 <= y <= max(frame[1::2]) + 0.1


def test_plots_say_nothing_where_there_is_nothing() -> None:
    made = study(seeds=(0,))
    for one in made:
        one["after"] = {"eff": one["after"]["eff"]}
        one["facts"] = []
    frames = Frames.of(made)
    table = next(t for t in tables(frames) if t.group is Group.CORE)
    assert pareto(table, "p") is None
    assert by_size([table], "p") is None
    assert heat_map(frames.facts, frames.methods, "p") is None


def test_a_heat_map_shows_the_facts_that_are_hardest_to_forget() -> None:
    made = [cell("a", facts=0), cell("b", facts=0)]
    for one in made:
        one["facts"] = [
            {
                "prompt": f"p{i:02}",
                "answer": "x",
                "before": {"said": True, "probability": 0.5},
                "after": {"said": i == 60, "probability": i / 100},
            }
            for i in range(61)
        ]
    plot = heat_map(Frames.of(made).facts, ["a", "b"], "heat")
    assert plot is not None
    shown = [text for text in texts(plot.images[0].files["svg"]) if re.match(r"p\d\d", text)]
    assert [text[:3] for text in shown] == [f"p{i:02}" for i in range(60, 20, -1)]
    assert "The 40 of 61 facts" in plot.caption


def test_a_heat_map_of_many_methods_has_a_row_of_each() -> None:
    """Beside each other their names would overlap."""
    for count, upright in ((39, False), (40, True)):
        methods = [f"m{i:02}" for i in range(count)]
        plot = heat_map(Frames.of([cell(method) for method in methods]).facts, methods, "heat")
        assert plot is not None
        root = ElementTree.fromstring(plot.images[0].files["svg"])
        of_methods = [e for e in root.iter() if re.fullmatch(r"m\d\d", "".join(e.itertext()).strip()) and not len(e)]
        assert len(of_methods) == count
        assert all(("rotate(-90" in e.attrib["transform"]) != upright for e in of_methods)


def test_labels_are_drawn_as_they_are(files: dict[str, bytes]) -> None:
    drawn = texts(outputs([cell("Price $5$ & <b>_x^2", s) for s in (0, 1)], About("t"))["plots/packaged-n10-time.svg"])
    assert "Price $5$ & <b>_x^2" in drawn
    assert any(text == "100" or text == "10" for text in texts(files["plots/packaged-by-size-eff.svg"]))


def test_what_is_not_finite_is_left_out_of_curves_and_said(cells: list[dict[str, Any]]) -> None:
    frames = Frames.of(cells)
    core = [t for t in tables(frames) if t.group is Group.CORE]
    plot = by_size(core, "p")
    assert plot is not None
    assert plot.caption.endswith("Not finite, so not drawn: Broken (PPL).")
    drawn = "".join(image.files["svg"].decode() for image in plot.images)
    assert "nan" not in drawn.lower().replace("nance", "")


def test_data_sets_that_differ_in_punctuation_keep_files_of_their_own() -> None:
    names = ("a b", "a-b", "A/b", "…")
    made = [cell("m", dataset=name, facts=0) | {"after": {"eff": 0.5}} for name in names]
    assert len([name for name in outputs(made, About("t")) if name.endswith("time.svg")]) == 4


def test_settings_that_differ_are_all_shown() -> None:
    assert merged([{"lr": 0.1, "layers": [1, 2]}, {"lr": 0.2, "layers": [1, 2]}]) == {
        "layers": "[1, 2]",
        "lr": "0.1 | 0.2",
    }


def texts(svg: bytes) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]


def test_a_plot_that_cannot_be_drawn_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """One control character in an old cell's fact, say: the tables, the page and the other plots are there."""
    from zerounlearn.report import outputs

    cells = study(["A", "B"])
    whole = outputs.outputs(cells, About("title"))

    def fails(*_: object) -> None:
        raise ValueError("not well-formed (invalid token)")

    monkeypatch.setattr(outputs, "heat_map", fails)
    with caplog.at_level("WARNING"):
        files = outputs.outputs(cells, About("title"))
    assert "a plot is missing: ValueError: not well-formed" in caplog.text
    gone = set(whole) - set(files)
    assert gone
    assert all("facts" in name for name in gone)
    assert {"results.csv", "tables.md", "tables.tex", "report.html"} <= set(files)


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    import pandas as pd

    from zerounlearn.report.outputs import _csv

    texts = ["=cmd|' /C calc'!A0", "@SUM(A1)", "+1", "-2", "\t=1", " =1", "plain", "a=b"]
    frame = pd.DataFrame({"text": texts, "number": [-1.5, 2.0, float("nan"), float("inf"), 0.0, 1.0, 2.0, 3.0]})
    lines = _csv(frame).splitlines()[1:]
    assert [line.startswith(("'", "\"'")) for line in lines] == [True] * 6 + [False] * 2
    assert lines[0].endswith(",-1.5")
    assert lines[2].endswith(",NaN")
