"""How far an edit moved a model on ordinary text: what methods are held equal in before they are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from zerounlearn.audit.pair import Pair
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import encode

WINDOW = 256


@torch.no_grad()
def disruption(pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int = 2048) -> float:
    """Mean KL(base ‖ edited) of what comes next, in nats a token, over the first `tokens` tokens of `texts`.

    Each window of 256 tokens is read from its start. Two models are compared at equal disruption, as arXiv 2606.17168
    does.

    Raises:
        ValueError: there is no text.
    """
    stream: list[int] = []
    for text in texts:
        stream += encode(tokenizer, text)
        if len(stream) >= tokens:
            break
    rows = [row for i in range(0, min(tokens, len(stream)), WINDOW) if len(row := stream[i : i + WINDOW]) > 1]
    if not rows:
        raise ValueError("disruption on no text: give at least two tokens")
    total, count = 0.0, 0
    device = input_device(pair.model)
    with frozen(pair.model):
        for row in rows:
            ids = torch.tensor([row[:tokens]], device=device)
            edited = pair.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            with pair.as_base():
                base = pair.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            kl = (base.exp() * (base - edited)).nansum(-1)  # 0 · -inf is 0
            total, count = total + float(kl.double().sum()), count + len(kl)
    return total / count
