"""Greedy text, against one forward pass a token."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from tests.helpers import greedy, tiny
from zerounlearn.model.generate import generate

PROMPTS = ["The capital of France is", "War and Peace was written by Leo", "You", "Because I said so. The weather"]


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
    assert found == [small_tokenizer.decode(greedy(model, small_tokenizer, prompt, 9)) for prompt in PROMPTS]
    assert len(set(found)) > 1
    assert model.generation_config is own
    assert torch.equal(torch.get_rng_state(), states)


def test_text_ends_at_an_end_token(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    ids, others = (greedy(model, small_tokenizer, prompt, 9) for prompt in PROMPTS[:2])
    end = ids[2]
    assert end not in ids[:2] and end not in others
    model.generation_config = GenerationConfig(eos_token_id=[end])
    expected = [small_tokenizer.decode(row) for row in (ids[:2], others)]
    assert generate(model, small_tokenizer, PROMPTS[:2], tokens=9) == expected


def test_the_end_token_is_shown_on_demand(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    ids = greedy(model, small_tokenizer, PROMPTS[0], 9)
    model.generation_config = GenerationConfig(eos_token_id=[ids[2]])
    assert generate(model, small_tokenizer, PROMPTS[:1], tokens=9, special=True) == [small_tokenizer.decode(ids[:3])]
    assert generate(model, small_tokenizer, PROMPTS[:1], tokens=2, special=True) == [small_tokenizer.decode(ids[:2])]
