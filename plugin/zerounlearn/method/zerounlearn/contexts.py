"""Prefixes that a fact is to be forgotten behind, sampled from the model."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.generate import sample
from zerounlearn.model.tokens import encode

OPENINGS = ("The", "Therefore", "Because", "I", "You")


def sample_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    *,
    generator: torch.Generator,
) -> list[str]:
    """`count` prefixes of about `length` tokens, sampled from the opening words in turn."""
    if not count:
        return []
    rows = [encode(tokenizer, OPENINGS[i % len(OPENINGS)]) for i in range(count)]
    grown = sample(model, tokenizer, rows, length, generator=generator)
    texts = (str(tokenizer.decode(row, skip_special_tokens=True)) for row in grown)
    return [" ".join(text.split()) + ". " for text in texts]
