"""ROUGE-L (Lin 2004), by Google's `rouge-score`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(generated: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Share of each answer's words, in order, that the generated text has; 0 to 1.

    TOFU (arXiv 2401.06121), section 2.2.1, "ROUGE"; RWKU (arXiv 2406.10890). Words are stemmed, as in
    TOFU's and open-unlearning's evaluations; RWKU's own, with another library, does not stem. Recall never falls as
    the text grows, so compare at equal numbers of generated tokens.
    """
    return [float(_scorer().score(a, g)["rougeL"].recall) for g, a in zip(generated, answers, strict=True)]
