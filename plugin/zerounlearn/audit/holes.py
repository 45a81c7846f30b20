"""Holes in what is left: what the base model says of things beside the facts, and the edited model no longer does."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from zerounlearn.audit.pair import Pair
from zerounlearn.audit.target import Target
from zerounlearn.data.fact import Fact
from zerounlearn.data.subjects import propose_subjects
from zerounlearn.evaluation.false_answers import CONFIDENT, first_word
from zerounlearn.model.tokens import Query

_OPENING = "Here are some facts about {subject}. {subject}"
_ANSWER, _TOLD = 6, 32
"""Tokens that the base model writes: an answer, and what it tells about a subject."""
_EXAMPLES = 10
_NAME = re.compile(r"(?<=[\w,;] )[A-Z0-9][\w'’-]*")
"""A name or number within a sentence."""


class Lost(NamedTuple):
    """A question that the base model answers, and what the edited model says in the answer's place."""

    prompt: str
    answer: str
    instead: str


@dataclass(frozen=True)
class Holes:
    """What was lost beside the facts.

    Attributes:
        asked: questions that the base model answers with a probability above 0.3.
        lost: those that the edited model no longer answers so.
        examples: some of these.
    """

    asked: int
    lost: int
    examples: tuple[Lost, ...] = ()


def holes(pair: Pair, target: Target, count: int) -> Holes:
    """Ask both models up to `count` questions that the base model proposes itself, as plain text.

    Half are the facts' prompts with subjects that it lists beside the facts' own; half are names and numbers in what
    it tells about the facts' subjects. A question about a fact's subject whose answer is a fact's is left out: that
    one was to go. After arXiv 2511.00030, where the answers are judged by another model; here it is arg-max, word by
    word.

    Args:
        pair: the two models.
        target: the facts, and the seed of the lists.
        count: of questions.
    """
    target = replace(target, chat=False)
    with pair.as_base():
        near, told = _beside(target, count), _told(target)
        mixed = [one for both in itertools.zip_longest(near, told) for one in both if one is not None]
        asked = list(dict.fromkeys(mixed))[: 4 * count]
        scores = target.scores(asked)
        sure = [query for query, s in zip(asked, scores, strict=True) if s.said and s.probability > CONFIDENT][:count]
    lost = [query for query, s in zip(sure, target.scores(sure), strict=True) if not s.said]
    shown = lost[:_EXAMPLES]
    texts = target.texts_after([query.prompt for query in shown], _ANSWER)
    examples = [Lost(query.prompt, query.answer, text.strip()) for query, text in zip(shown, texts, strict=True)]
    return Holes(len(sure), len(lost), tuple(examples))


def _beside(target: Target, count: int) -> list[Query]:
    """The facts' prompts about other subjects that the model proposes, with the first word that it answers."""
    groups: dict[tuple[str, str], list[Fact]] = {}
    for fact in target.facts:
        groups.setdefault((fact.request.before, fact.request.after), []).append(fact)
    most = sorted(groups, key=lambda around: -len(groups[around]))[: max(1, count // 10)]  # a list takes seconds
    generator, prompts = target.generator(), []
    subjects = [fact.request.subject for fact in target.facts]
    for before, after in most:
        own = [fact.request.subject for fact in groups[before, after]]
        found = propose_subjects(
            target.model, target.tokenizer, own, 2 * count // len(most), but=subjects, generator=generator
        )
        prompts.append([f"{before}{name}{after}" for name in found])
    flat = [one for each in itertools.zip_longest(*prompts) for one in each if one is not None]
    return [
        Query(prompt, word)
        for prompt, text in zip(flat, target.texts_after(flat, _ANSWER), strict=True)
        if (word := first_word(text)) and (word[0].isupper() or word[0].isdigit())
    ]


def _told(target: Target) -> list[Query]:
    """Names and numbers in what the model tells about the facts' subjects, one of each subject in turn."""
    subjects = list(dict.fromkeys(fact.request.subject for fact in target.facts))
    starts = [_OPENING.replace("{subject}", subject) for subject in subjects]
    texts = target.texts_after(starts, _TOLD)
    answers = {word for fact in target.facts for word in fact.request.answer.casefold().split()}
    rows = [list(_names(start, text, answers)) for start, text in zip(starts, texts, strict=True)]
    return [one for each in itertools.zip_longest(*rows) for one in each if one is not None]


def _names(start: str, text: str, but: set[str]) -> Iterator[Query]:
    """Each name and number that was not there before, behind what was."""
    for match in _NAME.finditer(text):
        prompt = (start + text[: match.start()]).rstrip()
        new = match[0].casefold() not in but and match[0] not in prompt
        if new and match.end() < len(text):  # the last may be cut off
            yield Query(prompt, match[0])
