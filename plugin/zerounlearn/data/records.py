"""Records of a data set: read from a file, a folder or the hub, and checked field by field.

A message of this module names the file, the number of the record (from 0), the field, what was found there and
what was expected.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerounlearn.errors import AssetError, RequestError

SUFFIXES = (".json", ".jsonl", ".parquet")
HUB = "hub"

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub: one file of its repository, or a configuration's split.

    Attributes:
        repository: `owner/name`.
        file: path of a JSON, JSON lines or parquet file in the repository; None reads through `datasets`.
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

    Attributes:
        source: the file's name, or the hub's address.
        number: place of the record in it, from 0.
        fields: the mapping itself.
        path: dotted path of a mapping inside the record, empty for the record.
    """

    source: str
    number: int
    fields: Mapping[str, Any]
    path: str = ""

    @property
    def where(self) -> str:
        """The file and the record's number."""
        return f"{self.source}, record {self.number}"

    def wrong(self, field: str, expected: str) -> RequestError:
        """The error that names this record's field, what it holds, and what it should."""
        name = f"{self.path}{field}"
        if field not in self.fields:
            return RequestError(f"{self.where}: the field {name!r} is missing: expected {expected}")
        return RequestError(f"{self.where}: {name}={_shorten.repr(self.fields[field])}: expected {expected}")

    def has(self, field: str) -> bool:
        """Whether the field is there and not null; the hub fills fields that a record lacks with null."""
        return self.fields.get(field) is not None

    def text(self, field: str) -> str:
        """A text with something in it, stripped."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, "a text that is not empty")
        return value.strip()

    def text_or_none(self, field: str) -> str | None:
        """A text, or None where the field is absent or blank."""
        if not self.has(field) or self.fields[field] == "":
            return None
        return self.text(field)

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, none of them empty; a single text stands for a list of one, absence for none."""
        value = self.fields.get(field)
        if value is None:
            return ()
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, Sequence) or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.wrong(field, "a list of texts, none of them empty")
        return tuple(v.strip() for v in value)

    def some_texts(self, field: str) -> tuple[str, ...]:
        """A list of at least one text."""
        found = self.texts(field)
        if not found:
            raise self.wrong(field, "a list of at least one text")
        return found

    def first_text(self, field: str) -> str:
        """A text, or the first text of a list, or of a list of lists of equivalent answers."""
        value = self.fields.get(field)
        while isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = value[0]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, "a text, or a list that begins with one")
        return value.strip()

    def integer(self, field: str) -> int:
        """A whole number, which RWKU writes as a text."""
        value = self.fields.get(field)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(field, "a whole number")
        return value

    def mapping(self, field: str) -> Record:
        """A mapping inside this record."""
        value = self.fields.get(field)
        if not isinstance(value, Mapping):
            raise self.wrong(field, "a mapping")
        return Record(self.source, self.number, value, f"{self.path}{field}.")

    def mappings(self, field: str) -> list[Record]:
        """A list of mappings inside this record; absence stands for none."""
        value = self.fields.get(field)
        if value is None:
            return []
        if not isinstance(value, Sequence) or not all(isinstance(v, Mapping) for v in value):
            raise self.wrong(field, "a list of mappings")
        return [Record(self.source, self.number, v, f"{self.path}{field}[{i}].") for i, v in enumerate(value)]

    def answered(self, prompts: str, answers: str) -> tuple[tuple[str, str], ...]:
        """Two lists of equal length as pairs."""
        left, right = self.texts(prompts), self.texts(answers)
        if len(left) != len(right):
            raise self.wrong(answers, f"one answer for each of the {len(left)} texts of {prompts!r}")
        return tuple(zip(left, right, strict=True))


def read_records(source: Source, *, home: Hub | None = None, names: Sequence[str] = ()) -> list[Record]:
    """The records of a file, or of the one file of a folder that has one of `names` (without a suffix).

    Args:
        source: see `Source`.
        home: where the data set lives on the hub; its configuration and split go for `hub:owner/name` too.
        names: what the file may be called, tried in order, with every suffix of `SUFFIXES`.

    Raises:
        RequestError: the file is missing, malformed or empty, or a record is no mapping.
        AssetError: the hub does not give it.
    """
    if isinstance(source, str):
        source = _address(source, home)
    if isinstance(source, Hub):
        return _records(str(source), _from_hub(source))
    path = _named(source, names) if source.is_dir() else source
    return _records(path.name, _from_file(path))


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
    sought = [f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    found = next((where / name for name in sought if (where / name).is_file()), None)
    if found is None:
        raise RequestError(f"{str(where)!r} holds none of {', '.join(sought) or 'the files expected'}")
    return found


def _from_file(path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise RequestError(f"data set {str(path)!r}: expected a folder or a file that ends in {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path).to_pylist()
        return _parse(path.read_text(encoding="utf-8"), lines=path.suffix == ".jsonl")
    except FileNotFoundError:
        raise RequestError(f"data set {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise RequestError(f"data set {str(path)!r} cannot be read: {error}") from error


def _parse(text: str, *, lines: bool) -> Any:
    """JSON or JSON lines; the hub's `.json` files, TOFU's among them, are often JSON lines."""
    if not lines:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _from_hub(hub: Hub) -> Any:
    try:
        if hub.file is not None:
            return _from_file(Path(_download(hub, hub.file)))
        return list(_dataset(hub))
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


def _records(source: str, loaded: Any) -> list[Record]:
    if not isinstance(loaded, list):
        raise RequestError(f"{source} holds {type(loaded).__name__}, expected a list of records")
    if not loaded:
        raise RequestError(f"{source} holds no records")
    for i, record in enumerate(loaded):
        if not isinstance(record, Mapping):
            raise RequestError(f"{source}, record {i}: {_shorten.repr(record)}: expected a mapping")
    return [Record(source, i, record) for i, record in enumerate(loaded)]
