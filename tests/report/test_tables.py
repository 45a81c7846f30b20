"""Tables: what is computed from the cells, who wins, and how it is marked up."""

from __future__ import annotations

import math
import random
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.made_cells import cell, study
from zerounlearn.errors import ConfigError
from zerounlearn.evaluation.joint_score import joint_score
from zerounlearn.report.columns import Goal, Group, column, columns
from zerounlearn.report.frame import Frames
from zerounlearn.report.markup import latex, latex_text, markdown
from zerounlearn.report.summary import tables
from zerounlearn.report.table import BASE, Entry, Table

NASTY = r"A_b & 50% of $x$ #1 {y} ~^ \z <b>|"


def core(cells: list[dict[str, Any]], reference: str | None = None) -> Table:
    return next(t for t in tables(Frames.of(cells), reference) if t.group is Group.CORE)


def entry(table: Table, label: str, metric: str = "eff") -> Entry:
    row = table.row(label)
    assert row is not None
    found = table.entry(row, metric)
    assert found is not None
    return found


def of(values: dict[str, list[float]], metric: str = "eff") -> Table:
    """A study whose methods have these values of one metric, a seed each."""
    return next(
        t
        for t in tables(
            Frames.of([cell(m, s, after={metric: v}) for m, vs in values.items() for s, v in enumerate(vs)])
        )
        if any(c.metric == metric for c in t.columns)
    )


def places(values: dict[str, list[float]], metric: str = "eff") -> dict[str, int | None]:
    table = of(values, metric)
    return {label: entry(table, label, metric).place for label in values}


def test_mean_and_sample_deviation_over_seeds() -> None:
    values = [0.1, 0.25, 0.4]
    found = entry(of({"GA": values}), "GA")
    assert found.count == 3
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.sd == pytest.approx(statistics.stdev(values))
    assert (found.shown, found.spread) == ("25.0", "15.0")


def test_base_comes_first_with_the_values_before() -> None:
    table = core(study())
    assert table.base is not None
    assert table.base.label == BASE
    assert entry(table, BASE, "ppl").mean == pytest.approx(29.46 + 0.02)
    assert [row.label for row in table.rows] == ["FT", "GA", "MEMIT", "ZeroUnlearn"]


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("eff", {"a": [0.1], "b": [0.0], "c": [0.2]}, {"a": 2, "b": 1, "c": None}),
        ("spe", {"a": [0.1], "b": [0.0], "c": [0.2]}, {"a": 2, "b": None, "c": 1}),
        ("mia_loss", {"a": [0.9], "b": [0.45], "c": [0.2]}, {"a": None, "b": 1, "c": 2}),
        ("mia_loss", {"a": [0.4], "b": [0.6], "c": [0.9]}, {"a": 1, "b": 1, "c": None}),
        ("truth_ratio", {"a": [0.1], "b": [0.0], "c": [0.2]}, dict.fromkeys("abc")),
        ("nobody_knows", {"a": [0.1], "b": [0.0], "c": [0.2]}, dict.fromkeys("abc")),
        ("forget_quality", {"a": [1e-9], "b": [3e-12], "c": [1e-20]}, {"a": 1, "b": 2, "c": None}),
    ],
)
def test_places_follow_the_direction(
    metric: str, values: dict[str, list[float]], expected: dict[str, int | None]
) -> None:
    assert places(values, metric) == expected


def test_equal_means_as_shown_share_a_place_and_two_firsts_leave_no_second() -> None:
    assert places({"a": [0.0001], "b": [0.0004], "c": [0.1]}) == {"a": 1, "b": 1, "c": None}
    assert places({"a": [0.0], "b": [0.1], "c": [0.1004]}) == {"a": 1, "b": 2, "c": 2}


def test_the_base_model_takes_no_place_even_where_it_is_best() -> None:
    table = core([cell(m, after={"spe": 0.2}) for m in ("a", "b")])
    assert entry(table, BASE, "spe").mean > 0.2
    assert entry(table, BASE, "spe").place is None
    assert entry(table, "a", "spe").place == 1


def test_a_failed_method_takes_no_place_and_is_said_to_have_failed() -> None:
    cells = [cell("good", s, after={"eff": 0.5}) for s in (0, 1)]
    cells += [cell("lucky", 0, after={"eff": 0.0}), cell("lucky", 1, error="CUDA out of memory")]
    cells += [cell("dead", s, error="no") for s in (0, 1)]
    table = core(cells)
    assert entry(table, "lucky").mean == 0.0
    assert entry(table, "lucky").place is None
    assert entry(table, "good").place == 1
    dead = table.row("dead")
    assert dead is not None and dead.entries == (None,) * len(table.columns)
    assert any("lucky: failed in 1 of 2" in note for note in table.notes)
    assert any("dead: failed in every seed" in note for note in table.notes)
    assert Frames.of(cells).failures["error"].tolist() == ["no", "no", "CUDA out of memory"]


def test_a_method_without_all_seeds_takes_no_place() -> None:
    table = core([cell("whole", s, after={"eff": 0.5}) for s in (0, 1)] + [cell("part", 0, after={"eff": 0.0})])
    assert (entry(table, "whole").place, entry(table, "part").place) == (1, None)
    assert any("part: 1 of 2 seeds so far" in note for note in table.notes)


def test_a_metric_missing_in_a_seed_takes_no_place_there_alone() -> None:
    cells = [cell("a", s, after={"eff": 0.0, "gen": 0.0}) for s in (0, 1)] + [cell("b", s) for s in (0, 1)]
    del cells[0]["after"]["eff"]
    cells[0]["after"]["spe"] = None
    table = core(cells)
    assert (entry(table, "a").count, entry(table, "a").place) == (1, None)
    assert entry(table, "a", "spe").count == 1
    assert entry(table, "a", "gen").place == 1
    assert entry(table, "b").place == 1


@pytest.mark.parametrize(("broken", "shown"), [(math.inf, "∞"), (math.nan, "NaN")])
def test_a_value_that_is_not_finite_is_shown_and_never_wins(broken: float, shown: str) -> None:
    for direction in ("ppl", "fluency"):
        table = of({"broken": [1.0, broken], "fine": [50.0, 60.0]}, direction)
        found = entry(table, "broken", direction)
        assert (found.shown, found.sd, found.place) == (shown, None, None)
        assert entry(table, "fine", direction).place == 1
        assert any("broken" in note and "not finite" in note for note in table.notes)


def test_one_seed_has_no_deviation_and_no_test() -> None:
    table = core(study(seeds=[7]))
    assert all(e is None or (e.sd is None and not e.mark) for row in table.rows for e in row.entries)
    assert not any(c.test for c in table.comparisons)
    assert "One seed (7)." in table.notes
    assert any(note.startswith("No significance test: 1 seed,") for note in table.notes)


def test_one_method_alone_is_first_and_compared_with_nobody() -> None:
    table = core(study(["only"]))
    assert entry(table, "only").place == 1
    assert table.comparisons == ()
    assert table.notes == ("Mean ± standard deviation over 5 seeds.",)


def test_columns_know_direction_unit_and_group() -> None:
    assert column("eff").axis == "Eff. ↓ (%)"
    assert column("eff_probability").goal is Goal.LOWER
    assert column("spe_relation_probability").goal is Goal.HIGHER
    assert column("lm_eval/mmlu_law/acc_norm").axis == "mmlu_law acc_norm ↑ (%)"
    assert column("lm_eval/wikitext/word_perplexity").goal is Goal.LOWER
    assert column("mystery").goal is Goal.NONE
    assert [c.metric for c in columns(["zz", "ppl", "gen_probability", "eff", "eff_probability"])] == [
        "eff",
        "ppl",
        "eff_probability",
        "gen_probability",
        "zz",
    ]
    assert column("ppl").text(3.2e8) == "3.2e+08"
    assert column("spe").text(-0.0001) == "0.0"


def test_two_sizes_and_data_sets_are_tables_of_their_own() -> None:
    cells = study(sizes=(10, 50)) + study(dataset="zsre")
    found = [(t.dataset, t.n) for t in tables(Frames.of(cells)) if t.group is Group.CORE]
    assert found == [("packaged", 10), ("packaged", 50), ("zsre", 10)]


def test_settings_of_a_sweep_stand_in_their_order() -> None:
    labels = ["FT lr=5e-05", "FT lr=0.0001", "FT lr=0.001", "ft lr=2", "FT lr=10", "GA", "GA, all layers"]
    table = core([cell(label) for label in random.Random(0).sample(labels, len(labels))])
    assert [row.label for row in table.rows] == labels


def test_tables_do_not_depend_on_the_order_of_cells() -> None:
    cells = study(sizes=(10, 50))
    shuffled = random.Random(0).sample(cells, len(cells))
    assert str(tables(Frames.of(cells))) == str(tables(Frames.of(shuffled))), "as text, where two NaN are alike"


def test_warnings_tell_of_weights_that_changed_and_of_bases_that_differ() -> None:
    cells = study(["a", "b"], seeds=[0])
    assert Frames.of(cells).warnings == ()
    cells[0]["restored"] = False
    cells[1] = cells[1] | {"weights": "other", "before": cells[1]["before"] | {"eff": 0.5}}
    one, two, three = Frames.of(cells).warnings
    assert "not restored after a" in one
    assert "2 different sets of weights" in two
    assert "eff" in three and "differs by 0.5" in three


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: [], "expected at least one"),
        (lambda c: [*c, c[0] | {"id": "again"}], "'again'"),
        (lambda c: [c[0] | {"id": None}], "id=None"),
        (lambda c: [c[0] | {"status": "running"}], "status='running'"),
        (lambda c: [c[0] | {"cell": c[0]["cell"] | {"n": "ten"}}], "cell.n='ten'"),
        (lambda c: [c[0] | {"cell": c[0]["cell"] | {"method": "base"}}], "call the method otherwise"),
        (lambda c: [c[0] | {"cell": "GA"}], "cell='GA': Input should be"),
        (lambda c: [c[0] | {"after": {"eff": "0.5"}}], "after.eff='0.5'"),
    ],
)
def test_malformed_cells_are_refused_by_name(spoil: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Frames.of(spoil(study(["a"], seeds=[0])))


def test_an_unknown_reference_is_refused_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'MEMIT'"):
        tables(Frames.of(study()), "MEMITT")


def test_markdown_tables_have_a_cell_for_every_column_and_mark_the_best() -> None:
    page = markdown(tables(Frames.of(study([NASTY, "GA"]))), f"Study {NASTY}", ["careful"])
    rows = [line for line in page.splitlines() if line.startswith("|")]
    blocks = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    for block in blocks:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert len(blocks) == 4
    assert any("**" in row for row in rows) and any("<ins>" in row for row in rows)
    assert all(re.search(r"(?<!\\)<(?!ins>|/ins>)", row) is None for row in rows)
    assert "> **Warning:** careful" in page


def test_latex_tables_are_booktabs_with_numbers_aligned_at_the_point() -> None:
    cells = study([NASTY, "GA"])
    text = latex(tables(Frames.of([*cells, *(cell("Wide", s, after={"ppl": 12345.678}) for s in range(5))])), "Study")
    assert text.count(r"\begin{table}") == 4
    bodies = re.findall(r"\\begin\{tabular\}\{l([^\n]*)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(bodies) == 4
    for spec, body in bodies:
        formats = re.findall(r"S\[table-format=-?(\d)\.(\d)\]@\{\\,\}l", spec)
        assert re.findall(r"\\(toprule|midrule|bottomrule)", body)[0] == "toprule"
        rows = [line for line in body.splitlines() if line.endswith(r" \\") and "shortstack" not in line]
        assert rows
        for row in rows:
            _, *found = re.split(r"(?<!\\)&", row.removesuffix(r" \\"))
            assert len(found) == 2 * len(formats), "each number and what stands behind it"
            for number, (whole, part) in zip(found[::2], formats, strict=True):
                plain = re.sub(r"\\(bfseries|itshape) ", "", number).strip()
                digits = re.fullmatch(r"-?(\d+)\.(\d+)", plain)
                assert plain.startswith("{") or (
                    digits and len(digits[1]) <= int(whole) and len(digits[2]) == int(part)
                )
    assert "S[table-format=5.2]" in bodies[0][0]
    assert r"\bfseries " in text and r"\itshape " in text


def test_a_wide_latex_table_goes_on_in_another() -> None:
    extra = {f"lm_eval/task{i:02}/acc": 0.5 for i in range(19)}
    text = latex([t for t in tables(Frames.of([cell("a", after=extra)])) if t.group is Group.UTILITY], "Study")
    assert re.findall(r"\((\d of \d)\)", text) == ["1 of 3", "2 of 3", "3 of 3"] * 1
    assert text.count("acc") >= 19


@given(st.text(alphabet=st.characters(codec="latin-1", categories=("L", "N", "P", "S", "Z")), max_size=30))
def test_escaped_latex_has_no_active_character_left(text: str) -> None:
    escaped = latex_text(text)
    plain = re.sub(r"\\[\\&%$#_{}]", "", escaped)
    assert not re.search(r"[&%#_~^]|\$", re.sub(r"\\[a-zA-Z]+|\\[\"'`^~=.]", "", plain))
    assert plain.count("{") == plain.count("}")


def test_latex_escapes_what_the_default_font_encoding_prints_as_something_else() -> None:
    assert latex_text("a|b") == r"a\textbar{}b"
    assert latex_text("a<b") == r"a\ensuremath{<}b"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_and_shows_the_labels(tmp_path: Path) -> None:
    cells = study([NASTY, "Naïve λ-GD", "GA"], seeds=[0, 1, 2])
    cells += [cell("Broken", s, after={"ppl": math.inf if s else 3e9}) for s in range(3)]
    cells += [cell("Dead", s, error="no") for s in range(3)]
    (tmp_path / "tables.tex").write_text(latex(tables(Frames.of(cells)), NASTY), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx,siunitx}\usepackage[T1]{fontenc}\begin{document}"
        r"\listoftables\input{tables}\end{document}"
    )
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_numbers_are_not_rounded_before_the_mean() -> None:
    values = list(np.linspace(0.001, 0.0049, 5))
    assert entry(of({"a": values}), "a").mean == pytest.approx(float(np.mean(values)), rel=1e-12)


WRECK = {"eff": 0.0, "gen": 0.0, "spe": 0.0, "spe_relation": 0.0, "spe_subject": 0.0, "spe_unrelated": 0.0}


def test_a_collapsed_model_wins_nothing_and_is_said_to_have_collapsed() -> None:
    mild = {"eff": 0.2, "gen": 0.2, "spe": 0.8, "spe_relation": 0.8, "spe_subject": 0.8, "spe_unrelated": 0.8}
    cells = [cell("mild", s, after=mild) for s in (0, 1)] + [cell("GA", s, after=WRECK | {"ppl": 2e3}) for s in (0, 1)]
    for table in tables(Frames.of(cells)):
        wreck = table.row("GA")
        assert wreck is not None and wreck.collapsed == 2
        assert not any(e.place for e in wreck.entries if e)
        assert any(note.startswith("GA: collapsed in 2 of 2 seeds") for note in table.notes)
    table = core(cells)
    assert (entry(table, "mild").place, entry(table, "GA").mean) == (1, 0.0)
    assert entry(table, "GA", "score").mean < 0.05 < 0.7 < entry(table, "mild", "score").mean
    assert "GA (collapsed)" in markdown([table], "t", []) and "GA (collapsed)" in latex([table], "t")


def test_the_score_is_the_mean_of_the_seeds_scores() -> None:
    made = [cell("a", s, after={"eff": 0.1 * s}) for s in range(3)]
    table = core(made)
    scores = [joint_score(c["before"], c["after"]) for c in made]
    assert entry(table, "a", "score").mean == pytest.approx(statistics.fmean(scores))
    assert table.base is not None and table.entry(table.base, "score") is None


def test_relative_values_are_of_what_the_base_model_knew() -> None:
    made = [cell("a", s, after={"eff": 0.25, "gen": 0.14, "spe": 0.45, "ppl": 2 * 29.46}) for s in (0,)]
    made[0]["known"] = {"eff": {"asked": 10, "said": 10}, "gen": {"asked": 20, "said": 14}}
    (table,) = (t for t in tables(Frames.of(made)) if t.group is Group.RELATIVE)
    heads = {c.metric: c.axis for c in table.columns}
    assert heads["eff"] == "Eff. forgotten ↑ (%)"
    assert heads["spe"] == "Spe. kept ↑ (%)"
    assert heads["ppl"] == "PPL, × base ↓"
    assert "score" not in heads and table.base is None
    shown = {m: entry(table, "a", m).shown for m in ("eff", "gen", "spe", "ppl")}
    assert shown == {"eff": "75.0", "gen": "80.0", "spe": "50.0", "ppl": "2.00"}
    note = "Prompts that the base model answers, of all that are asked: Eff. 10 of 10, Gen. 14 of 20."
    assert note in table.notes
    assert table.comparisons == ()


def test_what_the_base_model_did_not_know_has_no_relative_value() -> None:
    made = cell("a")
    made["before"] = made["before"] | {"gen": 0.0}
    (table,) = (t for t in tables(Frames.of([made])) if t.group is Group.RELATIVE)
    assert "gen" not in [c.metric for c in table.columns]
