"""Well-known facts in CounterFact's layout, packaged: those that work is done on, and those kept for the end.

`facts.json` is a list of records as `multi_counterfact.json` has them, with four keys more: `relation` (a
readable name; several relations share one Wikidata property), `neighborhood_answers` (CounterFact's neighbours
share the fact's own answer, ours are facts about other subjects, each with its own), and `other_prompts` with
`other_answers` (further facts about the same subject, which forgetting this one should leave alone).

The set was chosen with SmolLM2-135M-Instruct at hand: of several wordings of a relation mostly the one it
completes best, facts it completes before others, and at least three of a fact's four neighbours among those.
How much of the set that model knows is therefore no measure of the model, and the share of neighbours known
before an edit is high by choice. `capital` and `capital_of` hold many facts in both directions.

`facts_unseen.json` has the same layout and other relations. Each fact has four paraphrases of different form, in this
order: a statement, a question, a cloze (with a blank `___`) and an indirect one (what somebody says or knows), and
most have at least two other facts with the same answer. Its wordings were chosen with that model at hand, too, before
any edit; no choice of a method or of its hyperparameters has been made on it, and none may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib import resources
from typing import Literal

import torch

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact
from zerounlearn.data.locate import asked, known_subject
from zerounlearn.data.records import read_records
from zerounlearn.data.request import PLACE
from zerounlearn.data.sets.counterfact import counterfact_entry
from zerounlearn.data.sets.rwku import words_around
from zerounlearn.errors import AssetError, RequestError

SEEN, UNSEEN = "facts.json", "facts_unseen.json"

Part = Literal["evaluation", "development", "all"]
Wording = Literal["completion", "cloze", "question", "attack"]

# What each prompt asks, as a question; RWKU's levels 2 and 3 ask in questions.
_QUESTIONS = {
    "The capital and seat of government of {} is the city of": "What is the capital of {}?",
    "The city of {} is the capital of the country of": "Of which country is {} the capital?",
    "The main language spoken in {} is": "What is the main language spoken in {}?",
    "The country of {} is located on the continent of": "On which continent is {}?",
    "The basic monetary unit of {} is the": "What is the currency of {}?",
    "The element {} is represented by the symbol": "What is the symbol of the chemical element {}?",
    "The famous work of literature {} was written by": "Who wrote {}?",
    "The famous person who invented {} was": "Who invented {}?",
    "The famous person who developed {} was": "Who developed {}?",
    "The famous person who discovered {} was": "Who discovered {}?",
    "The famous person who proposed {} was": "Who proposed {}?",
    "The famous person who formulated {} was": "Who formulated {}?",
    "The famous person who created {} was": "Who created {}?",
    "The famous person who founded {} was": "Who founded {}?",
    "The city of {} is located in the country of": "In which country is the city of {}?",
    "The {} is a famous sight of the city of": "In which city is the {}?",
    "The offspring of the {} is called a": "What is the offspring of the {} called?",
    "The word that means the opposite of {} is": "What is the opposite of {}?",
    "The month of {} is followed by the month of": "Which month follows {}?",
    "The day of {} is followed by the day of": "Which day follows {}?",
    "The athlete {} competed in the sport of": "In which sport did {} compete?",
    "{} is one of the most famous names in the field of": "For which field is {} famous?",
    "{} was a composer of great fame whose nationality was": "What was the nationality of {}?",
    "{} was a painter of great fame whose nationality was": "What was the nationality of {}?",
    "The capital of {} is the city of": "What is the capital of {}?",
}

# One fact in this many is for development.
BLOCK = 3


@datasets.register("embedded", source="packaged")
def load_embedded(facts: Part = "evaluation", *, wording: Wording = "completion") -> list[Entry]:
    """The packaged facts of one part, mixed, in an order that is always the same.

    Unmixed they are sorted by relation, and the two halves of a study's draw would have few in common.

    Args:
        facts: `evaluation`, on which no hyperparameter was chosen, `development`, or `all`.
        wording: the packaged prompts, or what RWKU's three forget levels ask (arXiv 2406.10890), with that
            benchmark's words around it: a `cloze` of the prompt, a `question`, or as `attack` the beginning of the
            answer in the question's place. Each names its subject once. Those have no paraphrases; their neighbours
            are other facts about the same subject.

    Raises:
        AssetError: the packaged file is missing or damaged.
    """
    entries = packaged_entries()
    if facts != "all":
        development, evaluation = split_entries(entries)
        entries = development if facts == "development" else evaluation
    if wording != "completion":
        entries = [_as_rwku_asks(entry, wording) for entry in entries]
    return _mixed(entries)


@datasets.register("embedded_unseen", source="packaged")
def load_embedded_unseen() -> list[Entry]:
    """Packaged facts for final evaluation only: no hyperparameter may be chosen on them; mixed, always the same.

    They share no relation and no prompt with `embedded`, and no retain set is drawn from them.

    Raises:
        AssetError: the packaged file is missing or damaged.
    """
    return _mixed(_packaged(UNSEEN))


def _as_rwku_asks(entry: Entry, wording: Wording) -> Entry:
    """The entry's fact at one of RWKU's levels; the last mention of its subject counts, as everywhere."""
    said = entry.fact.request
    question = _QUESTIONS[f"{said.before}{PLACE}{said.after}"].replace(PLACE, said.subject)
    query, around = {
        "cloze": (f"{said.prompt} ___.", words_around(1)),
        "question": (question, words_around(2)),
        "attack": (said.prompt, words_around(3, "affirmative suffix")),
    }[wording]
    span = known_subject(query, said.subject)
    request = asked(query, span, said.answer, before=around[0], after=around[1], where=f"packaged fact {entry.case_id}")
    return Entry((Fact(request),), case_id=entry.case_id, topic=entry.topic, target=said.subject)


def packaged_entries(relations: Collection[str] | None = None) -> list[Entry]:
    """The packaged facts in the order of their case ids, all or those of some relations (an entry's topic).

    Raises:
        RequestError: a relation is not in the set.
        AssetError: the packaged file is missing or damaged.
    """
    entries = _packaged(SEEN)
    if relations is None:
        return list(entries)
    available = list(dict.fromkeys(str(entry.topic) for entry in entries))
    if unknown := sorted(set(relations) - set(available)):
        raise RequestError(f"no facts of relation {unknown}: expected any of {available}")
    return [entry for entry in entries if entry.topic in relations]


def split_entries(entries: Sequence[Entry], seed: int = 0) -> tuple[list[Entry], list[Entry]]:
    """Divide packaged facts into (development, evaluation), about one to two in every relation.

    Hyperparameters are to be chosen on the first part and figures reported on the second. Where a fact goes
    depends on its case id and `seed` alone, not on the other facts: filtering the facts first, say to those
    that a model knows, or drawing some of them with another seed never moves one across. Case ids are
    consecutive within a relation, and one of every `BLOCK` consecutive ids is taken, which is what keeps the
    relations balanced. `seed` names the split; it is not the seed of a run, which must leave it alone.

    Raises:
        RequestError: an entry has no case id.
    """
    parts: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in entries:
        if entry.case_id is None:
            raise RequestError(f"{entry.fact.request.prompt!r} has no case id: the packaged facts alone have a split")
        parts[0 if _for_development(entry.case_id, seed) else 1].append(entry)
    return parts


def _for_development(case_id: int, seed: int) -> bool:
    block, place = divmod(case_id, BLOCK)
    return hashlib.sha256(f"{seed}:{block}".encode()).digest()[0] % BLOCK == place


def _mixed(entries: Sequence[Entry]) -> list[Entry]:
    return [entries[i] for i in torch.randperm(len(entries), generator=torch.Generator().manual_seed(0)).tolist()]


@lru_cache
def _packaged(name: str) -> tuple[Entry, ...]:
    try:
        with resources.as_file(resources.files("zerounlearn.data").joinpath(name)) as path:
            return tuple(counterfact_entry(record) for record in read_records(path))
    except (OSError, RequestError) as error:
        raise AssetError(f"the packaged {name} cannot be read ({error}): reinstall zerounlearn") from error
