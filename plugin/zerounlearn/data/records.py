"""The one reader of records: from a file, a folder or the hub, checked field by field.

A message of this module names the file, the record (its line, or its number from 0), the field, what was found there
and what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from zerounlearn.data.request import check_text
from zerounlearn.data.text import is_blank, shown
from zerounlearn.errors import AssetError, RequestError, did_you_mean

SUFFIXES = (".json", ".jsonl", ".yaml", ".yml", ".csv", ".parquet")
HUB = "hub"

# A file is read whole. The field's largest, multi_counterfact.json, has 0.04 of it.
_MOST_BYTES = 1 << 30
# The field's deepest records have six levels.
_MOST_LEVELS = 32
_SEPARATOR = re.compile(r"\s*\|\s*")
_ARROW = re.compile(r"\s*=>\s*")


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub: one file of its repository, or a configuration's split.

    Attributes:
        repository: `owner/name`.
        file: path of a file in the repository that ends in one of `SUFFIXES`; None reads through `datasets`.
        configuration: the configuration to load where no file is named.
        split: the split to load where no file is named.
        revision: branch, tag or commit; None takes the newest. Name a commit for a result to be reproducible.
    """

    repository: str
    file: str | None = None
    configuration: str | None = None
    split: str = "train"
    revision: str | None = None

    def __str__(self) -> str:
        part = self.file or "/".join(filter(None, (self.configuration, self.split)))
        return f"{HUB}:{self.repository}/{part}" + (f"@{self.revision}" if self.revision else "")


Source = str | Path | Hub
"""A local file or folder, `hub` (where the data set lives), `hub:owner/name`, `hub:owner/name/file.json`, or a Hub."""


@dataclass(frozen=True)
class Record:
    """One mapping of a data set that knows where it stands, so that what is wrong with it can be named.

    Texts are given as they stand, white space included; names (of subjects, answers, relations) without the white
    space around them.

    Attributes:
        source: the file, or the hub's address; empty for a mapping from Python.
        number: place of the record in it, from 0.
        fields: the mapping itself.
        path: dotted path of a mapping inside the record, empty for the record.
        line: where the record begins in a file of lines, from 1.
        cells: whether fields are cells of a table, in which `|` separates the texts of a list and `=>` a pair.
    """

    source: str
    number: int
    fields: Mapping[str, Any]
    path: str = ""
    line: int | None = None
    cells: bool = False

    @property
    def where(self) -> str:
        """The file and the record's line or number."""
        place = f"record {self.number}" if self.line is None else f"line {self.line}"
        return f"{self.source}, {place}" if self.source else place

    def wrong(self, field: str, expected: str) -> RequestError:
        """The error that names this record's field, what it holds, and what it should."""
        name = f"{self.path}{field}"
        if field not in self.fields:
            return RequestError(f"{self.where}: the field {name!r} is missing: expected {expected}")
        return RequestError(f"{self.where}: {name}={shown(self.fields[field])}: expected {expected}")

    def has(self, field: str) -> bool:
        """Whether the field is there and not null; the hub fills fields that a record lacks with null."""
        return self.fields.get(field) is not None

    def named(self, *names: str) -> str:
        """Which of several names of one field this record uses; the first where it has none of them.

        Raises:
            RequestError: it has two of them.
        """
        present = [name for name in names if self.has(name)]
        if len(present) > 1:
            raise self.wrong(present[1], f"none, since {self.path}{present[0]} says the same: drop one")
        return (present or names)[0]

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields that are not among the known ones.

        Raises:
            RequestError: naming the first unknown one.
        """
        allowed = sorted(known)
        for field in self.fields:
            if field not in allowed:
                separated = self.cells and len(self.fields) == 1 and re.search("[;\t]", field)
                hint = "separate the columns by commas" if separated else did_you_mean(field, allowed)
                raise RequestError(f"{self.where}: unknown field {self.path}{shown(field)}: {hint}")

    def text(self, field: str) -> str:
        """A text with something in it, as it stands."""
        value = self.fields.get(field)
        if value is None:
            raise self.wrong(field, "a text that is not empty")
        check_text(value, f"{self.path}{field}", self.where)
        return str(value)

    def name(self, field: str) -> str:
        """A text with something in it, without the white space around it."""
        return self.text(field).strip()

    def name_or_none(self, field: str) -> str | None:
        """A name, or None where the field is absent, null or empty."""
        if not self.has(field) or self.fields[field] == "":
            return None
        return self.name(field)

    def first_name(self, field: str) -> str:
        """A name, or the first of a list, or of a list of lists of equivalent answers."""
        value = self.fields.get(field)
        while isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = value[0]
        if value is None or (isinstance(value, Sequence) and not isinstance(value, str)):
            raise self.wrong(field, "a text, or a list that begins with one")
        check_text(value, f"{self.path}{field}", self.where, expected="a text, or a list that begins with one")
        return str(value).strip()

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, none of them empty; a single text stands for a list of one, absence for none."""
        value = self.fields.get(field)
        if value is None:
            return ()
        if isinstance(value, str):
            value = _SEPARATOR.split(value) if self.cells else [value]
        if not isinstance(value, Sequence) or not all(isinstance(v, str) and not is_blank(v) for v in value):
            raise self.wrong(field, "a list of texts, none of them empty")
        for i, text in enumerate(value):
            check_text(text, f"{self.path}{field}[{i}]", self.where)
        return tuple(value)

    def some_texts(self, field: str) -> tuple[str, ...]:
        """A list of at least one text."""
        texts = self.texts(field)
        if not texts:
            raise self.wrong(field, "a list of at least one text")
        return texts

    def names(self, field: str) -> tuple[str, ...]:
        """A list of names, read as `texts` is."""
        return tuple(text.strip() for text in self.texts(field))

    def integer(self, field: str) -> int:
        """A whole number, which RWKU writes as a text."""
        value = self.fields.get(field)
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(field, "a whole number")
        return value

    def truth(self, field: str) -> bool:
        """True or false, which in a table is a text; absence stands for false."""
        value = self.fields.get(field)
        if self.cells and isinstance(value, str):
            value = {"true": True, "false": False}.get(value.strip().lower(), value)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(field, "true or false")
        return bool(value)

    def mapping(self, field: str) -> Record:
        """A mapping inside this record."""
        value = self.fields.get(field)
        if not isinstance(value, Mapping):
            raise self.wrong(field, "a mapping")
        return self._inside(value, field)

    def mappings(self, field: str) -> list[Record]:
        """A list of mappings inside this record; absence stands for none."""
        value = self.fields.get(field)
        if value is None:
            return []
        if not isinstance(value, Sequence) or not all(isinstance(v, Mapping) for v in value):
            raise self.wrong(field, "a list of mappings")
        return [self._inside(v, f"{field}[{i}]") for i, v in enumerate(value)]

    def answered(self, prompts: str, answers: str) -> tuple[tuple[str, str], ...]:
        """Two lists of equal length as pairs of a prompt and its answer."""
        left, right = self.texts(prompts), self.names(answers)
        if len(left) != len(right):
            raise self.wrong(answers, f"one answer for each of the {len(left)} texts of {prompts!r}")
        return tuple(zip(left, right, strict=True))

    def pairs(self, field: str, place: Callable[[str, str | None, str], str]) -> tuple[tuple[str, str], ...]:
        """A list of prompts with their answers: mappings of `prompt` and `answer` (or `ground_truth`), or pairs.

        Args:
            field: absence stands for none.
            place: given a prompt, its own `subject` (or None) and its name for messages, the prompt with its subject.
        """
        value = self.fields.get(field)
        if value is None:
            return ()
        if self.cells and isinstance(value, str):
            value = [_ARROW.split(part) for part in _SEPARATOR.split(value)]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.wrong(field, "a list of mappings of prompt and answer, or of pairs")
        return tuple(self._pair(part, f"{field}[{i}]", place) for i, part in enumerate(value))

    def _pair(self, part: Any, name: str, place: Callable[[str, str | None, str], str]) -> tuple[str, str]:
        if isinstance(part, Mapping):
            inner = self._inside(part, name)
            inner.only(("prompt", "answer", "ground_truth", "subject"))
            answer = inner.first_name(inner.named("answer", "ground_truth"))
            return place(inner.text("prompt"), inner.name_or_none("subject"), f"{self.path}{name}.prompt"), answer
        if not isinstance(part, Sequence) or isinstance(part, str) or len(part) != 2:
            raise RequestError(f"{self.where}: {self.path}{name}={shown(part)} is no pair of a prompt and its answer")
        for i, text in enumerate(part):
            check_text(text, f"{self.path}{name}[{i}]", self.where)
        return place(part[0], None, f"{self.path}{name}[0]"), part[1].strip()

    def _inside(self, fields: Mapping[str, Any], name: str) -> Record:
        return replace(self, fields=fields, path=f"{self.path}{name}.")


def read_records(source: Source, *, home: Hub | None = None, names: Sequence[str] = ()) -> list[Record]:
    """The records of a file, or of the one file of a folder that has one of `names` (without a suffix).

    Args:
        source: see `Source`.
        home: where the data set lives on the hub; its configuration and split go for `hub:owner/name` too.
        names: what the file may be called, tried in order, with every suffix of `SUFFIXES`.

    Raises:
        RequestError: the file is missing, malformed, too large or empty, or a record is no mapping.
        AssetError: the hub does not give it.
    """
    if isinstance(source, str):
        source = _address(source, home)
    if isinstance(source, Hub):
        return _from_hub(source)
    return _from_file(_named(source, names) if source.is_dir() else source)


def records_of(mappings: Iterable[Any], source: str = "") -> list[Record]:
    """Mappings that are in memory, as records.

    Raises:
        RequestError: one is no mapping, or nested without end.
    """
    return [_record(value, source, i) for i, value in enumerate(mappings)]


def folder(source: Source) -> Path | None:
    """The local folder that a source names, if it does."""
    if isinstance(source, Hub) or str(source) == HUB or str(source).startswith(f"{HUB}:"):
        return None
    return Path(source) if Path(source).is_dir() else None


def _address(source: str, home: Hub | None) -> Hub | Path:
    if source == HUB:
        if home is None:
            raise RequestError(
                "source='hub': this data set has no official home on the hub; name a local file, "
                "'hub:owner/name' or 'hub:owner/name/path/of/a/file.json'"
            )
        return home
    if not source.startswith(f"{HUB}:"):
        return Path(source)
    parts = source.removeprefix(f"{HUB}:").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise RequestError(f"source={source!r}: expected 'hub:owner/name' or 'hub:owner/name/path/of/a/file.json'")
    repository = "/".join(parts[:2])
    if len(parts) == 3:
        return Hub(repository, file=parts[2])
    return Hub(repository, configuration=home.configuration, split=home.split) if home else Hub(repository)


def _named(where: Path, names: Sequence[str]) -> Path:
    if not names:
        raise RequestError(f"{str(where)!r} is a folder: name a file that ends in {', '.join(SUFFIXES)}")
    candidates = [f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    file = next((where / name for name in candidates if (where / name).is_file()), None)
    if file is None:
        raise RequestError(f"{str(where)!r} holds none of {', '.join(names)}, ending in {', '.join(SUFFIXES)}")
    return file


def _from_file(path: Path, source: str = "") -> list[Record]:
    """The records of one file, bounded in size; `source` names it in messages, where its own path would not help."""
    source = source or str(path)
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{source!r}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        if not path.exists():
            raise RequestError(f"{source!r} does not exist: name a file that does")
        if not path.is_file():  # a pipe would be waited for without end
            raise RequestError(f"{source!r} is no ordinary file: name one")
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise RequestError(f"{source!r} has {size:,} bytes, at most {_MOST_BYTES:,} are read: take a part of it")
        return _READERS[path.suffix.lower()](path, source)
    except (OSError, ValueError, csv.Error, yaml.YAMLError, RecursionError) as error:  # pyarrow's own are the first two
        if isinstance(error, RequestError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RequestError(f"{source!r} cannot be read: {reason}") from error


def _text_of(path: Path) -> str:
    """The text of a file, whose line ends and separators stay; a byte-order mark at its beginning is none of it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _from_json(path: Path, source: str) -> list[Record]:
    """A list of mappings; where several values follow each other, JSON lines, as the hub's `.json` files often are."""
    try:
        loaded = json.loads(_text_of(path), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _from_lines(path, source)
    return _records(loaded, source)


def _from_lines(path: Path, source: str) -> list[Record]:
    records: list[Record] = []
    # Not splitlines: texts of JSON may hold U+2028, U+0085 and their like.
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_without_duplicates)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise ValueError(f"line {number}: {reason}") from None
        records.append(_record(value, source, len(records), number))
    return _some(records, source)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {shown(key)} stands twice in one mapping, with {shown(value)}: drop one")
        values[key] = value
    return values


class _YamlLoader(yaml.SafeLoader):
    """YAML without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: the key {shown(key.value)} stands twice in one mapping: drop one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _from_yaml(path: Path, source: str) -> list[Record]:
    text = _text_of(path)
    try:
        loaded = yaml.load(text, _YamlLoader)
    except (ValueError, yaml.YAMLError, RecursionError):
        raise
    except Exception as error:  # explicit tags with a value that is none raise KeyError, IndexError, AttributeError …
        raise ValueError(f"{type(error).__name__}: {error}") from error
    # Every value of a file takes a character at least: where there are more, aliases stand for each other.
    return _records(loaded, source, most=len(text))


def _from_csv(path: Path, source: str) -> list[Record]:
    """Rows under a header; an empty cell is an absent field, a row of empty cells none."""
    rows = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    header = next(rows, [])
    if twice := next((name for name, times in Counter(header).items() if times > 1), None):
        raise ValueError(f"the header has the column {shown(twice)} twice: drop one")
    records: list[Record] = []
    line = rows.line_num + 1
    for row in rows:
        if len(row) > len(header):
            raise ValueError(
                f"line {line} has {len(row)} cells, the header {len(header)}: put a text with commas in quotes"
            )
        fields = {name: cell for name, cell in zip(header, row, strict=False) if cell}
        if any(not is_blank(cell) for cell in row):
            records.append(Record(source, len(records), fields, line=line, cells=True))
        line = rows.line_num + 1
    return _some(records, source)


def _from_parquet(path: Path, source: str) -> list[Record]:
    from pyarrow import parquet

    return _records(parquet.read_table(path).to_pylist(), source)


_READERS: Mapping[str, Callable[[Path, str], list[Record]]] = {
    ".json": _from_json,
    ".jsonl": _from_lines,
    ".yaml": _from_yaml,
    ".yml": _from_yaml,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}


def _from_hub(hub: Hub) -> list[Record]:
    try:
        if hub.file is not None:
            return _from_file(Path(_download(hub, hub.file)), str(hub))
        return _records(list(_dataset(hub)), str(hub))
    except RequestError:
        raise
    except Exception as error:  # the hub, the network and the parsers raise too many kinds to list
        raise AssetError(f"cannot load {hub}: {error}; name a local file or folder instead") from error


def _download(hub: Hub, file: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(hub.repository, file, repo_type="dataset", revision=hub.revision)


def _dataset(hub: Hub) -> Iterator[Any]:
    from datasets import load_dataset

    return iter(load_dataset(hub.repository, hub.configuration, split=hub.split, revision=hub.revision))


def _records(loaded: Any, source: str, most: int | None = None) -> list[Record]:
    """A list of mappings as records; `most`: how many values there may be in them, if anything bounds them."""
    if isinstance(loaded, Mapping):  # one record alone, as JSON lines of one line are
        loaded = [loaded]
    if not isinstance(loaded, list):
        raise RequestError(f"{source!r} holds {type(loaded).__name__}, expected a list of records")
    if most is not None:
        _check_size(loaded, source, most)
    return _some([_record(value, source, i) for i, value in enumerate(loaded)], source)


def _some(records: list[Record], source: str) -> list[Record]:
    if not records:
        raise RequestError(f"{source!r} holds no records: it is empty")
    return records


def _record(value: Any, source: str, number: int, line: int | None = None) -> Record:
    record = Record(source, number, value if isinstance(value, Mapping) else {}, line=line)
    if not isinstance(value, Mapping):
        raise RequestError(f"{record.where}: {shown(value)} is {type(value).__name__}, expected a mapping of fields")
    for level, inner in _walk(value):
        if level > _MOST_LEVELS:
            raise RequestError(
                f"{record.where}: nested more than {_MOST_LEVELS} levels deep: expected a mapping of texts"
            )
        if isinstance(inner, Mapping) and not all(isinstance(key, str) for key in inner):
            key = next(key for key in inner if not isinstance(key, str))
            raise RequestError(f"{record.where}: the key {shown(key)} is {type(key).__name__}, expected a text")
    return record


def _check_size(loaded: Any, source: str, most: int) -> None:
    for count, (level, _) in enumerate(_walk(loaded)):
        if count > most or level > _MOST_LEVELS + 1:
            raise RequestError(f"{source!r}: its aliases stand for more than the file holds: write the values out")


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """A value and all values inside it, with their depth; without recursion, and lazily, for whatever was read."""
    stack: list[Iterator[Any]] = [iter((value,))]
    while stack:
        inner = next(stack[-1], stack)
        if inner is stack:
            stack.pop()
            continue
        yield len(stack) - 1, inner
        if isinstance(inner, Mapping):
            stack.append(iter(inner.values()))
        elif isinstance(inner, (list, tuple)):
            stack.append(iter(inner))
