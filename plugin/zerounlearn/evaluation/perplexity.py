"""Perplexity on ordinary text: whether a model still writes as it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.model.answers import id_tokens
from zerounlearn.model.tokens import encode

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

PAPER_TEXTS, PAPER_TOKENS = 20, 100
"""What the published code reads: so many tokens of so many texts, joined by spaces."""


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
    rows = windows(model, tokenizer, texts, tokens=tokens, window=window)
    if not rows:
        raise ValueError("perplexity of no text: give at least two tokens of held-out text")
    log_p = torch.cat([row.log_p for row in id_tokens(model, tokenizer, rows)]).double()
    return float((-log_p.mean()).exp())


def windows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int, window: int
) -> list[list[int]]:
    """Ids of the first `tokens` tokens of texts, in rows of at most `window` and of the model's context, two at least.

    Texts follow each other without a mark between them; none is read that is not needed.
    """
    window = min(window, getattr(model.config.get_text_config(), "max_position_embeddings", None) or window)
    stream: list[int] = []
    for text in texts:
        stream += encode(tokenizer, text)
        if len(stream) >= tokens:
            break
    stream = stream[:tokens]
    return [row for i in range(0, len(stream), window) if len(row := stream[i : i + window]) > 1]


def paper_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Perplexity as the published code takes it, comparable with the paper's tables on the same texts alone.

    The first 20 texts, joined by spaces, are cut to 100 tokens, special tokens included; the exponent is the sum of
    the NLLs of all but the first over the number of tokens with the first (arXiv 2605.18879, `util/perplexity.py` of
    its code, which reads the Wikipedia dump that C is taken on).

    Raises:
        ValueError: there are fewer than two tokens.
    """
    row = encode(tokenizer, " ".join(texts[:PAPER_TEXTS]))[:PAPER_TOKENS]
    if len(row) < 2:
        raise ValueError("perplexity of no text: give at least two tokens of it")
    [tokens] = id_tokens(model, tokenizer, [row])
    return float((-tokens.log_p.double().sum() / len(row)).exp())


@metric("ppl", label="PPL", goal=Goal.LOWER, group=Group.CORE, always=True)
def _held_out(asked: Asked) -> float | None:
    """Perplexity on held-out ordinary text."""
    texts = asked.settings.held_out
    if not texts:
        return None
    return perplexity(asked.model, asked.tokenizer, texts, tokens=asked.settings.held_out_tokens)


@metric("ppl_paper", label="PPL (paper)", goal=Goal.LOWER, group=Group.CORE, always=True, source="arXiv 2605.18879")
def _paper(asked: Asked) -> float | None:
    """Perplexity on the 100 tokens that the published code reads, as it counts them."""
    texts = asked.settings.paper_text
    return paper_perplexity(asked.model, asked.tokenizer, texts) if texts else None
