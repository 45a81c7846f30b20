"""leak@k: exact where it is computed, unbiased where it is drawn, and the same with the same seed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.sampling import leak, leak_of_draws, samples, sampling
from zerounlearn.audit.pair import Pair
from zerounlearn.model.generate import sample
from zerounlearn.model.hooks import frozen
from zerounlearn.model.tokens import encode


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.03, 0.5, 1.0])
def test_leak_is_the_chance_of_one_among_k(p: float) -> None:
    assert leak(p, 1) == pytest.approx(p, rel=1e-12)
    assert leak(p, 7) == pytest.approx(1 - (1 - p) ** 7, rel=1e-3)
    assert [leak(p, k) for k in (1, 2, 64)] == sorted(leak(p, k) for k in (1, 2, 64))


def test_a_tiny_chance_is_not_lost_in_rounding() -> None:
    assert leak(1e-18, 1000) == pytest.approx(1e-15)


def test_the_estimate_from_draws_is_unbiased() -> None:
    """Over all outcomes of 6 draws with p = 0.3, its mean is `leak`."""
    p, draws = 0.3, 6
    for k in range(1, draws + 1):
        mean = sum(
            math.comb(draws, c) * p**c * (1 - p) ** (draws - c) * leak_of_draws(c, draws, k) for c in range(draws + 1)
        )
        assert mean == pytest.approx(leak(p, k), rel=1e-12)


def test_what_is_improbable_once_is_found_when_asked_often(forgetful: Forgetful) -> None:
    target = forgetful.target()
    computed, drawn = sampling(target, k=(1, 100_000_000), draws=4)
    probabilities = [one.probability for one in target.scores([fact.request.query for fact in target.facts])]
    assert [one.found for one in computed.facts] == [leak(p, 1e8) >= 0.5 for p in probabilities]
    shares = [(point.facts, point.controls) for point in computed.curve]
    assert all(a <= b for low, high in pairwise(shares) for a, b in zip(low, high, strict=True))
    assert [point.x for point in drawn.curve] == [1, 2, 4]
    assert [point.facts for point in drawn.curve] == sorted(point.facts for point in drawn.curve)


def test_what_the_base_model_says_is_drawn_and_named(forgetful: Forgetful) -> None:
    with Pair.of(forgetful.model, forgetful.edit).as_base():
        computed, drawn = sampling(forgetful.target(), k=(1,), draws=8)
    assert computed.share == drawn.share == 1
    assert drawn.facts[0].how.startswith("Paris") and drawn.facts[0].score > 0.5


def test_the_seed_decides_what_is_drawn(forgetful: Forgetful) -> None:
    prompts = [fact.request.prompt for fact in forgetful.target().all]
    first, second, other = (samples(forgetful.target(seed=seed), prompts, 3) for seed in (0, 0, 1))
    assert first == second != other
    state = torch.random.get_rng_state()
    samples(forgetful.target(), prompts, 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_samples_follow_the_models_own_distribution(forgetful: Forgetful) -> None:
    """The share of 2,000 draws with each next token against its probability: five standard deviations at most."""
    row = encode(forgetful.tokenizer, "The capital of")
    with torch.no_grad():
        p = forgetful.model(input_ids=torch.tensor([row])).logits[0, -1].double().softmax(-1)
        with frozen(forgetful.model):
            drawn = sample(
                forgetful.model, forgetful.tokenizer, [row] * 2000, len(row) + 1,
                generator=torch.Generator().manual_seed(0), top_k=None,
            )  # fmt: skip
    seen = torch.bincount(torch.tensor([one[-1] for one in drawn]), minlength=len(p)) / 2000
    assert ((seen - p).abs() <= 5 * (p * (1 - p) / 2000).sqrt() + 1e-3).all()
