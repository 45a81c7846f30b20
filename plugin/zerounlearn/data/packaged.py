"""Well-known facts in CounterFact's layout, packaged, and the test of whether a model knows a fact.

`facts.json` is a list of records as `multi_counterfact.json` has them, with four keys more: `relation` (a
readable name; several relations share one Wikidata property), `neighborhood_answers` (CounterFact's neighbours
share the fact's own answer, ours are facts about other subjects, each with its own), and `other_prompts` with
`other_answers` (further facts about the same subject, which forgetting this one should leave alone).

The set was chosen with SmolLM2-135M-Instruct at hand: of several wordings of a relation mostly the one it
completes best, facts it completes before others, and at least three of a fact's four neighbours among those.
How much of the set that model knows is therefore no measure of the model, and the share of neighbours known
before an edit is high by choice. `capital` and `capital_of` hold many facts in both directions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data import fact as forget_set
from zerounlearn.data.request import Request
from zerounlearn.errors import AssetError, RequestError
from zerounlearn.model.answers import score

# One fact in this many is for development.
BLOCK = 3


@dataclass(frozen=True)
class Fact:
    """A true statement and what is needed to see whether forgetting it went too far or not far enough.

    `prompt` holds `{}` where the subject goes; every other prompt is filled in. All answers follow their
    prompt after one space.
    """

    case_id: int
    relation: str
    prompt: str
    subject: str
    answer: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    """Prompts of the same relation about other subjects, with their answers."""
    others: tuple[tuple[str, str], ...]
    """Prompts of other relations about the same subject, with their answers."""
    counterfactual: str
    """A false answer of the right kind, which editing methods need as a target."""

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.format(self.subject)

    def to_forget(self) -> forget_set.Fact:
        """The fact as an entry of a forget set, with the prompts that measure its forgetting."""
        request = Request.of(self.prompt, self.subject, self.answer)
        return forget_set.Fact(request, self.paraphrases, self.neighbours, self.others)


def load_facts(relations: Collection[str] | None = None) -> list[Fact]:
    """The packaged facts in the order of their case ids, all or those of some relations.

    Raises:
        RequestError: a relation is not in the set.
        AssetError: the packaged file is missing or damaged.
    """
    facts = _packaged()
    if relations is None:
        return list(facts)
    available = list(dict.fromkeys(fact.relation for fact in facts))
    if unknown := sorted(set(relations) - set(available)):
        raise RequestError(f"no facts of relation {unknown}: expected any of {available}")
    return [fact for fact in facts if fact.relation in relations]


def split_facts(facts: Sequence[Fact], seed: int = 0) -> tuple[list[Fact], list[Fact]]:
    """Divide facts into (development, evaluation), about one to two in every relation.

    Hyperparameters are to be chosen on the first part and figures reported on the second. Where a fact goes
    depends on its case id and `seed` alone, not on the other facts: filtering the facts first, say to those
    that a model knows, or drawing some of them with another seed never moves one across. Case ids are
    consecutive within a relation, and one of every `BLOCK` consecutive ids is taken, which is what keeps the
    relations balanced. `seed` names the split; it is not the seed of a run, which must leave it alone.
    """
    development = [fact for fact in facts if _for_development(fact.case_id, seed)]
    evaluation = [fact for fact in facts if not _for_development(fact.case_id, seed)]
    return development, evaluation


def known(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the model completes each (prompt, answer): every token of the answer is its arg-max.

    Raises:
        RequestError: an answer is empty.
    """
    for prompt, answer in items:
        if not answer.strip():
            raise RequestError(f"the answer {answer!r} to {prompt!r} has no tokens")
    return [found.said for found in score(model, tokenizer, items)]


def _for_development(case_id: int, seed: int) -> bool:
    block, place = divmod(case_id, BLOCK)
    return hashlib.sha256(f"{seed}:{block}".encode()).digest()[0] % BLOCK == place


@lru_cache(maxsize=1)
def _packaged() -> tuple[Fact, ...]:
    try:
        text = resources.files("zerounlearn.data").joinpath("facts.json").read_text(encoding="utf-8")
        return tuple(_fact(record) for record in json.loads(text))
    except (OSError, ValueError, KeyError) as error:
        raise AssetError(f"the packaged facts.json cannot be read ({error!r}): reinstall zerounlearn") from error


def _fact(record: dict[str, Any]) -> Fact:
    rewrite = record["requested_rewrite"]
    return Fact(
        case_id=record["case_id"],
        relation=record["relation"],
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        answer=rewrite["target_true"]["str"],
        paraphrases=tuple(record["paraphrase_prompts"]),
        neighbours=tuple(zip(record["neighborhood_prompts"], record["neighborhood_answers"], strict=True)),
        others=tuple(zip(record["other_prompts"], record["other_answers"], strict=True)),
        counterfactual=rewrite["target_new"]["str"],
    )
