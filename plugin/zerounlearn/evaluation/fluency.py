"""Fluency and consistency of generated text (GE and RS of Meng et al. 2022, arXiv 2202.05262), as EasyEdit has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from nltk.tokenize import NLTKWordTokenizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

_words: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize


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
    vectorizer = TfidfVectorizer().fit([*references, generated] if corpus is None else corpus)
    vectors = vectorizer.transform([generated, " ".join(references)])
    return float(cosine_similarity(vectors[0], vectors[1])[0, 0])


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = counts.total()
    return -math.fsum(c / total * math.log2(c / total) for c in counts.values()) + 0.0
