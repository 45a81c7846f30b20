"""Reading: files, folders and the hub alike, and every mistake named with its file, record, field and value."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import yaml
from pyarrow import Table, parquet

from zerounlearn.data.records import Hub, Record, read_records
from zerounlearn.errors import AssetError, RequestError

ROWS = [{"a": "one", "n": 1}, {"a": "two", "n": 2}]


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(rows), path)
    elif path.suffix in (".yaml", ".yml"):
        path.write_text(yaml.safe_dump(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as stream:  # as Excel does
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = path.suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".yaml", ".yml", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    for source in (path, str(path), tmp_path):
        found = read_records(source, names=("absent", "rows"))
        cells = [{"a": row["a"], "n": str(row["n"])} for row in ROWS]
        assert [dict(r.fields) for r in found] == (cells if suffix == ".csv" else ROWS)
        assert [r.number for r in found] == [0, 1]
        assert found[0].source == str(path)


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    path = tmp_path / "forget01.json"  # as on the hub
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    assert [dict(r.fields) for r in read_records(path)] == ROWS
    path.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    assert [dict(r.fields) for r in read_records(path)] == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.toml", "a = 1", "ends in .json, .jsonl, .yaml, .yml, .csv, .parquet"),
        ("rows.csv", "a,b", "holds no records"),
        ("rows.csv", "a,a\n1,2", "the header has the column 'a' twice"),
        ("rows.csv", "a,b\n1,2\n\n1,2,3", "line 4 has 3 cells, the header 2: put a text with commas in quotes"),
        ("rows.csv", 'a,b\n1,"2', "unexpected end of data"),
        ("rows.csv", f"a,b\n1,{'x' * 200_000}", "field larger than field limit"),
        ("rows.yaml", "a", "holds str, expected a list"),
        ("rows.yaml", "- {a: 1, a: 2}", "line 1: the key 'a' stands twice"),
        ("rows.yaml", "- {1: 2}", "the key 1 is int, expected a text"),
        ("rows.yaml", "- {a: [!!int '']}", "cannot be read: IndexError"),
        ("rows.yaml", "- &a [*a]", "its aliases stand for more than the file holds"),
        ("rows.yaml", "[" * 100_000, "it is nested too deeply"),
        ("rows.json", "[" * 100_000, "it is nested too deeply"),
        ("rows.jsonl", '{"a": 1}\n' + "[" * 100_000, "line 2: it is nested too deeply"),
        ("rows.jsonl", '{"a": 1}\n{"a": }', "line 2, column 7: Expecting value"),
        ("rows.jsonl", '{"a": 1}\n\n7', "line 3: 7 is int, expected a mapping"),
        ("rows.json", '[{"a": 1, "a": 2}]', "the key 'a' stands twice in one mapping, with 2: drop one"),
        ("rows.json", '[{"a": ' + "[" * 40 + "]" * 40 + "}]", "record 0: nested more than 32 levels deep"),
        ("rows.json", '[{"a": ' + "1" * 5000 + "}]", "cannot be read: Exceeds the limit"),
        ("rows.json", "[{", "cannot be read"),
        ("rows.json", "7", "holds int, expected a list"),
        ("rows.jsonl", "", "rows.jsonl' holds no records"),
        ("rows.json", '[{"a": 1}, 7]', "rows.json, record 1: 7 is int, expected a mapping"),
        ("rows.parquet", "no parquet", "cannot be read"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        read_records(tmp_path / name)
    assert message in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_records(tmp_path / "rows.json")
    with pytest.raises(RequestError, match=r"holds none of rows, ending in \.json, \.jsonl"):
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
        (Record.text, " ", "at.field=' ' is empty: expected"),
        (Record.text, "\u200b", "at.field='\\u200b' is empty: expected"),
        (Record.text, "a\x07", "at.field='a\\x07' holds U+0007 at position 1, a control character"),
        (Record.text, "\ud800", "at.field='\\ud800' holds U+D800 at position 0, half of a surrogate pair"),
        (Record.text, "a\ufffe", "at.field='a\\ufffe' holds U+FFFE at position 1, no character"),
        (Record.texts, ["a\x07"], "at.field[0]='a\\x07' holds U+0007"),
        (Record.text, 3, "at.field=3: expected a text that is not empty, found int: put it in quotes"),
        (Record.name_or_none, 3, "at.field=3: expected a text"),
        (Record.texts, ["a", ""], "at.field=['a', '']: expected a list of texts"),
        (Record.texts, {"a": 1}, "at.field={'a': 1}: expected a list of texts"),
        (Record.some_texts, [], "at.field=[]: expected a list of at least one text"),
        (Record.first_name, [[]], "at.field=[[]]: expected a text, or a list"),
        (Record.integer, "x1", "at.field='x1': expected a whole number"),
        (Record.integer, True, "at.field=True: expected a whole number"),
        (Record.integer, 1.5, "at.field=1.5: expected a whole number"),
        (Record.mapping, [], "at.field=[]: expected a mapping"),
        (Record.mappings, [1], "at.field=[1]: expected a list of mappings"),
    ],
)
def test_a_wrong_field_is_named(read, value, message: str) -> None:
    with pytest.raises(RequestError) as caught:
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
    assert record.texts("one") == (record.text("one"),) == (" a ",), "a prompt is the user's, white space included"
    assert record.names("one") == (record.name("one"),) == ("a",)
    assert record.texts("none") == record.texts("absent") == ()
    assert record.first_name("deep") == record.first_name("one") == "a"
    assert record.integer("level") == 3
    assert record.name_or_none("none") is record.name_or_none("absent") is record.name_or_none("blank") is None
    assert record.mappings("none") == []
    nested = Record("f", 0, {"list": [{"a": {"b": 1}}]})
    with pytest.raises(RequestError, match=r"list\[0\]\.a\.b=1"):
        nested.mappings("list")[0].mapping("a").text("b")


def test_texts_keep_their_separators_and_lose_a_byte_order_mark(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0cfour"
    for name, content in {
        "a.jsonl": json.dumps({"a": text[:-5]}, ensure_ascii=False) + "\n" + json.dumps({"a": "b"}),
        "a.json": json.dumps([{"a": text[:-5]}, {"a": "b"}], ensure_ascii=False),
        "b.json": json.dumps({"a": text[:-5]}, ensure_ascii=False) + "\n" + json.dumps({"a": "b"}),
        "a.csv": f"a\n{text[:-5]}\nb\n",
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        first, second = read_records(tmp_path / name)
        assert (first.text("a"), second.text("a")) == (text[:-5], "b")


def test_a_cell_keeps_its_line_breaks_and_a_row_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\r\n"one\r\ntwo",x\r\n\r\n,\r\n"three\nfour",\r\nfive,y')
    first, second, third = read_records(path)
    assert (first.text("a"), second.text("a")) == ("one\r\ntwo", "three\nfour")
    assert [record.where for record in (first, second, third)] == [f"{path}, line {n}" for n in (2, 6, 8)]
    assert not second.has("b")


def test_aliases_are_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text("- {a: &x [one, two, three]}\n- {a: *x}\n")
    assert [record.texts("a") for record in read_records(path)] == [("one", "two", "three")] * 2


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(RequestError, match="is no ordinary file"):
        read_records(tmp_path / "pipe.json")
    (tmp_path / "utf16.csv").write_bytes("a,b".encode("utf-16"))
    with pytest.raises(RequestError, match="is no UTF-8 .*: save it as UTF-8"):
        read_records(tmp_path / "utf16.csv")
    monkeypatch.setattr("zerounlearn.data.records._MOST_BYTES", 3)
    (tmp_path / "large.json").write_text("[{}]")
    with pytest.raises(RequestError, match="has 4 bytes, at most 3 are read"):
        read_records(tmp_path / "large.json")


def test_a_message_is_short_whatever_the_value() -> None:
    nested: list = ["x" * 100] * 100
    for _ in range(20):
        nested = [nested] * 100
    with pytest.raises(RequestError) as caught:
        Record("f", 0, {"a": nested}).text("a")
    assert len(str(caught.value)) < 500
