"""Membership inference, against numbers worked out on paper."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.evaluation.membership import auc, loss, min_k, min_k_plus_plus, zlib_ratio
from zerounlearn.model.answers import AnswerTokens, _reduce

LOG_PS = st.lists(st.floats(-20, 0), min_size=1, max_size=30).map(lambda v: torch.tensor(v, dtype=torch.float64))
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def test_loss_and_min_k_by_hand() -> None:
    log_p = torch.tensor([-3.0, -1.0, -5.0, -2.0, -4.0])
    assert loss(log_p) == -3
    assert min_k(log_p, 40) == pytest.approx(-4.5)  # of 5 tokens the lowest 2
    assert min_k(log_p, 59) == pytest.approx(-4.5)  # 2.95 are 2
    assert min_k(log_p) == -5  # 20 % are 1
    assert min_k(log_p, 1) == -5  # one at least


@given(LOG_PS, st.floats(0.1, 100), st.floats(0.1, 100))
def test_min_k_rises_with_k_up_to_the_loss(log_p: torch.Tensor, a: float, b: float) -> None:
    assert min_k(log_p, 100) == pytest.approx(loss(log_p))
    assert min_k(log_p, min(a, b)) <= min_k(log_p, max(a, b)) + 1e-9


@given(st.integers(1, 200))
def test_a_share_of_100_tokens_is_its_percentage(n: int) -> None:
    log_p = -torch.arange(1.0, 101.0)
    percent = (n - 1) % 100 + 1  # int(100 · 0.29) would be 28
    assert min_k(log_p, percent) == pytest.approx(-sum(range(101 - percent, 101)) / percent)


def test_min_k_plus_plus_by_hand() -> None:
    # p = (3/4, 1/4): μ = ln(3/4) - ln(3)/4 and σ = √(3/16)·ln 3, so the scores are 1/√3 and -√3
    logits = torch.tensor([0.75, 0.25]).log().expand(2, 2)
    log_p, hit, mean, sd = _reduce(logits, torch.tensor([0, 1]), True)
    tokens = AnswerTokens((0, 1), log_p, hit, mean, sd)
    assert float(sd[0]) == pytest.approx(math.sqrt(3) / 4 * math.log(3), rel=1e-5)
    assert min_k_plus_plus(tokens, 100) == pytest.approx((1 / math.sqrt(3) - math.sqrt(3)) / 2, rel=1e-5)
    assert min_k_plus_plus(tokens, 50) == pytest.approx(-math.sqrt(3), rel=1e-5)


def test_min_k_plus_plus_of_a_uniform_distribution_is_nought() -> None:
    log_p, hit, mean, sd = _reduce(torch.zeros(1, 4), torch.tensor([2]), True)
    assert min_k_plus_plus(AnswerTokens((2,), log_p, hit, mean, sd)) == pytest.approx(0, abs=1e-3)


def test_min_k_names_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="moments=True"):
        min_k_plus_plus(AnswerTokens((1,), torch.zeros(1), torch.ones(1, dtype=torch.bool)))
    for percent in (0, 101, float("nan")):
        with pytest.raises(ValueError, match="percent="):
            min_k(torch.zeros(3), percent)


def test_zlib_ratio_by_hand() -> None:
    # one literal in a fixed block: 3 + 8 + 7 bits are 3 bytes, with 2 before and a checksum of 4 after
    assert zlib_ratio(torch.tensor([-4.5]), "a") == pytest.approx(-4.5 / 9)
    flat, rich = "a" * 200, "".join(chr(33 + (i * i * 7) % 90) for i in range(200))
    assert zlib_ratio(torch.tensor([-1.0]), flat) < zlib_ratio(torch.tensor([-1.0]), rich)


def test_auc_by_hand() -> None:
    # of 4 pairs 3 > 2, 3 > 0 and 1 > 0
    assert auc([3, 1], [2, 0]) == pytest.approx(3 / 4)
    assert auc([1, 1], [1]) == pytest.approx(1 / 2)
    assert auc([2], [1]) == 1


@given(SCORES, SCORES)
def test_auc_counts_pairs(members: list[float], others: list[float]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(members, others)]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(others, members) == pytest.approx(1 - auc(members, others))


def test_auc_needs_scores_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        auc([], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        auc([float("nan")], [1.0])
