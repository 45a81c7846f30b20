"""The one teacher-forced pass: what a model gives each token of a text, and whether it says an answer.

The pass goes through the model itself, so that whatever it does to its logits (soft-capping, scaling) is in them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.errors import RequestError
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.memory import good_positions, good_tokens, most_positions
from zerounlearn.model.tokens import (
    Queries,
    Query,
    check_ids,
    continuation,
    decided_joint,
    encode,
    filler_id,
    length_sorted_batches,
    pad,
)


@dataclass(frozen=True)
class AnswerTokens:
    """What a model gives each of the `t` tokens of a text, given those before it; all on the CPU.

    Attributes:
        ids: token ids, t.
        log_p: natural log-probabilities (t,), float32.
        hit: whether each token is the arg-max (t,), bool.
        mean: expectation of the log-probability under the model's own distribution (t,), or None; for min-k %++.
        sd: its standard deviation (t,), or None.
    """

    ids: tuple[int, ...]
    log_p: Tensor
    hit: Tensor
    mean: Tensor | None = None
    sd: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """One prompt and answer: whether every answer token is the arg-max, and the answer's probability."""

    said: bool
    probability: float

    @classmethod
    def of(cls, tokens: AnswerTokens) -> Score:
        """Of an answer's tokens."""
        return cls(bool(tokens.hit.all()), math.exp(float(tokens.log_p.double().sum())))


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Queries) -> list[Score]:
    """Teacher-forced scores of prompts with their answers, in their order.

    `said` is EasyEdit's accuracy of a rewrite at 1 (`compute_edit_quality`), without its slices that depend on the
    padding side.

    Raises:
        RequestError: see `answer_tokens`.
    """
    return [Score.of(tokens) for tokens in answer_tokens(model, tokenizer, items)]


def answer_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Queries,
    *,
    moments: bool = False,
    end: bool = False,
    batch_tokens: int | None = None,
) -> list[AnswerTokens]:
    """Teacher-forced tokens of the answers of (prompt, answer) pairs, in their order.

    Args:
        model: any causal language model, left as it was.
        tokenizer: its tokenizer.
        items: the pairs; see `Query` for what stands between prompt and answer.
        moments: give `mean` and `sd` too.
        end: count the end-of-text token as the answer's last, as TOFU's own evaluation does.
        batch_tokens: padded tokens in a batch; by default what suits the device.

    Raises:
        RequestError: a prompt or an answer has no tokens, or `end` is asked of a tokenizer without an end token.
    """
    prompts, answers = [], []
    for query in itertools.starmap(Query, items):
        before = encode(tokenizer, query.prompt)
        target = continuation(tokenizer, *query) if query.answer.strip() else []
        if not before or not target:
            raise RequestError(f"the {'answer' if before else 'prompt'} of {query[:2]!r} has no tokens")
        if end:
            if tokenizer.eos_token_id is None:
                raise RequestError("end=True: this tokenizer has no end-of-text token")
            target = [*target, int(tokenizer.eos_token_id)]
        prompts.append(before)
        answers.append(target)
    return _tokens(model, tokenizer, prompts, answers, moments, batch_tokens)


_joints: WeakKeyDictionary[PreTrainedModel, dict[Query, str]] = WeakKeyDictionary()
"""What models were found to write between prompt and answer, where the text leaves a doubt."""


def resolve_joints(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Queries) -> list[Query]:
    """The queries, each with what stands between its prompt and its answer, in their order.

    Where the text leaves a doubt (a colon before a word, one script before another), it is what the model would write
    itself: of nothing and one space, the one under which the whole answer is the more probable. What a model has
    been found to write is kept for as long as the model lives, so that it is measured by the same after an edit as
    before, if it was asked before.

    Raises:
        RequestError: see `answer_tokens`.
    """
    resolved = [
        q._replace(joint=decided_joint(q.prompt, q.answer) if q.joint is None else q.joint)
        for q in itertools.starmap(Query, queries)
    ]
    known = _joints.setdefault(model, {})
    doubtful = [query for query in dict.fromkeys(resolved) if query.joint is None and query not in known]
    candidates = [query._replace(joint=joint) for query in doubtful for joint in ("", " ")]
    log_ps = [float(tokens.log_p.sum()) for tokens in answer_tokens(model, tokenizer, candidates)]
    for query, closed, spaced in zip(doubtful, log_ps[::2], log_ps[1::2], strict=True):
        known[query] = "" if closed > spaced else " "
    return [query._replace(joint=known[query]) if query.joint is None else query for query in resolved]


def text_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    moments: bool = True,
    batch_tokens: int | None = None,
) -> list[AnswerTokens]:
    """Tokens of whole texts but the first, which nothing predicts; for membership inference.

    Raises:
        RequestError: a text has fewer than two tokens.
    """
    rows = [encode(tokenizer, text) for text in texts]
    for row, text in zip(rows, texts, strict=True):
        if len(row) < 2:
            raise RequestError(
                f"the text {text!r} has {len(row)} tokens: expected at least two, one to predict the other"
            )
    return id_tokens(model, tokenizer, rows, moments=moments, batch_tokens=batch_tokens)


def id_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    moments: bool = False,
    batch_tokens: int | None = None,
) -> list[AnswerTokens]:
    """Tokens of rows of ids, of two each at least, but the first of each, which nothing predicts."""
    return _tokens(model, tokenizer, [r[:1] for r in rows], [r[1:] for r in rows], moments, batch_tokens)


@torch.no_grad()
def _tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    moments: bool,
    batch_tokens: int | None,
) -> list[AnswerTokens]:
    check_ids(model, [p + a for p, a in zip(prompts, answers, strict=True)])
    rows = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
    found: dict[int, AnswerTokens] = {}
    batch_tokens = batch_tokens or good_tokens(input_device(model))
    with frozen(model):
        most = most_positions(input_device(model), model.config.get_text_config().vocab_size)
        for batch in _few_positions(length_sorted_batches([len(row) for row in rows], batch_tokens), answers, most):
            at = [(j, len(prompts[i]) - 1 + k) for j, i in enumerate(batch) for k in range(len(answers[i]))]
            ids, mask = pad([rows[i] for i in batch], filler_id(tokenizer, model), input_device(model))
            logits = logits_at(model, ids, mask, torch.tensor(at))
            wanted = torch.tensor([t for i in batch for t in answers[i]], device=logits.device)
            columns = _reduce(logits, wanted, moments)
            sizes = [len(answers[i]) for i in batch]
            for i, parts in zip(batch, zip(*(c.split(sizes) for c in columns), strict=True), strict=True):
                found[i] = AnswerTokens(tuple(answers[i]), *parts)
    return [found[i] for i in range(len(rows))]


def _few_positions(batches: Sequence[list[int]], answers: Sequence[list[int]], most: int) -> Iterator[list[int]]:
    """The batches, cut where they would need logits at more than `most` positions."""
    for batch in batches:
        part: list[int] = []
        for i in batch:
            if part and sum(len(answers[j]) for j in part) + len(answers[i]) > most:
                yield part
                part = []
            part.append(i)
        yield part


def logits_at(model: PreTrainedModel, ids: Tensor, mask: Tensor, at: Tensor) -> Tensor:
    """Logits (k, v) at k places (row, position), in the model's dtype and with its gradients where they are on.

    The head is given the hidden states of those places alone; what the model does to its logits afterwards
    (soft-capping, scaling) is left to the model, which does it element by element.

    Args:
        model: any causal language model.
        ids: right-padded token ids (n, t), int64.
        mask: 1 where there is a token (n, t).
        at: rows and positions (k, 2), int64.
    """
    head = model.get_output_embeddings()

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        row, position = at.to(args[0].device).T
        return (args[0][row, position][None], *args[1:])

    with head.register_forward_pre_hook(select):
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[0]


def _reduce(logits: Tensor, wanted: Tensor, moments: bool) -> list[Tensor]:
    """Columns of `AnswerTokens` from logits (k, v) and token ids (k,), a few positions at a time."""
    pieces = []
    size = good_positions(logits.device, logits.shape[1])
    for part, ids in zip(logits.split(size), wanted.split(size), strict=True):
        log_p = part.float().log_softmax(-1)
        columns = [log_p.gather(-1, ids[:, None])[:, 0], log_p.argmax(-1) == ids]
        if moments:
            p = log_p.exp()
            mean = (p * log_p).nansum(-1)  # 0 · -inf is 0: a token ruled out adds nothing
            columns += [mean, (p * (log_p - mean[:, None]).square()).nansum(-1).sqrt()]
        pieces.append([column.cpu() for column in columns])
    return [torch.cat(column) for column in zip(*pieces, strict=True)]
