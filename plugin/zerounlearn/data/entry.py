"""What all data sets have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from zerounlearn.data.fact import Fact


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


class Entry(Protocol):
    """One entry of a data set: what is forgotten, or kept, as a whole."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The entry's facts, each with the prompts that measure its forgetting."""


@dataclass(frozen=True)
class Single:
    """An entry of one fact."""

    fact: Fact

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The one fact."""
        return (self.fact,)


def facts_of(entries: Iterable[Entry]) -> list[Fact]:
    """The facts of all entries in their order, the first of those that ask the same prompt.

    A forget set must not ask a prompt twice (`check_requests`); MQuAKE's cases share many of their rewrites, and
    some of RWKU's attacks are listed more than once.
    """
    found: dict[str, Fact] = {}
    for entry in entries:
        for fact in entry.facts:
            found.setdefault(fact.request.prompt, fact)
    return list(found.values())
