"""Greedy text, and TOFU's numbers from both passes."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GenerationConfig

from tests.helpers import tiny
from zerounlearn.data.entry import Question
from zerounlearn.evaluation.rouge import rouge_l_recall
from zerounlearn.evaluation.tofu import ask
from zerounlearn.model.answers import score
from zerounlearn.model.generate import generate

PROMPTS = ["The capital of France is", "War and Peace was written by Leo", "You", "Because I said so. The weather"]


def plain(model, tokenizer, prompt: str, tokens: int) -> list[int]:
    """Greedy token ids by one forward pass a token, without a cache."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return ids[start:]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_the_greedy_one_of_each_prompt_alone(small_tokenizer, kind: str, side: str) -> None:
    model = tiny(kind, len(small_tokenizer))
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2)
    model.generation_config = own
    was, small_tokenizer.padding_side = small_tokenizer.padding_side, side
    states = torch.get_rng_state()
    try:
        found = generate(model, small_tokenizer, PROMPTS, tokens=9, batch_tokens=45)
    finally:
        small_tokenizer.padding_side = was
    assert found == [small_tokenizer.decode(plain(model, small_tokenizer, prompt, 9)) for prompt in PROMPTS]
    assert len(set(found)) > 1
    assert model.generation_config is own
    assert torch.equal(torch.get_rng_state(), states)


def test_text_ends_at_an_end_token(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    ids, others = (plain(model, small_tokenizer, prompt, 9) for prompt in PROMPTS[:2])
    end = ids[2]
    assert end not in ids[:2] and end not in others
    model.generation_config = GenerationConfig(eos_token_id=[end])
    expected = [small_tokenizer.decode(row) for row in (ids[:2], others)]
    assert generate(model, small_tokenizer, PROMPTS[:2], tokens=9) == expected


def test_the_end_token_is_shown_on_demand(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    ids = plain(model, small_tokenizer, PROMPTS[0], 9)
    model.generation_config = GenerationConfig(eos_token_id=[ids[2]])
    assert generate(model, small_tokenizer, PROMPTS[:1], tokens=9, special=True) == [small_tokenizer.decode(ids[:3])]
    assert generate(model, small_tokenizer, PROMPTS[:1], tokens=2, special=True) == [small_tokenizer.decode(ids[:2])]


def test_tofus_numbers_are_those_of_separate_passes(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    questions = [
        Question("The capital of France is", "Paris and the", "the Paris", ("Berlin", "Lisbon, as")),
        Question("War and Peace was written by", "Leo Tolstoy", "Tolstoy", ("Paris",)),
    ]

    def normalised(prompt: str, text: str) -> float:
        joint = score(model, small_tokenizer, [(prompt, text)])[0].probability
        return math.exp(math.log(joint) / len(small_tokenizer(f" {text}")["input_ids"]))

    plainly, among = (ask(model, small_tokenizer, questions, options=o, tokens=8) for o in (False, True))
    for q, a, b in zip(questions, plainly, among, strict=True):
        p, wrong = normalised(q.prompt, q.answer), [normalised(q.prompt, w) for w in q.perturbed]
        assert a.probability == pytest.approx(p, rel=1e-4)
        assert b.probability == pytest.approx(p / (p + sum(wrong)), rel=1e-4)
        ratio = sum(wrong) / len(wrong) / normalised(q.prompt, q.paraphrased)
        assert a.truth_ratio == pytest.approx(ratio, rel=1e-4)
        said = small_tokenizer.decode(plain(model, small_tokenizer, q.prompt, 8))
        assert a.rouge == rouge_l_recall([said], [q.answer])[0]
