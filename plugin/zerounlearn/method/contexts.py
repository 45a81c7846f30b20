"""Contexts: the bare prompt, and prefixes sampled from the model."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import encode, filler_id, pad

OPENINGS = ("The", "Therefore", "Because", "I", "You")


@torch.no_grad()
def sample_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    *,
    generator: torch.Generator,
    top_k: int = 5,
) -> list[str]:
    """`count` prefixes of about `length` tokens, top-k sampled from the opening words in turn, all in one batch.

    The draw is made on the CPU in float32, so that a seed gives the same choice of ranks on every device.
    """
    if count == 0:
        return []
    rows = [encode(tokenizer, OPENINGS[i % len(OPENINGS)]) for i in range(count)]
    device = input_device(model)
    while True:
        short = [i for i, row in enumerate(rows) if len(row) < length]
        if not short:
            break
        ids, mask = pad([rows[i] for i in short], filler_id(tokenizer), device)
        hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = hidden[torch.arange(len(short), device=device), mask.sum(1) - 1].float().cpu()
        top = last.softmax(-1).topk(top_k)
        drawn = torch.multinomial(top.values, 1, generator=generator)
        for i, token in zip(short, top.indices.gather(1, drawn)[:, 0].tolist(), strict=True):
            rows[i].append(token)
    texts = (str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows)
    return [" ".join(text.split()) + ". " for text in texts]
