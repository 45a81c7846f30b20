"""The guide to edits: its snippets run on the real model, and its tables are what the tests and the formulas say."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.easyedit.test_edit_file import STAYS
from tests.guides import like_a_clone, run, snippets
from zerounlearn.method.edit_file import FORMAT

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/edits.md").read_text(encoding="utf-8")
SNIPPETS = snippets("docs/edits.md")


def row(first: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(first)} \|.*$", GUIDE, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("kind", "text"),
    [pytest.param(*one, marks=pytest.mark.slow if one[0] == "bash" else ()) for one in SNIPPETS],
    ids=["command line", "library", "EasyEdit"],
)
def test_it_runs(kind: str, text: str, tmp_path: Path, smollm2_path: Path) -> None:
    like_a_clone(tmp_path, smollm2_path)
    printed = run(kind, text, tmp_path)
    if kind == "bash":
        assert "facts: 5" in printed
        assert (tmp_path / "outputs/as-it-was/model.safetensors").is_file()


def test_the_table_of_what_stays_is_what_the_editions_do() -> None:
    for edition, label in (("wheel", "2023 wheel"), ("checkout", "2026 checkout")):
        said = ["stays" if STAYS[edition, switch] else "put back" for switch in _SWITCHES]
        assert row(label)[1:] == said
    assert row("edition")[2:] == [f"`{name}=True`" for name in _SWITCHES[1:]]


_SWITCHES = ("nothing", "sequential_edit", "keep_original_weight")


@pytest.mark.parametrize(("preset", "lost"), [("paper", 50), ("specific", 0)])
def test_the_sizes_are_what_the_formulas_give(preset: str, lost: int) -> None:
    d, m = 3072, 8192
    _, shape, half, single = row(f"Llama-3.2-3B, `{preset}`")
    columns, keys, layers = map(int, shape.split(","))
    numbers = layers * (columns * (d + m) + keys * m)
    for said, size in ((half, 2 * numbers), (single, 4 * (numbers + layers * lost * d))):
        assert said == f"{size / 1e6:.{1 if size < 10e6 else 0}f} MB"
    assert f"| {FORMAT}; of zerounlearn" in GUIDE


def test_what_the_factors_tell_is_as_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    leak = importlib.import_module("leak")
    runs = json.loads(leak.RESULT.read_text(encoding="utf-8"))["runs"]
    assert leak.filled(GUIDE, runs) == GUIDE
    assert {run["method"] for run in runs} == set(leak.RUNS)
