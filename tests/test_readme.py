"""Every snippet of the README is run, on the real model; the guide to studies names what there is."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest

from tests.guides import like_a_clone, run, snippets
from zerounlearn.data.catalogue import datasets
from zerounlearn.easyedit.method_config import METHODS
from zerounlearn.evaluation.registry import optional
from zerounlearn.report.columns import column
from zerounlearn.study.spec import (
    AuditSpec,
    DataSpec,
    HeldOut,
    MethodSpec,
    ModelSpec,
    Study,
    Tasks,
    load_study,
)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/studies.md").read_text(encoding="utf-8")
SNIPPETS = snippets("README.md")


def test_there_is_a_snippet_for_each_way_in() -> None:
    assert [kind for kind, _ in SNIPPETS] == ["python", "python", "bash"]


@pytest.mark.parametrize(("kind", "text"), SNIPPETS, ids=["library", "EasyEdit", "command line"])
def test_it_runs(kind: str, text: str, tmp_path: Path, smollm2_path: Path) -> None:
    like_a_clone(tmp_path, smollm2_path)
    shown = run(kind, text, tmp_path)
    if kind == "bash":
        assert (tmp_path / "outputs/forgotten/model.safetensors").exists()
        assert (tmp_path / "outputs/forgotten-report/report.md").exists()
    if "against(before)" in text:
        (expected,) = re.findall(r"^```\n(Eff .*)\n```$", README, re.MULTILINE)
        assert expected in shown


def test_the_first_page_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_the_makefile_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_guides_study_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    assert len(study.methods) == 5
    assert all((ROOT / method.hparams).is_file() for method in study.methods)


def test_the_guide_names_every_setting_metric_data_set_and_method() -> None:
    kinds = (Study, ModelSpec, DataSpec, MethodSpec, HeldOut, Tasks, AuditSpec)
    settings = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    words = set(re.findall(r"\w+", GUIDE))
    assert settings <= words
    assert set(datasets) <= words
    for method in METHODS:
        assert f"`{method}`" in GUIDE.replace("`UltraEdit`", "`ULTRAEDIT`")
    for name in optional():
        assert f"| `{name}` | {column(name).axis} | {column(name).meaning} |" in GUIDE


def test_the_supplements_tables_are_made_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in docs/results.md: of what the studies measured and of what the paper says, by no other hand."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    supplement = importlib.import_module("supplement")
    page = supplement.PAGE.read_text(encoding="utf-8")
    assert supplement.filled(page) == page
    results = supplement.read(supplement.FOUND)
    for name in {row["study"] for row in results}:
        study = load_study(ROOT / f"studies/{name}.yaml")
        found = [row for row in results if row["study"] == name]
        assert {row["method"] for row in found} == {"base", *(method.label for method in study.methods)}
        assert {int(row["n"]) for row in found} == set(study.sizes)
        assert {int(row["seed"]) for row in found} == set(study.seeds)
        assert {row["dataset"] for row in found} == {data.label for data in study.datasets}


def test_the_table_of_texts_behind_c_is_what_was_measured(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sizes = importlib.import_module("statistics_size")
    page = sizes.PAGE.read_text(encoding="utf-8")
    assert sizes.filled(page) == page
    assert {f"{size.removesuffix('m')} m" for size in sizes.SIZES} <= set(page.split(" | "))


def test_the_table_of_windows_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    windows = importlib.import_module("windows")
    page = windows.PAGE.read_text(encoding="utf-8")
    assert windows.filled(page) == page
    result = json.loads(windows.RESULT.read_text(encoding="utf-8"))
    points = {(place, first): score for place, first, score in windows.by_window(result["runs"])}
    suggested = points[result["suggested"]["place"], result["suggested"]["first"]]
    assert suggested > max(points.values()) - 5


def test_the_studies_tables_are_as_they_wrote_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    publish = importlib.import_module("publish")
    for place, name in zip(publish.PAGES, ("quality", "audit"), strict=True):
        page = place.read_text(encoding="utf-8")
        assert publish.marked(page) == [name]
        assert publish.filled(page) == page
        for method in load_study(ROOT / f"studies/{name}.yaml").methods:
            assert f"| {method.label} |" in publish.tables(name)


def test_what_an_accelerator_made_of_it_is_as_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    record = json.loads(gpu.RESULT.read_text(encoding="utf-8"))
    page = gpu.PAGE.read_text(encoding="utf-8")
    assert gpu.filled(page, record) == page
    assert {"smollm2", *gpu.SHAPES} <= set(record)
