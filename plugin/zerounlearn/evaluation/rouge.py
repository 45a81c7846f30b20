"""ROUGE-L (Lin 2004) in every script, by Google's `rouge-score`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.evaluation.words import characters, words
from zerounlearn.model.tokens import Queries

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

_NEIGHBOURS = 100
"""Neighbourhood prompts that ROUGE-L is taken on, at most."""
_LATIN = re.compile(r"[a-z0-9]+")


class _Words:
    """For `rouge-score`: `words`, the English ones of more than three letters stemmed, as its own does."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem: Any = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """The text's units."""
        return [self._stem(word) if len(word) > 3 and _LATIN.fullmatch(word) else word for word in words(text)]


class _Characters:
    """For `rouge-score`, where an answer has no words."""

    tokenize = staticmethod(characters)


@lru_cache(maxsize=2)
def _scorer(kind: type[_Words | _Characters]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=kind())


def rouge_l_recall(generated: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Share of each answer's words, in order, that the generated text has; 0 to 1.

    TOFU (arXiv 2401.06121), section 2.2.1, "ROUGE"; RWKU (arXiv 2406.10890). English words are stemmed, as in
    TOFU's and open-unlearning's evaluations; RWKU's own, with another library, does not stem. Recall never falls as
    the text grows, so compare at equal numbers of generated tokens. See `words` for other scripts.

    Raises:
        ValueError: an answer is empty: nothing can be recalled of it.
    """
    recalls = []
    for text, answer in zip(generated, answers, strict=True):
        if not answer.strip():
            raise ValueError(f"ROUGE-L recall of the answer {answer!r}, which has nothing to recall")
        scorer = _scorer(_Words if words(answer) else _Characters)
        recalls.append(float(scorer.score(answer, text)["rougeL"].recall))
    return recalls


def _recall(asked: Asked, queries: Queries) -> float | None:
    if not queries:
        return None
    texts = asked.texts([query[0] for query in queries], asked.settings.generation_tokens)
    return fmean(rouge_l_recall(texts, [query[1] for query in queries]))


@metric("rouge_l", label="ROUGE-L", goal=Goal.LOWER, unit="%", group=Group.MEMORY, source="arXiv 2401.06121")
def _forgotten(asked: Asked) -> float | None:
    """ROUGE-L recall of the sensitive answer in generated text (Lin 2004)."""
    return _recall(asked, asked.probes.eff)


@metric("rouge_l_neighbours", label="ROUGE-L kept", goal=Goal.HIGHER, unit="%", group=Group.MEMORY)
def _neighbours(asked: Asked) -> float | None:
    """ROUGE-L recall of the neighbours' answers in generated text (Lin 2004)."""
    return _recall(asked, asked.probes.spe[:_NEIGHBOURS])
