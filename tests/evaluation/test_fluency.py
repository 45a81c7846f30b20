"""Fluency and consistency, against numbers worked out on paper and against EasyEdit's own function."""

from __future__ import annotations

import math

import pytest

from zerounlearn.evaluation.fluency import _words, consistency, n_gram_entropy


def test_n_gram_entropy_by_hand() -> None:
    # bigrams ab, ba, ab: H₂ = 2/3 · log₂(3/2) + 1/3 · log₂ 3 = log₂ 3 − 2/3; trigrams aba, bab: H₃ = 1
    assert n_gram_entropy("a b a b") == pytest.approx((2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3) / 2)
    # 5 different words: H₂ = 2, H₃ = log₂ 3
    assert n_gram_entropy("one two three four five") == pytest.approx((4 / 3 + 4 / 3 * math.log2(3)) / 2)


@pytest.mark.parametrize("text", ["", "word", "again again again again again again"])
def test_repetition_and_emptiness_have_no_entropy(text: str) -> None:
    assert n_gram_entropy(text) == 0


def test_n_gram_entropy_is_easyedits(monkeypatch) -> None:
    """With the same words; EasyEdit's own need a model that nltk downloads."""
    from zerounlearn.easyedit.editions.compat import framework

    framework()
    from easyeditor.evaluate import evaluate_utils

    monkeypatch.setattr(evaluate_utils.nltk, "word_tokenize", _words)
    for text in ("The cat sat on the mat, and the cat sat on the dog's mat.", "a b c a b c a b d", "so so so so"):
        assert n_gram_entropy(text) == pytest.approx(evaluate_utils.n_gram_entropy([text]))


def test_consistency_by_hand() -> None:
    # smoothed idf over two texts: 1 for the word of both, 1 + ln(3/2) for the others
    rare = 1 + math.log(3 / 2)
    assert consistency("apple pear", ["apple plum"]) == pytest.approx(1 / (1 + rare**2))
    # counted in a corpus where no word is rarer than another, the words weigh alike
    assert consistency("apple pear", ["apple plum"], ["apple pear plum"]) == pytest.approx(1 / 2)
    assert consistency("apple pear", ["pear", "apple"]) == pytest.approx(1)
    assert consistency("apple", ["pear"]) == 0
    with pytest.raises(ValueError, match="at least one text"):
        consistency("apple", [])
