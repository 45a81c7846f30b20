"""Forget sets: what to forget and what to measure it by, from Python, JSON, JSON lines, YAML or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zerounlearn.data.request import Request, check_requests
from zerounlearn.errors import RequestError

READERS = (".jsonl", ".json", ".yaml", ".yml", ".csv")
_ALIASES = {
    "answer": ("answer", "ground_truth", "target_true"),
    "neutral": ("neutral", "neutral_target", "target_new"),
    "paraphrases": ("paraphrases", "paraphrase_prompts", "rephrase_prompts", "rephrase_prompt", "rephrase"),
    "neighbours": ("neighbours", "neighbors"),
    "others": ("others",),
}


@dataclass(frozen=True)
class Fact:
    """A request with the prompts that measure its forgetting.

    Attributes:
        request: what to forget.
        paraphrases: the same question in other words; the sensitive answer must go there too.
        neighbours: (prompt, answer) of other subjects of the same relation; they must stay.
        others: (prompt, answer) of anything else that must stay, e.g. other facts about the subject.
    """

    request: Request
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()


def load_forget_set(source: str | Path | Iterable[Mapping[str, Any] | Fact]) -> list[Fact]:
    """Facts from a file (by its suffix) or from mappings; CounterFact and EasyEdit records are understood.

    A mapping has `prompt`, `subject` and `answer`, and may have `neutral`, `paraphrases` (a list),
    `neighbours` and `others` (lists of `{prompt, answer}` or of pairs). In CSV, lists are separated by `|`
    and the halves of a pair by `=>`.

    Raises:
        RequestError: the file is missing or malformed, or a record is (named by its number).
    """
    records = _read(Path(source)) if isinstance(source, (str, Path)) else list(source)
    facts = [r if isinstance(r, Fact) else _fact(r, f"record {i}") for i, r in enumerate(records)]
    check_requests(f.request for f in facts)
    return facts


def _read(path: Path) -> list[Any]:
    if path.suffix not in READERS:
        raise RequestError(f"forget set {str(path)!r}: expected a file that ends in {', '.join(READERS)}")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            loaded: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            loaded = json.loads(text)
        elif path.suffix == ".csv":
            loaded = [{k: v for k, v in row.items() if v} for row in csv.DictReader(text.splitlines())]
        else:
            loaded = yaml.safe_load(text)
    except FileNotFoundError:
        raise RequestError(f"forget set {str(path)!r} does not exist") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"forget set {str(path)!r} cannot be read: {error}") from error
    if not isinstance(loaded, list):
        raise RequestError(f"forget set {str(path)!r} holds {type(loaded).__name__}, not a list of records")
    return loaded


def _fact(record: Any, where: str) -> Fact:
    if not isinstance(record, Mapping):
        raise RequestError(f"{where}: {record!r} is {type(record).__name__}, not a mapping")
    rewrite = record.get("requested_rewrite")
    if isinstance(rewrite, Mapping):
        return _counterfact(record, rewrite, where)
    known = {
        "prompt",
        "subject",
        "case_id",
        "relation",
        *(name for names in _ALIASES.values() for name in names),
    }
    easyedit = {"locality_prompt", "locality_ground_truth", "locality", "portability"}
    unknown = sorted(set(record) - known - easyedit)
    if unknown:
        raise RequestError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    for field in ("prompt", "subject"):
        if field not in record:
            raise RequestError(f"{where}: the field {field!r} is missing")
    answer, neutral = _first(record, "answer"), _first(record, "neutral")
    if answer is None:
        raise RequestError(f"{where}: the field 'answer' (the sensitive answer) is missing")
    if "locality_prompt" in record or "ground_truth" in record:  # EasyEdit's target_new is a false fact, not ours
        neutral = record.get("neutral")
    neighbours = _pairs(_first(record, "neighbours"), where, "neighbours")
    if record.get("locality_prompt"):
        neighbours += ((str(record["locality_prompt"]), str(record.get("locality_ground_truth", ""))),)
    request = Request.of(record["prompt"], record["subject"], answer, neutral, where=where)
    paraphrases = _list(_first(record, "paraphrases"))
    return Fact(request, tuple(paraphrases), neighbours, _pairs(_first(record, "others"), where, "others"))


def _counterfact(record: Mapping[str, Any], rewrite: Mapping[str, Any], where: str) -> Fact:
    """CounterFact: neighbourhood prompts share the sensitive answer unless `neighborhood_answers` says otherwise."""
    try:
        answer = rewrite["target_true"]["str"]
        request = Request.of(rewrite["prompt"], rewrite["subject"], answer, where=where)
        prompts = record.get("neighborhood_prompts", [])
        answers = record.get("neighborhood_answers") or [answer.strip()] * len(prompts)
        others = zip(record.get("other_prompts", []), record.get("other_answers", []), strict=True)
        return Fact(
            request,
            tuple(record.get("paraphrase_prompts", [])),
            tuple(zip(prompts, answers, strict=True)),
            tuple(others),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{where}: not a CounterFact record: {error!r}") from error


def _first(record: Mapping[str, Any], field: str) -> Any:
    return next((record[name] for name in _ALIASES[field] if record.get(name) not in (None, "")), None)


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split("|") if part.strip()]
    return [str(part) for part in value]


def _pairs(value: Any, where: str, field: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    parts: Sequence[Any] = [p.split("=>") for p in value.split("|")] if isinstance(value, str) else value
    found = []
    for part in parts:
        if isinstance(part, Mapping):
            part = (part.get("prompt"), part.get("answer", part.get("ground_truth")))
        if len(part) != 2 or not all(isinstance(p, str) and p.strip() for p in part):
            raise RequestError(f"{where}: {field}: {part!r} is no pair of a prompt and its true answer")
        found.append((part[0].strip(), part[1].strip()))
    return tuple(found)
