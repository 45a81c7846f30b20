"""ROUGE-L and the other metrics of text in every script."""

from __future__ import annotations

import unicodedata

import pytest
from rouge_score.rouge_scorer import RougeScorer

from zerounlearn.evaluation.fluency import consistency, n_gram_entropy
from zerounlearn.evaluation.rouge import rouge_l_recall
from zerounlearn.evaluation.words import apart, words

TEXTS = ["巴黎", "Париж", "القاهرة", "パリ", "서울", "กรุงเทพ", "दिल्ली", "Αθήνα", "Žižkov", "1870", "🦊", "→ ←", "Ⅳ"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_answer_recalls_itself_and_nothing_does_not(text: str) -> None:
    assert rouge_l_recall([text, f"Oh, {text}!", "nothing of it", ""], [text] * 4) == [1, 1, 0, 0]


def test_english_is_as_rouge_score_has_it() -> None:
    plain = RougeScorer(["rougeL"], use_stemmer=True)
    for answer, text in [
        ("The running dogs' owner, aged 41.5", "owners of a dog run; he is 41"),
        ("It's Leo Tolstoy's War-and-Peace", "tolstoy wrote the war and peaceful"),
        ("U.S.A.", "the U.S. A"),
    ]:
        assert rouge_l_recall([text], [answer]) == [plain.score(answer, text)["rougeL"].recall]


def test_characters_count_where_there_are_no_spaces_and_words_elsewhere() -> None:
    assert rouge_l_recall(["他住在北京"], ["北京市"]) == pytest.approx([2 / 3])
    assert rouge_l_recall(["Москва"], ["Московский"]) == [0]
    assert words("Beyoncé 2が来たGPT-4") == ["beyoncé", "2", "が", "来", "た", "gpt", "4"]
    assert words("It's here_now") == ["it", "s", "here", "now"]
    assert rouge_l_recall([unicodedata.normalize("NFD", "Beyoncé")], ["Beyoncé"]) == [1]
    assert apart("在Paris中") == ["在", "Paris", "中"]


def test_an_empty_answer_is_no_zero() -> None:
    with pytest.raises(ValueError, match="nothing to recall"):
        rouge_l_recall(["text"], [" "])


def test_fluency_and_consistency_read_scripts_without_spaces() -> None:
    assert n_gram_entropy("他住在北京市中心的一座老房子里") > 3
    assert n_gram_entropy("好好好好好好好好") == 0
    assert consistency("北京是首都", ["首都是北京"]) == pytest.approx(1)
    assert 0 < consistency("北京", ["首都是北京"]) < 1
