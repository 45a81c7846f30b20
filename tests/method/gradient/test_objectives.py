"""The objectives against numbers and gradients worked out by hand, and against each other in their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from zerounlearn.method.gradient import objectives

LOG_P = torch.tensor([math.log(0.5), math.log(0.01)], dtype=torch.float64)
LOG_R = torch.tensor([math.log(0.25), math.log(0.04)], dtype=torch.float64)
SIZES = torch.tensor([1.0, 2.0], dtype=torch.float64)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_(True)


def slope(loss, x: torch.Tensor) -> torch.Tensor:
    x = leaf(x)
    return torch.autograd.grad(loss(x), x)[0]


@st.composite
def log_probabilities(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of 5 answers under two models, and their sizes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    pair = -8 * torch.rand(2, 5, generator=generator, dtype=torch.float64)
    return pair[0], pair[1], torch.randint(1, 6, (5,), generator=generator).double()


def test_ascent_and_likelihood_by_hand() -> None:
    assert objectives.ascent(LOG_P).item() == pytest.approx(math.log(0.5 * 0.01) / 2)
    # -log 0.5 of one token, and -log 0.01 = 2 log 10 of two tokens.
    assert objectives.likelihood(LOG_P, SIZES).item() == pytest.approx((math.log(2) + math.log(10)) / 2)
    assert_close(slope(objectives.ascent, LOG_P), torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_divergence_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64)
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)) / 2
    assert objectives.divergence(p.log() + 3, q.log() - 1).item() == pytest.approx(expected), "logits have no zero"
    assert slope(lambda x: objectives.divergence(x, q.log()), q.log()).abs().max() < 1e-15


def test_npo_by_hand() -> None:
    # With β = 1, 2 log(1 + π/π_ref): ratios 2 and 1/4.
    assert objectives.npo(LOG_P, LOG_R, 1.0).item() == pytest.approx(math.log(3) + math.log(1.25))
    assert objectives.npo(LOG_P, LOG_R, 2.0).item() == pytest.approx((math.log(5) + math.log(1 + 1 / 16)) / 2)
    assert objectives.npo(LOG_R, LOG_R, 0.5).item() == pytest.approx(4 * math.log(2))


@given(log_probabilities(), st.sampled_from([0.05, 0.1, 1.0, 3.0]))
def test_npos_gradient_is_ascents_with_the_published_weight(drawn, beta: float) -> None:
    log_p, log_r, _ = drawn
    weight = 2 * log_p.exp() ** beta / (log_p.exp() ** beta + log_r.exp() ** beta)
    actual = slope(lambda x: objectives.npo(x, log_r, beta), log_p)
    assert_close(actual, weight * slope(objectives.ascent, log_p))
    assert objectives.npo(log_p, log_r, beta) > 0


@given(log_probabilities())
def test_npo_becomes_ascent_for_small_beta(drawn) -> None:
    log_p, log_r, _ = drawn
    gaps = [
        (slope(lambda x, beta=beta: objectives.npo(x, log_r, beta), log_p) - 1 / 5).abs().max().item()
        for beta in (1e-1, 1e-3, 1e-5)
    ]
    assert gaps[2] < 1e-5
    assert gaps[2] < gaps[1] < gaps[0]
    difference = objectives.npo(log_p, log_r, 1e-7) - 2 / 1e-7 * math.log(2)  # NPO's constant
    assert difference.item() == pytest.approx((log_p - log_r).mean().item(), abs=1e-5)


def test_simnpo_by_hand() -> None:
    # With β = 1, 2 log(1 + π^(1/|y|) e^γ): 0.5 of one token, 0.1 a token of two.
    assert objectives.simnpo(LOG_P, SIZES, 1.0).item() == pytest.approx(math.log(1.5) + math.log(1.1))
    with_margin = objectives.simnpo(LOG_P, SIZES, 1.0, math.log(2))
    assert with_margin.item() == pytest.approx(math.log(2) + math.log(1.2))


@given(log_probabilities(), st.sampled_from([0.1, 1.0, 2.5]), st.sampled_from([0.0, 0.7]))
def test_simnpos_gradient_has_the_published_weight(drawn, beta: float, gamma: float) -> None:
    log_p, _, sizes = drawn
    pull = log_p.exp() ** (beta / sizes) * math.exp(gamma)
    actual = slope(lambda x: objectives.simnpo(x, sizes, beta, gamma), log_p)
    assert_close(actual, 2 * pull / (1 + pull) / sizes / 5)


@given(log_probabilities())
def test_simnpo_becomes_ascent_per_token_for_small_beta(drawn) -> None:
    log_p, _, sizes = drawn
    actual = slope(lambda x: objectives.simnpo(x, sizes, 1e-7), log_p)
    assert_close(actual, -slope(lambda x: objectives.likelihood(x, sizes), log_p), atol=1e-6, rtol=0)


@given(log_probabilities(), st.sampled_from([0.1, 1.0]))
def test_dpo_is_log_2_at_the_start_and_pulls_both_ways(drawn, beta: float) -> None:
    wanted, unwanted, _ = drawn
    assert objectives.dpo(wanted, wanted, unwanted, unwanted, beta).item() == pytest.approx(math.log(2))
    up = slope(lambda x: objectives.dpo(x, wanted, unwanted, unwanted, beta), wanted)
    down = slope(lambda x: objectives.dpo(wanted, wanted, x, unwanted, beta), unwanted)
    assert_close(up, torch.full_like(up, -beta / 2 / 5))
    assert_close(down, -up)


def test_dpo_by_hand() -> None:
    # Twice as likely what is wanted, a quarter what is not: σ(log 8) = 8/9.
    ones = torch.zeros(1, dtype=torch.float64)
    args = (ones + math.log(0.2), ones + math.log(0.1), ones + math.log(0.2), ones + math.log(0.8))
    assert objectives.dpo(*args, 1.0).item() == pytest.approx(math.log(9 / 8))
    assert objectives.dpo(*args, 2.0).item() == pytest.approx(math.log(65 / 64))


def test_misdirection_by_hand_and_where_it_rests() -> None:
    hidden = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert objectives.misdirection(hidden, target).item() == (9 + 9) / 2
    assert objectives.misdirection(hidden, hidden).item() == 0
    assert_close(slope(lambda x: objectives.misdirection(x, target), hidden), hidden - target)
    there = target.expand(2, 2)
    assert not slope(lambda x: objectives.misdirection(x, target), there).any()


def test_the_random_direction_is_a_unit_vector_of_its_seed() -> None:
    state = torch.get_rng_state()
    u, again, other = (
        objectives.random_direction(64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.linalg.vector_norm(u).item() == pytest.approx(1)
    assert (u >= 0).all(), "entries are drawn from [0, 1), as published"
    assert torch.equal(u, again)
    assert not torch.equal(u, other)
    assert torch.equal(torch.get_rng_state(), state)
