"""What a model says: teacher-forced answers, perplexity, greedy completions. All device-agnostic and batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.memory import good_positions, good_tokens
from zerounlearn.model.tokens import continuation, encode, filler_id, length_sorted_batches, pad


@dataclass(frozen=True)
class Score:
    """One prompt and answer: whether every answer token is the arg-max, and the answer's probability."""

    said: bool
    probability: float


@torch.no_grad()
def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[tuple[str, str]]) -> list[Score]:
    """Teacher-forced scores of (prompt, answer) pairs, in their order.

    The vocabulary projection runs at the answer's positions only.
    """
    prompts = [encode(tokenizer, prompt) for prompt, *_ in items]
    answers = [continuation(tokenizer, *item) for item in items]
    rows = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
    found: dict[int, Score] = {}
    with frozen(model):
        for batch in length_sorted_batches([len(row) for row in rows], good_tokens(input_device(model))):
            hidden = _hidden(model, tokenizer, [rows[i] for i in batch])
            at = [(j, len(prompts[i]) - 1 + k) for j, i in enumerate(batch) for k in range(len(answers[i]))]
            row, position = torch.tensor(at, device=hidden.device).T
            logits = _head(model, hidden[row, position])
            wanted = torch.tensor([t for i in batch for t in answers[i]], device=logits.device)
            log_p = -F.cross_entropy(logits, wanted, reduction="none")
            hit = logits.argmax(-1) == wanted
            sizes = [len(answers[i]) for i in batch]
            for i, h, p in zip(batch, hit.split(sizes), log_p.split(sizes), strict=True):
                found[i] = Score(bool(h.all()), float(p.sum().exp()))
    return [found[i] for i in range(len(items))]


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    tokens: int = 4096,
    window: int = 512,
    progress: bool = True,
) -> float:
    """Exp of the mean NLL per token over the first `tokens` tokens of `texts`, in windows of their own.

    Each window is read from its start; its first token is not counted.
    """
    stream: list[int] = []
    for text in texts:
        stream += encode(tokenizer, text)
        if len(stream) >= tokens:
            break
    stream = stream[:tokens]
    rows = [stream[i : i + window] for i in range(0, len(stream), window)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError("perplexity of no text: give at least two tokens of held-out text")
    total, count = 0.0, 0
    with frozen(model):
        batches = length_sorted_batches([len(row) for row in rows], good_tokens(input_device(model)))
        for batch in tqdm(batches, desc="perplexity", disable=None if progress else True, leave=False):
            hidden = _hidden(model, tokenizer, [rows[i] for i in batch])
            for state, i in zip(hidden, batch, strict=True):
                following = torch.tensor(rows[i][1:], device=state.device)
                size = good_positions(state.device, model.config.get_text_config().vocab_size)
                for part, wanted in zip(state[: len(following)].split(size), following.split(size), strict=True):
                    logits = _head(model, part)
                    total += float(F.cross_entropy(logits, wanted.to(logits.device), reduction="sum"))
                count += len(following)
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


@torch.no_grad()
def completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, tokens: int = 8
) -> list[str]:
    """Greedy continuations, special tokens shown, cut at the first end-of-text token."""
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    lengths = [len(row) for row in rows]
    done = [False] * len(rows)
    with frozen(model):
        for _ in range(tokens):
            live = [i for i, d in enumerate(done) if not d]
            for batch in length_sorted_batches([len(rows[i]) for i in live], good_tokens(input_device(model))):
                members = [live[i] for i in batch]
                hidden = _hidden(model, tokenizer, [rows[i] for i in members])
                ends = torch.tensor([len(rows[i]) - 1 for i in members], device=hidden.device)
                states = hidden[torch.arange(len(members), device=hidden.device), ends]
                for i, token in zip(members, _head(model, states).argmax(-1).tolist(), strict=True):
                    rows[i].append(token)
                    done[i] = token == tokenizer.eos_token_id
    return [str(tokenizer.decode(row[n:])) for row, n in zip(rows, lengths, strict=True)]


def _hidden(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> Tensor:
    """Final hidden states (n, longest, d), after the last norm, of right-padded rows."""
    ids, mask = pad(rows, filler_id(tokenizer, model), input_device(model))
    output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_output_embeddings()(hidden)
    return logits.float()
