"""Fluency and consistency of generated text (GE and RS of Meng et al. 2022, arXiv 2202.05262), as EasyEdit has it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from zerounlearn.data.fact import Fact
from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.evaluation.words import apart
from zerounlearn.model.tokens import Query

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

_TOKENS = 100
"""Generated for a text's fluency and consistency."""


def _words(text: str) -> list[str]:
    from nltk.tokenize import NLTKWordTokenizer

    return [part for word in NLTKWordTokenizer().tokenize(text) for part in apart(word)]


def _terms(text: str) -> list[str]:
    """Words of two characters or more, as scikit-learn counts them, and the characters of scripts without spaces."""
    return [part for word in re.findall(r"\b\w\w+\b", text) for part in apart(word)]


def n_gram_entropy(text: str, *, tokenize: Callable[[str], list[str]] = _words) -> float:
    """Weighted mean of the entropies of a text's bi- and trigrams, in bits; low means repetitive.

    GE of ROME and `n_gram_entropy` of EasyEdit (after Zhang et al. 2018, arXiv 1809.05972): (2/3 · H₂ + 4/3 · H₃)/2
    with Hₙ = −Σ f log₂ f over the frequencies of n-grams. ROME's tables show it times 100.

    EasyEdit cuts into sentences first, with a model that nltk downloads; words are cut the same here without, but
    for a full stop inside the text, which then stays with its word.

    Args:
        text: of any length; one with fewer than n words has Hₙ = 0.
        tokenize: text to words; `nltk.word_tokenize` gives EasyEdit's very number.
    """
    words = tokenize(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def consistency(generated: str, references: Sequence[str], corpus: Sequence[str] | None = None) -> float:
    """Cosine between the TF-IDF vectors of a generated text and of reference texts on its subject, 0 to 1.

    RS of ROME, there against Wikipedia texts on things that share the new attribute. In unlearning
    the references are about the forgotten fact, and lower is better.

    Args:
        generated: what the model wrote.
        references: taken together as one text.
        corpus: texts that document frequencies come from; by default the references and the generated text, while
            ROME has them from Wikipedia.

    Raises:
        ValueError: there is no reference, or no word to count.
    """
    if not references:
        raise ValueError("consistency with no references: give at least one text")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    vectorizer = TfidfVectorizer(tokenizer=_terms, token_pattern=None).fit(
        [*references, generated] if corpus is None else corpus
    )
    vectors = vectorizer.transform([generated, " ".join(references)])
    return float(cosine_similarity(vectors[0], vectors[1])[0, 0])


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = counts.total()
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values()) + 0.0


@metric("fluency", label="Fluency", goal=Goal.HIGHER, unit="bit", group=Group.UTILITY, source="arXiv 2202.05262")
def _fluency(asked: Asked) -> float | None:
    """Weighted entropy of the bi- and trigrams of generated text (arXiv 2202.05262).

    Of the openings gone on from; of the forget prompts without any.
    """
    prompts = asked.openings or [fact.request.prompt for fact in asked.facts]
    return fmean(map(n_gram_entropy, asked.texts(prompts, _TOKENS))) if prompts else None


@metric("consistency", label="Consistency", goal=Goal.LOWER, unit="%", group=Group.MEMORY, source="arXiv 2202.05262")
def _consistency(asked: Asked) -> float | None:
    """TF-IDF cosine of generated text with texts on the forgotten fact (arXiv 2202.05262).

    Of what follows a forget prompt with the draw's statements on its subject.
    """
    if not asked.facts:
        return None
    texts = asked.texts([fact.request.prompt for fact in asked.facts], _TOKENS)
    references = [_statements(fact) for fact in asked.facts]
    corpus = [text for statements in references for text in statements]
    return fmean(consistency(text, own, corpus) for text, own in zip(texts, references, strict=True))


def _statements(fact: Fact) -> list[str]:
    """What the draw knows of the fact's subject, as sentences."""
    request = fact.request
    asked = [Query(prompt, request.answer, request.joint) for prompt in (request.prompt, *fact.paraphrases)]
    return [query.text for query in (*asked, *(Query(*pair) for pair in fact.others))]
