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
from zerounlearn.data.records import read_records
from zerounlearn.data.sets.counterfact import counterfact_entry
from zerounlearn.errors import AssetError, RequestError

SEEN, UNSEEN = "facts.json", "facts_unseen.json"

Part = Literal["evaluation", "development", "all"]

# One fact in this many is for development.
BLOCK = 3


@datasets.register("embedded", source="packaged")
def load_embedded(facts: Part = "evaluation") -> list[Entry]:
    """The packaged facts of one part, mixed, in an order that is always the same.

    Unmixed they are sorted by relation, and the two halves of a study's draw would have few in common.

    Args:
        facts: `evaluation`, on which no hyperparameter was chosen, `development`, or `all`.

    Raises:
        AssetError: the packaged file is missing or damaged.
    """
    entries = packaged_entries()
    if facts != "all":
        development, evaluation = split_entries(entries)
        entries = development if facts == "development" else evaluation
    return _mixed(entries)


@datasets.register("embedded_unseen", source="packaged")
def load_embedded_unseen() -> list[Entry]:
    """Packaged facts for final evaluation only: no hyperparameter may be chosen on them; mixed, always the same.

    They share no relation and no prompt with `embedded`, and no retain set is drawn from them.

    Raises:
        AssetError: the packaged file is missing or damaged.
    """
    return _mixed(_packaged(UNSEEN))


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
