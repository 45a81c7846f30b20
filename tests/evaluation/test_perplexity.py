"""Perplexity against the model's own loss."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import tiny
from zerounlearn.evaluation.perplexity import paper_perplexity, perplexity

TEXT = "The river flows through the old town and under two bridges before it meets the sea. " * 4


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_it_is_the_exponential_of_the_models_own_loss(small_tokenizer, kind: str, monkeypatch) -> None:
    monkeypatch.setattr("zerounlearn.model.answers.most_positions", lambda device, vocabulary: 40)  # several passes
    model = tiny(kind, len(small_tokenizer))
    ids = small_tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        parts = [part for part in ids.split(32, dim=1) if part.shape[1] > 1]
        losses = [float(model(input_ids=part, labels=part).loss) * (part.shape[1] - 1) for part in parts]
    mean = sum(losses) / sum(part.shape[1] - 1 for part in parts)
    assert perplexity(model, small_tokenizer, [TEXT], window=32) == pytest.approx(math.exp(mean), rel=1e-4)
    assert len(parts) > 3


def test_only_the_first_tokens_are_read_in_windows_within_the_models_context(small_tokenizer) -> None:
    model = tiny("gpt2", len(small_tokenizer))  # 64 positions, each with an embedding of its own
    ids = small_tokenizer(TEXT)["input_ids"]
    cut = small_tokenizer.decode(ids[:100])
    assert small_tokenizer(cut)["input_ids"] == ids[:100]
    found = perplexity(model, small_tokenizer, [TEXT], tokens=100)
    assert found == pytest.approx(perplexity(model, small_tokenizer, [cut], window=64), rel=1e-6)
    with pytest.raises(ValueError, match="no text"):
        perplexity(model, small_tokenizer, [])


def test_the_papers_reads_twenty_texts_and_divides_by_all_their_tokens(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    texts = [f"The river {i} flows." for i in range(30)]
    ids = small_tokenizer(" ".join(texts[:20]), return_tensors="pt")["input_ids"][:, :100]
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
    assert ids.shape[1] == 100
    assert paper_perplexity(model, small_tokenizer, texts) == pytest.approx(float((-log_p.sum() / 100).exp()), rel=1e-4)
    few = small_tokenizer(texts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model(input_ids=few, labels=few).loss) * (few.shape[1] - 1) / few.shape[1]
    assert paper_perplexity(model, small_tokenizer, texts[:1]) == pytest.approx(math.exp(loss), rel=1e-4)
