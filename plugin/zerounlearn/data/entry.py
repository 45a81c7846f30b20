"""One entry of a data set, with every optional field that a study looks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zerounlearn.data.fact import Fact, Items


@dataclass(frozen=True)
class Question:
    """A question that a truth ratio is taken on.

    Attributes:
        prompt: what is asked.
        answer: the true answer.
        paraphrased: the answer in other words, or the same.
        perturbed: false answers.
    """

    prompt: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]


@dataclass(frozen=True)
class MultiHop:
    """A question whose answer needs several facts, as MQuAKE asks them.

    Attributes:
        questions: its wordings.
        answer: the true answer.
        aliases: other names of that answer.
    """

    questions: tuple[str, ...]
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is forgotten, or kept, as a whole.

    Attributes:
        facts: each with the prompts that measure its forgetting; one, but for MQuAKE.
        case_id: the data set's own number.
        topic: what entries have in common, a relation or a person; those of other topics are unrelated.
        target: whom the entry is about, where a data set keeps entries about the same one (RWKU): those are the
            neighbours of what is forgotten.
        counterfactuals: for each fact a false answer of the right kind, which editing methods write; or none at all.
        answers: all answers to the one fact that count as right; empty where there is but the fact's own.
        token_by_token: (prompt, answer) that must stay, whose specificity is next-token accuracy (the share of the
            answer's tokens that are the arg-max after those before them), as ZsRE's is, not whole answers.
        openings: texts about the subject to go on from, for fluency.
        question: the fact's question with false answers, for the truth ratio and TOFU's model utility.
        multi_hop: a question that needs all facts.
    """

    facts: tuple[Fact, ...]
    case_id: int | None = None
    topic: str | None = None
    target: str | None = None
    counterfactuals: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    token_by_token: Items = ()
    openings: tuple[str, ...] = ()
    question: Question | None = None
    multi_hop: MultiHop | None = None

    @property
    def fact(self) -> Fact:
        """The first fact, which is the only one but in MQuAKE."""
        return self.facts[0]


def facts_of(entries: Iterable[Entry]) -> list[Fact]:
    """The facts of all entries in their order, the first of those that ask the same prompt.

    A forget set must not ask a prompt twice (`check_requests`); MQuAKE's cases share many of their rewrites, and
    some of RWKU's attacks are listed more than once.
    """
    facts: dict[str, Fact] = {}
    for entry in entries:
        for fact in entry.facts:
            facts.setdefault(fact.request.key, fact)
    return list(facts.values())
