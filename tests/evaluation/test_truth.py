"""Truth ratio, forget quality and model utility, against numbers worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import greedy, tiny
from zerounlearn.data.entry import Question
from zerounlearn.evaluation.asked import Asked, Settings
from zerounlearn.evaluation.probes import Probes
from zerounlearn.evaluation.rouge import rouge_l_recall
from zerounlearn.evaluation.truth import (
    answered,
    forget_quality,
    model_utility,
    truth_ratio,
    truth_ratio_forgotten,
    truth_ratio_known,
)
from zerounlearn.model.answers import score

LOG_PS = st.lists(st.floats(-8, -0.01), min_size=1, max_size=5).map(lambda v: torch.tensor(v, dtype=torch.float64))
RATIOS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


def test_truth_ratio_by_hand() -> None:
    # normalised: true 1/4; false 1/2 and (1/4 · 1/16)^(1/2) = 1/8
    true = torch.tensor([0.25, 0.25]).log()
    false = [torch.tensor([0.5]).log(), torch.tensor([0.25, 0.0625]).log()]
    # (1/2 + 1/8)/2 / (1/4) = 5/4, and (1/2 · 1/8)^(1/2) / (1/4) = 1
    assert truth_ratio(true, false) == pytest.approx(5 / 4)
    assert truth_ratio(true, false, mean="geometric") == pytest.approx(1)


@given(LOG_PS, st.lists(LOG_PS, min_size=1, max_size=4), st.integers(1, 3), st.floats(-3, 0))
def test_truth_ratio_does_not_mind_order_length_or_a_common_factor(true, false, times: int, shift: float) -> None:
    for mean in ("arithmetic", "geometric"):
        ratio = truth_ratio(true, false, mean=mean)
        assert truth_ratio(true, false[::-1], mean=mean) == pytest.approx(ratio)
        assert truth_ratio(true.repeat(times), [f.repeat(times) for f in false], mean=mean) == pytest.approx(ratio)
        assert truth_ratio(true + shift, [f + shift for f in false], mean=mean) == pytest.approx(ratio)
    assert truth_ratio(true, false) >= truth_ratio(true, false, mean="geometric") * (1 - 1e-12)
    assert truth_ratio(true, [true]) == pytest.approx(1)


def test_truth_ratio_of_a_broken_model_is_large_and_not_an_error() -> None:
    ratio = truth_ratio(torch.tensor([-1e6]), [torch.tensor([-1.0])])
    assert math.isfinite(ratio) and ratio > 1e300
    assert truth_ratio(torch.tensor([-1.0]), [torch.tensor([-1e6])]) == 0


def test_truth_ratio_needs_a_false_answer_and_a_known_mean() -> None:
    with pytest.raises(ValueError, match="at least one perturbed answer"):
        truth_ratio(torch.zeros(1), [])
    with pytest.raises(ValueError, match="mean='median'"):
        truth_ratio(torch.zeros(1), [torch.zeros(1)], mean="median")


def test_truth_ratios_means() -> None:
    # (1 - 1/2 + 0)/2 and (1/2 + 1/2)/2
    assert truth_ratio_known([0.5, 2.0]) == pytest.approx(1 / 4)
    assert truth_ratio_forgotten([0.5, 2.0]) == pytest.approx(1 / 2)
    assert truth_ratio_forgotten([0.0, 1.0]) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="1 of them NaN"):
        truth_ratio_known([0.5, float("nan")])
    with pytest.raises(ValueError, match="0 truth ratios"):
        truth_ratio_forgotten([])


@given(RATIOS)
def test_the_forgotten_mean_takes_a_ratio_and_its_inverse_alike(ratios: list[float]) -> None:
    assert truth_ratio_forgotten(ratios) == pytest.approx(truth_ratio_forgotten([1 / r for r in ratios]))
    assert 0 <= truth_ratio_known(ratios) <= 1


def test_forget_quality_by_hand() -> None:
    # all of one sample below all of the other: distance 1, in 2 of the C(6, 3) = 20 orders
    apart = forget_quality([1, 2, 3], [4, 5, 6])
    assert (apart.statistic, apart.p_value) == (1, pytest.approx(2 / 20))
    same = forget_quality([1, 2, 3], [3, 1, 2])
    assert (same.statistic, same.p_value) == (0, pytest.approx(1))


def test_forget_quality_sees_ranks_only() -> None:
    a, b = [0.1, 0.4, 0.8, 1.5, 2.5], [0.3, 0.9, 1.1, 4.0]
    expected = forget_quality(a, b)
    for change in (lambda r: 1 / r, math.log):
        found = forget_quality([change(r) for r in a], [change(r) for r in b])
        assert found.p_value == pytest.approx(expected.p_value)
    assert forget_quality(b, a).p_value == pytest.approx(expected.p_value)


def test_model_utility_is_the_harmonic_mean() -> None:
    # 3 / (1 + 2 + 4)
    assert model_utility({"probability": 1, "rouge": 0.5, "truth ratio": 0.25}) == pytest.approx(3 / 7)
    assert model_utility({"a": 0.9, "b": 0.0}) == 0
    assert model_utility(dict.fromkeys("abcdefghi", 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize("numbers", [{}, {"rouge": 1.2}, {"rouge": float("nan")}])
def test_model_utility_names_what_is_no_share(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"rouge=.*from 0 to 1" if numbers else "at least one"):
        model_utility(numbers)


def test_tofus_numbers_are_those_of_separate_passes(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    questions = [
        Question("The capital of France is", "Paris and the", "the Paris", ("Berlin", "Lisbon, as")),
        Question("War and Peace was written by", "Leo Tolstoy", "Tolstoy", ("Paris",)),
    ]

    def normalised(prompt: str, text: str) -> float:
        joint = score(model, small_tokenizer, [(prompt, text)])[0].probability
        return math.exp(math.log(joint) / len(small_tokenizer(f" {text}")["input_ids"]))

    asked = Asked(model, small_tokenizer, Probes(()), settings=Settings(generation_tokens=8))
    plainly, among = (answered(asked, questions, options=o) for o in (False, True))
    for q, a, b in zip(questions, plainly, among, strict=True):
        p, wrong = normalised(q.prompt, q.answer), [normalised(q.prompt, w) for w in q.perturbed]
        assert a.probability == pytest.approx(p, rel=1e-4)
        assert b.probability == pytest.approx(p / (p + sum(wrong)), rel=1e-4)
        ratio = sum(wrong) / len(wrong) / normalised(q.prompt, q.paraphrased)
        assert a.truth_ratio == pytest.approx(ratio, rel=1e-4)
        said = small_tokenizer.decode(greedy(model, small_tokenizer, q.prompt, 8))
        assert a.rouge == rouge_l_recall([said], [q.answer])[0]
