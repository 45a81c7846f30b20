"""Whether a forgotten answer was replaced by a confident wrong one (what unlearning surveys call hallucination)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zerounlearn.data.request import Request
from zerounlearn.data.text import nfc
from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.model.tokens import Query

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

CONFIDENT = 0.3
"""Above this probability a first word counts as claimed."""

_TOKENS = 8
"""Generated after a prompt; its first word is looked at."""


@metric("false_answer", label="False answers", goal=Goal.LOWER, unit="%", group=Group.CORE)
def _false_answer(asked: Asked) -> float | None:
    """Forget prompts whose next word is a wrong name, number or answer of another fact, at probability above 0.3."""
    requests = [fact.request for fact in asked.facts]
    if not requests:
        return None
    answers = [fact.request.answer for fact in (*asked.facts, *asked.kept)]
    claims = claimed(requests, asked.texts([r.prompt for r in requests], _TOKENS), answers)
    scores = asked.scores(asked.joined(claims))
    return sum(scored.probability > CONFIDENT for scored in scores) / len(requests)


def claimed(requests: Sequence[Request], texts: Sequence[str], answers: Iterable[str]) -> list[Query]:
    """The prompts whose text claims something else than the sensitive answer, each with what it claims.

    That is the text's first word, if it is a name, a number or the first word of one of `answers`.
    """
    words = {first_word(answer) for answer in answers}
    claims = []
    for request, text in zip(requests, texts, strict=True):
        word = first_word(text)
        named = word[:1].isupper() or word[:1].isdigit() or word in words
        if word and named and not _is_answer(text, word, request):
            claims.append(Query(request.prompt, word))
    return claims


def first_word(text: str) -> str:
    """The word that a text begins with, spaces and opening signs left out; empty if a line ends before."""
    found = re.match(r"[^\w\n]*(\w[\w'’-]*)", nfc(text))
    return found[1] if found else ""


def _is_answer(text: str, word: str, request: Request) -> bool:
    """Whether what was written is the sensitive answer, or the beginning of it."""
    answer = nfc(request.answer).casefold()
    return answer.startswith(word.casefold()) or nfc(text).strip().casefold().startswith(answer)
