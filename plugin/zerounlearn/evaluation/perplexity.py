"""Perplexity on ordinary text: whether a model still writes as it did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.answers import id_tokens
from zerounlearn.model.tokens import encode


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    tokens: int = 4096,
    window: int = 512,
) -> float:
    """Exp of the mean NLL per token over the first `tokens` tokens of `texts`, in windows of their own.

    Each window is read from its start; its first token is not counted. A model of shorter context has windows of its
    context's length.

    Raises:
        ValueError: there are fewer than two tokens.
    """
    window = min(window, getattr(model.config.get_text_config(), "max_position_embeddings", None) or window)
    stream: list[int] = []
    for text in texts:
        stream += encode(tokenizer, text)
        if len(stream) >= tokens:
            break
    stream = stream[:tokens]
    rows = [row for i in range(0, len(stream), window) if len(row := stream[i : i + window]) > 1]
    if not rows:
        raise ValueError("perplexity of no text: give at least two tokens of held-out text")
    log_p = torch.cat([row.log_p for row in id_tokens(model, tokenizer, rows)]).double()
    return float((-log_p.mean()).exp())
