"""Probability, exact memorisation, extraction strength and ROUGE, against numbers worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.evaluation.memorisation import exact_memorisation, extraction_strength, probability, probability_among
from zerounlearn.evaluation.rouge import rouge_l_recall

HITS = st.lists(st.booleans(), min_size=1, max_size=12)


def test_probability_is_the_geometric_mean_of_the_tokens() -> None:
    # (1/2 · 1/8)^(1/2) = 1/4, and saying it twice changes nothing
    log_p = torch.tensor([0.5, 0.125]).log()
    assert probability(log_p) == pytest.approx(1 / 4)
    assert probability(log_p.repeat(2)) == pytest.approx(1 / 4)


def test_probability_among_options() -> None:
    # 0.4 / (0.4 + 0.3 + 0.1) = 1/2
    assert probability_among(0.4, [0.3, 0.1]) == pytest.approx(1 / 2)
    assert probability_among(0.4, []) == 1
    assert probability_among(0.0, [0.0]) == 0


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        # of 4 tokens 3 are said; the last 2 follow from the first 2: 1 - 2/4
        ([1, 0, 1, 1], 3 / 4, 1 / 2),
        # all follow from the prompt alone: k = 0
        ([1, 1, 1, 1], 1, 1),
        # the last is never said: k = t
        ([1, 1, 1, 0], 3 / 4, 0),
        ([0, 0, 0, 1], 1 / 4, 1 / 4),
        ([0], 0, 0),
    ],
)
def test_exact_memorisation_and_extraction_strength(hits: list[int], exact: float, strength: float) -> None:
    hit = torch.tensor(hits, dtype=torch.bool)
    assert exact_memorisation(hit) == pytest.approx(exact)
    assert extraction_strength(hit) == pytest.approx(strength)


@given(HITS, st.data())
def test_saying_one_more_token_never_lowers_either(hits: list[bool], data: st.DataObject) -> None:
    better = list(hits)
    better[data.draw(st.integers(0, len(hits) - 1))] = True
    a, b = torch.tensor(hits), torch.tensor(better)
    assert extraction_strength(a) <= extraction_strength(b)
    assert exact_memorisation(a) <= exact_memorisation(b)
    assert extraction_strength(a) <= exact_memorisation(a)


@given(HITS)
def test_extraction_strength_is_its_definition(hits: list[bool]) -> None:
    t = len(hits)
    k = min(k for k in range(t + 1) if all(hits[k:]))
    assert extraction_strength(torch.tensor(hits)) == pytest.approx(1 - k / t)


def test_rouge_l_recall() -> None:
    # "the cat … on … mat" are 4 of the answer's 6 words in order; the stems of "runs" and "running" are one
    found = rouge_l_recall(["the cat lay on a mat", "He runs", "Paris"], ["the cat sat on the mat", "running", "Rome"])
    assert found == pytest.approx([4 / 6, 1, 0])


def test_rouge_l_recall_never_falls_as_the_text_grows() -> None:
    answer = "the cat sat on the mat"
    words = ["a", "dog", "sat", "near", "the", "cat", "and", "on", "the", "mat", "it", "slept"]
    found = [rouge_l_recall([" ".join(words[:n])], [answer])[0] for n in range(1, len(words) + 1)]
    assert found == sorted(found)
    assert found[-1] > 0
    assert math.isclose(rouge_l_recall([answer], [answer])[0], 1)
