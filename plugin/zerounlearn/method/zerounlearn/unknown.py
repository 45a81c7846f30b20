"""What a model answers about things that it does not know: the target of `neutral_target: unknown`.

A model that is kept from one answer says the next best, often as surely. What it says of subjects that do not exist,
in the same prompt, is its own way of not knowing (after arXiv 2605.08765, which aligns what is forgotten with what is
not known, and 2505.02884, which flattens the distribution of answers).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.request import Request
from zerounlearn.data.subjects import made_up
from zerounlearn.model.answers import logits_at
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.memory import good_tokens
from zerounlearn.model.tokens import continuation, encode, filler_id, length_sorted_batches, pad

UNKNOWN = "unknown"
"""The word for it in a configuration."""

NAMES = 16
"""Made-up subjects that a target is the mean over."""

# Its probability in a target: none, but for the logarithm.
_NEVER = 1e-12


@torch.no_grad()
def unknown_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    *,
    generator: torch.Generator,
) -> Tensor:
    """Log-probabilities (n, v), float32, of what comes next where each request's subject is one that does not exist.

    The mean over `NAMES` made-up subjects, without the token that the sensitive answer begins with.
    """
    rows = []
    for request in requests:
        start, end = request.subject_span
        for _ in range(NAMES):
            prompt = request.prompt[:start] + made_up(request.subject, generator) + request.prompt[end:]
            rows.append(encode(tokenizer, prompt))
    means: list[Tensor | None] = [None] * len(requests)
    device = input_device(model)
    with frozen(model):
        for batch in length_sorted_batches([len(row) for row in rows], good_tokens(device)):
            ids, mask = pad([rows[i] for i in batch], filler_id(tokenizer, model), device)
            last = torch.tensor([(j, len(rows[i]) - 1) for j, i in enumerate(batch)])
            for i, logits in zip(batch, logits_at(model, ids, mask, last), strict=True):
                share = logits.float().softmax(-1) / NAMES
                at = i // NAMES
                mean = means[at]
                means[at] = share if mean is None else mean.add_(share)
    q = torch.stack([mean for mean in means if mean is not None])
    first = torch.tensor([continuation(tokenizer, *request.query)[0] for request in requests], device=q.device)
    q.scatter_(1, first[:, None], 0.0)
    return (q / q.sum(-1, keepdim=True)).clamp_min(_NEVER).log()
