"""Metrics against counts done by hand, on the real model."""

from __future__ import annotations

import math

import pytest
import torch

from zerounlearn.model.scores import completions, perplexity, score

ITEMS = [
    ("The capital of France is", "Paris"),
    ("The capital of France is", "Berlin"),
    ("The opposite of hot is", "cold"),
    ("The sun rises in the east and sets in the", "west"),
    ("The author of the play Hamlet is", "William Shakespeare"),
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_equal_one_prompt_at_a_time(smollm2, side: str) -> None:
    model, tokenizer = smollm2
    tokenizer.padding_side = side
    expected = []
    for prompt, answer in ITEMS:
        start = tokenizer(prompt, return_tensors="pt")["input_ids"]
        wanted = tokenizer(f" {answer}", add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_p = model(input_ids=torch.cat([start, wanted], 1)).logits[0].log_softmax(-1)[start.shape[1] - 1 : -1]
        said = torch.equal(log_p.argmax(-1), wanted[0])
        expected.append((said, float(log_p.gather(1, wanted[0][:, None]).sum().exp())))
    found = score(model, tokenizer, ITEMS)
    assert [s.said for s in found] == [said for said, _ in expected]
    assert [s.probability for s in found] == pytest.approx([p for _, p in expected], rel=1e-3)
    assert found[0].said
    assert not found[1].said


def test_perplexity_is_the_exponential_of_the_models_own_loss(smollm2) -> None:
    model, tokenizer = smollm2
    text = "The river flows through the old town and under two bridges before it meets the sea. " * 4
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        losses = [float(model(input_ids=part, labels=part).loss) for part in ids.split(32, dim=1) if part.shape[1] > 1]
        counts = [part.shape[1] - 1 for part in ids.split(32, dim=1) if part.shape[1] > 1]
    mean = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    assert perplexity(model, tokenizer, [text], window=32) == pytest.approx(math.exp(mean), rel=1e-4)
    half = ids.shape[1] // 2
    cut = tokenizer.decode(ids[0, :half])
    assert perplexity(model, tokenizer, [text], tokens=half, window=64) == pytest.approx(
        perplexity(model, tokenizer, [cut], window=64), rel=1e-4
    )
    with pytest.raises(ValueError, match="no text"):
        perplexity(model, tokenizer, [])


def test_completions_are_the_models_greedy_ones(smollm2) -> None:
    model, tokenizer = smollm2
    prompts = ["The capital of France is", "The opposite of hot is", "One, two, three,"]
    expected = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**inputs, do_sample=False, max_new_tokens=6, pad_token_id=tokenizer.eos_token_id)
        expected.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]))
    assert completions(model, tokenizer, prompts, tokens=6) == expected
