"""Corpora by name: EasyEdit's hub names, a local file, or the embedded Wikipedia extract."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from zerounlearn.data.request import Request
from zerounlearn.data.text import shown
from zerounlearn.demo.wikipedia import embedded_statistics_texts
from zerounlearn.errors import ConfigError, StatisticsError

# The names are EasyEdit's; the configurations are those of its 2026 edition.
HUB = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Corpus:
    """Ordinary text. `name` goes into the path of the statistics' cache and must change with the content."""

    name: str
    texts: Callable[[], Sequence[str]]


def with_statements(corpus: Corpus, facts: Sequence[Request]) -> Corpus:
    """A corpus with each fact's prompt and answer as a text of its own before the others.

    So does the published code's `add_retain` (XMUDeepLIT/ZeroUnlearn, `rome/tok_dataset.py`): what is sampled of the
    whole is sampled of these texts too, and a token of theirs counts as any other.

    Args:
        corpus: ordinary text; it is read as before, when its texts are asked for.
        facts: to state; of one without an answer the prompt alone.
    """
    statements = [fact.query.text if fact.answer else fact.prompt for fact in facts]
    digest = hashlib.blake2b("\0".join(statements).encode(), digest_size=4).hexdigest()
    return Corpus(f"{corpus.name}-with-facts-{digest}", lambda: _Joined(statements, corpus.texts()))


def check_corpus(name: str) -> None:
    """Refuse a name that is neither known nor an existing file, without reading it.

    Raises:
        ConfigError: naming `mom2_dataset` and what it may be.
    """
    if name in HUB or name == "embedded":
        return
    path = Path(name)
    if path.suffix not in READERS or not path.is_file():
        raise ConfigError(
            f"mom2_dataset={name!r}: expected 'embedded', {', '.join(map(repr, HUB))}, or an existing file ending in "
            f"{', '.join(READERS)}"
        )


def open_corpus(name: str) -> Corpus:
    """The corpus behind `mom2_dataset`; nothing is read or downloaded before its texts are asked for.

    Raises:
        ConfigError: see `check_corpus`.
    """
    check_corpus(name)
    if name == "embedded":
        return Corpus("embedded", embedded_statistics_texts)
    if name in HUB:
        return Corpus(name, lambda: _Texts(_load(*HUB[name]), name))
    path = Path(name)
    digest = hashlib.blake2b(digest_size=4)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return Corpus(
        f"{path.stem}-{digest.hexdigest()}", lambda: _Texts(_load(READERS[path.suffix], None, path), str(path))
    )


def _load(builder: str, configuration: str | None = None, path: Path | None = None) -> Any:
    from datasets import load_dataset

    try:
        if path is None:
            return load_dataset(builder, configuration, split="train")
        return load_dataset(builder, data_files=glob.escape(str(path)), split="train")  # a file, not a pattern
    except Exception as error:  # the hub, the network and the parsers raise too many kinds to list
        source = str(path) if path else f"{builder} ({configuration}) of the hub"
        raise StatisticsError(
            f"mom2_dataset: cannot load {source}: {error}; name a local file or 'embedded' instead"
        ) from error


@dataclass(frozen=True)
class _Joined(Sequence[str]):
    """Two sequences of texts, one after the other, neither of them copied."""

    first: Sequence[str]
    second: Sequence[str]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self.first[at] if at < len(self.first) else self.second[at - len(self.first)]


class _Texts(Sequence[str]):
    """The `text` column of a data set, read row by row."""

    def __init__(self, rows: Any, source: str) -> None:
        if "text" not in rows.column_names:
            raise StatisticsError(f"mom2_dataset={source!r}: no column 'text' among {rows.column_names}")
        self.rows = rows
        self.source = source

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        texts = self.rows[index]["text"]
        if isinstance(index, int):
            return self._checked(texts, index)
        return [self._checked(text, row) for row, text in zip(range(*index.indices(len(self))), texts, strict=True)]

    def __iter__(self) -> Iterator[str]:
        return (self._checked(row["text"], i) for i, row in enumerate(self.rows))

    def _checked(self, text: Any, row: int) -> str:
        if not isinstance(text, str):
            raise StatisticsError(
                f"mom2_dataset={self.source!r}: row {row}: text={shown(text)}: expected a text: drop the row"
            )
        return text


def held_out_corpus(name: str) -> Corpus:
    """Ordinary text by name: the embedded extract's held-out part, a corpus of the hub, or a file; read when asked.

    Raises:
        ConfigError: the name is neither known nor an existing file.
    """
    if name == "embedded":
        from zerounlearn.demo.wikipedia import embedded_held_out_texts

        return Corpus("embedded held-out", embedded_held_out_texts)
    return open_corpus(name)
