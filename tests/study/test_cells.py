"""Records of cells: what is read is whole and of this cell, and everything else is made again or named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.made_cells import cell as made_cell
from zerounlearn.errors import OutputError
from zerounlearn.study.cells import Cell, Draw, read_base, read_cell, write

CELL = Cell("ZeroUnlearn", "ZeroUnlearn", Draw("packaged", 10, 0))
SAID = {"said": True, "probability": 0.5}


def cell_record(**changes: Any) -> dict[str, Any]:
    return made_cell(id="one", after={"ppl": float("nan"), "fluency": float("inf")}) | changes


def base_record(**changes: Any) -> dict[str, Any]:
    made = {"id": "one", "status": "done", "error": None, "measures": {"eff": 1.0}, "facts": [SAID], "reference": None}
    return made | {"seconds": {"evaluate": 1.0}, "weights": "5f"} | changes


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, cell_record(hparams={"betas": (0.9, 0.999), "text": "Zürich"}))
    found = read_cell(tmp_path / "one.json", CELL)
    assert found is not None
    assert json.dumps(found) == json.dumps(cell_record(hparams={"betas": [0.9, 0.999], "text": "Zürich"}))
    failure = made_cell(id="bad", error="IllPosedError: no")
    write(tmp_path, failure)
    assert read_cell(tmp_path / "bad.json", CELL) == failure
    write(tmp_path, base_record())
    assert read_base(tmp_path / "one.json") == base_record()
    assert read_base(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": "a text"},
        {"facts": [{"answer": "Paris", "before": SAID, "after": SAID}]},
        {"after": "a text"},
        {"after": {}},
        {"after": {"eff": "0.5"}},
        {"hparams": []},
        {"seconds": "a text"},
        {"seconds": {"unlearn": 1.0}},
        {"error": "but done"},
        {"peak_bytes": True},
        {"status": "perhaps"},
        {"id": "another"},
        {"cell": {"method": "FT", "algorithm": "FT", "dataset": "packaged", "n": 10, "seed": 0}},
        {"cell": {"method": "ZeroUnlearn", "algorithm": "ZeroUnlearn", "dataset": "packaged", "n": 10, "seed": 1}},
    ],
)
def test_a_record_of_another_kind_is_made_again(changes: dict[str, Any], tmp_path: Path, caplog) -> None:
    """Written with a right checksum, as by another version."""
    write(tmp_path, cell_record(**changes))
    (file,) = tmp_path.iterdir()
    assert read_cell(file.rename(tmp_path / "one.json"), CELL) is None
    assert "one.json" in caplog.text and " again" in caplog.text


@pytest.mark.parametrize("missing", [*base_record()])
def test_a_base_without_a_field_is_measured_again(missing: str, tmp_path: Path) -> None:
    write(tmp_path, base_record())
    file = tmp_path / "one.json"
    record = json.loads(file.read_text())
    del record[missing]
    file.write_text(json.dumps(record))
    assert read_base(file) is None


@pytest.mark.parametrize(
    "content", ["", "[" * 100_000, "null", "[]", '"one"', '{"id": "one"}', "\udcff", "1e999", "{" * 9]
)
def test_no_record_at_all_is_made_again(content: str, tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_cell(file, CELL) is None
    assert read_base(file) is None


def test_a_changed_number_is_found(tmp_path: Path, caplog) -> None:
    write(tmp_path, cell_record(after={"eff": 0.25}))
    file = tmp_path / "one.json"
    file.write_text(file.read_text().replace("0.25", "0.0"))
    assert read_cell(file, CELL) is None
    assert "checksum" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_named_before_the_work(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file)
    with pytest.raises(OutputError, match="one.json.*move it away"):
        read_cell(file, CELL)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(cell_record())), value=json_values)
def test_any_value_of_any_field_is_read_as_it_is_or_made_again(field: str, value: Any, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cells")
    record = cell_record(**{field: value}) | {"id": "one"}
    try:
        write(folder, record)
    except UnicodeEncodeError:  # a lone surrogate cannot be in a file
        return
    found = read_cell(folder / "one.json", CELL)
    assert found is None or json.dumps(found) == json.dumps(record)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_found(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("cells")
    write(folder, cell_record())
    file = folder / "one.json"
    whole = file.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    file.write_bytes(whole[:start] + data.draw(st.binary(max_size=4)) + whole[end:])
    found = read_cell(file, CELL)
    assert found is None or json.dumps(found) == json.dumps(cell_record())
