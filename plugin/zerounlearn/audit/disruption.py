"""How far an edit moved a model on ordinary text: what methods are held equal in before they are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.audit.pair import Pair, between
from zerounlearn.errors import AuditError
from zerounlearn.evaluation.perplexity import windows
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.weights import weight_of, with_weights

_WINDOW = 256
_SEARCH_TOKENS = 512  # whose log-probabilities are kept while a factor is looked for
_HALVINGS = 9
_MOST = 16.0
"""How far a change may be stretched."""
_LEAST = 2.0**-20


@torch.no_grad()
def disruption(pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int = 2048) -> float:
    """Mean KL(base ‖ edited) of what comes next, in nats a token, over the first `tokens` tokens of `texts`.

    Each window of 256 tokens is read from its start. Two models are compared at equal disruption, as arXiv 2606.17168
    does.

    Raises:
        ValueError: there is no text.
    """
    total, count = 0.0, 0
    for row in _windows(pair, tokenizer, texts, tokens):
        edited = _log_p(pair, row)
        with pair.as_base():
            base = _log_p(pair, row)
        total, count = total + _kl(base, edited), count + len(base)
    return total / count


@contextmanager
def at_disruption(pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], goal: float) -> Iterator[float]:
    """The edited model with its whole change scaled until `disruption` is `goal`, inside; as it was, outside.

    A method that stops short of a budget is stretched, one that went beyond it is shrunk, so that all are compared at
    one harm. The factor is found by halving an interval on the first 512 tokens, to 1 part in 1,000.

    Raises:
        AuditError: sixteen times the change does not reach it.
    """
    edited = {name: weight_of(pair.model, name).clone() for name in pair.original}
    rows = _windows(pair, tokenizer, texts, _SEARCH_TOKENS)
    with pair.as_base(), torch.no_grad():
        base = [_log_p(pair, row) for row in rows]

    @torch.no_grad()
    def reaches(factor: float) -> bool:
        with with_weights(pair.model, between(edited, pair.original, 1 - factor)):
            found = sum(_kl(old, _log_p(pair, row)) for old, row in zip(base, rows, strict=True))
        return found >= goal * sum(map(len, base))

    high = 1.0
    while not reaches(high):
        high *= 2
        if high > _MOST:
            raise AuditError(f"disruption={goal}: {_MOST:g} times the edit's change is still nearer to the base model")
    while high > _LEAST and reaches(high / 2):
        high /= 2
    low = high / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    del base
    with with_weights(pair.model, between(edited, pair.original, 1 - high)):
        yield high


def _windows(pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int) -> list[Tensor]:
    """Token ids (1, t) of each window."""
    rows = windows(pair.model, tokenizer, texts, tokens=tokens, window=_WINDOW)
    if not rows:
        raise ValueError("disruption on no text: give at least two tokens")
    return [torch.tensor([row], device=input_device(pair.model)) for row in rows]


def _log_p(pair: Pair, ids: Tensor) -> Tensor:
    """Log-probabilities (t, v), float32, of what follows each token."""
    with frozen(pair.model):
        logits: Tensor = pair.model(input_ids=ids, use_cache=False).logits
    return logits[0].float().log_softmax(-1)


def _kl(base: Tensor, edited: Tensor) -> float:
    """Sum over the tokens, nats."""
    return float((base.exp() * (base - edited)).nansum(-1).double().sum())  # 0 · -inf is 0
