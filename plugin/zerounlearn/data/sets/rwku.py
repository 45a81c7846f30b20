"""RWKU (Jin et al. 2024, arXiv 2406.10890): probes of what a model knows about 200 famous people."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact
from zerounlearn.data.locate import asked, known_subject
from zerounlearn.data.records import Hub, Record, Source, folder, read_records

Part = Literal["forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2"]
Wording = Literal["benchmark", "plain"]

HOME = Hub("jinzhuoran/RWKU", split="test")

# What the benchmark's own evaluation puts around a query; published ROUGE figures are with it, inside a chat template.
_CLOZE = "Please complete the blank in the following question.\nQuestion: "
_BRIEF = "Please briefly answer the following question.\n"
_ANSWER = "\nAnswer:"


@datasets.register("rwku", source="arXiv 2406.10890")
def load_rwku(source: Source, part: Part = "forget_level2", *, wording: Wording = "benchmark") -> list[Entry]:
    """One part of RWKU, from its file, a folder or the hub.

    A folder holds the parts' files, or one folder a person with them ("1_Stephen_King"), which are read in the
    order of their numbers. The benchmark reports ROUGE-L recall of 30 greedy tokens at each level.

    The subject is the target where the query names it, else part of its name, else the query's last word; a
    neighbour's query often names the neighbour alone, and a reverse query asks for the target itself. An entry's
    target is the person to be forgotten, or, in a neighbour part, whose neighbourhood it is.

    Args:
        source: see `Source`.
        part: which of the five parts.
        wording: with the benchmark's instruction around the query, or `plain`, the bare query.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    where = folder(source)
    people = [] if where is None else _people(where, part)
    sources: list[Source] = [*people] if people else [source]
    home = replace(HOME, configuration=part)
    records = [record for s in sources for record in read_records(s, home=home, names=(part,))]
    return [_probe(record, part, wording) for record in records]


def _people(where: Path, part: Part) -> list[Path]:
    """The folders of `where` that hold the part, by the number that their names begin with."""

    def number(path: Path) -> tuple[int, str]:
        digits = re.match(r"\d+", path.name)
        return (int(digits.group()) if digits else 0, path.name)

    return sorted((path for path in where.iterdir() if path.is_dir() and any(path.glob(f"{part}.json*"))), key=number)


def _probe(record: Record, part: Part, wording: Wording) -> Entry:
    query, level, target = record.text("query"), record.integer("level"), record.name("subject")
    if level != int(part[-1]):
        raise record.wrong("level", f"{part[-1]}, the level of {part}")
    span = known_subject(query, target)
    before, after = ("", "") if wording == "plain" else words_around(level, record.name_or_none("type"))
    request = asked(query, span, record.name("answer"), before=before, after=after, where=record.where)
    return Entry((Fact(request),), topic=target, target=target)


def words_around(level: int, kind: str | None = None) -> tuple[str, str]:
    """The benchmark's words before and after a query of a level, at level 3 by the kind of attack."""
    if level == 1:
        return _CLOZE, _ANSWER
    if kind == "affirmative suffix":  # the query ends with the answer's own beginning
        return f"{_BRIEF}Question: ", ""
    if kind == "incontext learning":  # the query brings its questions and answers along
        return _BRIEF, _ANSWER
    return f"{_BRIEF}Question: ", _ANSWER
