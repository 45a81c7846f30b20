"""Reading: files, folders and the hub alike, and every mistake named with its file, record, field and value."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from pyarrow import Table, parquet

from zerounlearn.data.records import Hub, Record, read_records
from zerounlearn.errors import AssetError, RequestError

ROWS = [{"a": "one", "n": 1}, {"a": "two", "n": 2}]


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    else:
        lines = path.suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    for source in (path, str(path), tmp_path):
        found = read_records(source, names=("absent", "rows"))
        assert [dict(r.fields) for r in found] == ROWS
        assert [r.number for r in found] == [0, 1]
        assert found[0].source == f"rows{suffix}"


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    path = tmp_path / "forget01.json"  # as on the hub
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    assert [dict(r.fields) for r in read_records(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "a,b", "ends in .json, .jsonl, .parquet"),
        ("rows.json", "[{", "cannot be read"),
        ("rows.json", '{"a": 1}', "holds dict, expected a list"),
        ("rows.jsonl", "", "rows.jsonl holds no records"),
        ("rows.json", '[{"a": 1}, 7]', "rows.json, record 1: 7: expected a mapping"),
        ("rows.parquet", "no parquet", "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        read_records(tmp_path / name)
    assert message in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_records(tmp_path / "rows.json")
    with pytest.raises(RequestError, match=r"holds none of rows\.json, rows\.jsonl, rows\.parquet"):
        read_records(tmp_path, names=("rows",))


def test_a_file_of_the_hub_is_downloaded(tmp_path: Path, monkeypatch) -> None:
    path, asked = write(tmp_path / "rows.json", ROWS), []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args, **options: asked.append((args, options)) or str(path)
    )
    found = read_records("hub:someone/something/deep/rows.json")
    assert asked == [(("someone/something", "deep/rows.json"), {"repo_type": "dataset", "revision": None})]
    assert found[1].where == "hub:someone/something/deep/rows.json, record 1"


def test_a_configuration_of_the_hub_is_loaded(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or ROWS)
    home = Hub("official/home", configuration="part", split="test", revision="abc")
    for source in ("hub", "hub:someone/copy", home):
        assert [dict(r.fields) for r in read_records(source, home=home)] == ROWS
    official = (("official/home", "part"), {"split": "test", "revision": "abc"})
    assert asked == [official, (("someone/copy", "part"), {"split": "test", "revision": None}), official]
    assert read_records("hub", home=home)[0].where == "hub:official/home/part/test@abc, record 0"


def test_what_the_hub_does_not_give_is_an_asset_error(monkeypatch) -> None:
    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    for source in ("hub:someone/something", "hub:someone/something/rows.json"):
        with pytest.raises(AssetError, match="no network; name a local file"):
            read_records(source)
    with pytest.raises(RequestError, match="no official home"):
        read_records("hub")
    with pytest.raises(RequestError, match="expected 'hub:owner/name'"):
        read_records("hub:someone")


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (Record.text, None, "f.json, record 7: at.field=None: expected a text that is not empty"),
        (Record.text, " ", "at.field=' ': expected"),
        (Record.text, 3, "at.field=3: expected"),
        (Record.text_or_none, 3, "at.field=3: expected a text"),
        (Record.texts, ["a", ""], "at.field=['a', '']: expected a list of texts"),
        (Record.texts, {"a": 1}, "at.field={'a': 1}: expected a list of texts"),
        (Record.some_texts, [], "at.field=[]: expected a list of at least one text"),
        (Record.first_text, [[]], "at.field=[[]]: expected a text, or a list"),
        (Record.integer, "x1", "at.field='x1': expected a whole number"),
        (Record.integer, True, "at.field=True: expected a whole number"),
        (Record.integer, 1.5, "at.field=1.5: expected a whole number"),
        (Record.mapping, [], "at.field=[]: expected a mapping"),
        (Record.mappings, [1], "at.field=[1]: expected a list of mappings"),
    ],
)
def test_a_wrong_field_is_named(read, value, message: str) -> None:
    with pytest.raises(RequestError, match="expected") as caught:
        read(Record("f.json", 7, {"field": value}, "at."), "field")
    assert message in str(caught.value)


def test_an_absent_field_and_a_long_value() -> None:
    with pytest.raises(RequestError, match=r"f, record 0: the field 'x' is missing: expected a text"):
        Record("f", 0, {}).text("x")
    with pytest.raises(RequestError, match="expected") as caught:
        Record("f", 0, {"x": {"y": "long" * 500}}).text("x")
    assert len(str(caught.value)) < 250
    with pytest.raises(RequestError, match=r"right=\['a'\]: expected one answer for each of the 2 texts of 'left'"):
        Record("f", 0, {"left": ["a", "b"], "right": ["a"]}).answered("left", "right")


def test_what_fields_may_be() -> None:
    record = Record("f", 0, {"one": " a ", "none": None, "deep": [["a", "b"], ["c"]], "level": "3", "blank": ""})
    assert record.texts("one") == ("a",)
    assert record.texts("none") == record.texts("absent") == ()
    assert record.first_text("deep") == record.first_text("one") == "a"
    assert record.integer("level") == 3
    assert record.text_or_none("none") is record.text_or_none("absent") is record.text_or_none("blank") is None
    assert record.mappings("none") == []
    nested = Record("f", 0, {"list": [{"a": {"b": 1}}]})
    with pytest.raises(RequestError, match=r"list\[0\]\.a\.b=1"):
        nested.mappings("list")[0].mapping("a").text("b")
