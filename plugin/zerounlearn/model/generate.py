"""Text that the model writes: greedy, and sampled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.errors import LayoutError
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.tape import cache_name
from zerounlearn.model.tokens import check_ids, encode, filler_id, length_sorted_batches, pad

_BATCH_TOKENS = 8192


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens: int = 200,
    special: bool = False,
    batch_tokens: int = _BATCH_TOKENS,
) -> list[str]:
    """Greedy continuations in the prompts' order, with a key-value cache, up to the first end-of-text token.

    The model's own generation settings (temperature, repetition penalty) play no part, its end tokens do.

    Args:
        model: any causal language model, left as it was.
        tokenizer: its tokenizer, whose padding side plays no part.
        prompts: with at least one token each.
        tokens: at most so many new ones; TOFU generates 200, RWKU 30.
        special: show special tokens, the end-of-text token that ends the text among them.
        batch_tokens: prompt and new tokens in a batch, padding included.

    Raises:
        ConfigError: the tokenizer knows a token that the model does not.
    """
    rows = [encode(tokenizer, prompt) for prompt in prompts]
    check_ids(model, rows)
    device, filler = input_device(model), filler_id(tokenizer, model)
    found: dict[int, str] = {}
    generator: Any = model  # its mixins are too dynamic for a type checker
    with frozen(model), _greedy(model, tokenizer, tokens, filler) as stops:
        for batch in length_sorted_batches([len(row) + tokens for row in rows], batch_tokens):
            longest = len(rows[batch[0]])
            ids = torch.full((len(batch), longest), filler, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for j, i in enumerate(batch):
                ids[j, longest - len(rows[i]) :] = torch.tensor(rows[i])
                mask[j, longest - len(rows[i]) :] = 1
            output: Tensor = generator.generate(input_ids=ids.to(device), attention_mask=mask.to(device))
            for i, new in zip(batch, output[:, longest:].tolist(), strict=True):
                end = next((k for k, token in enumerate(new) if token in stops), len(new))
                found[i] = str(tokenizer.decode(new[: end + special], skip_special_tokens=not special))
    return [found[i] for i in range(len(rows))]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    generator: torch.Generator,
    top_k: int | None = 5,
) -> list[list[int]]:
    """Token ids that continue each row until it has `length` tokens, sampled, all rows in one batch.

    Each is drawn at temperature 1 from the `top_k` most probable ones, or from all where that is None.

    The draw is made on the CPU in float32, so that a seed gives the same choice of ranks on every device.

    Raises:
        LayoutError: the model takes no key-value cache.
    """
    grown = [list(row) for row in rows]
    device = input_device(model)
    ids, mask = pad(grown, filler_id(tokenizer, model), device)
    at = mask.sum(1) - 1
    every = torch.arange(len(grown), device=device)
    cache = cache_name(inspect.signature(model.forward))
    if not cache:
        raise LayoutError(f"{type(model).__name__} keeps no keys and values of what it has read: it is no transformer")
    inputs: dict[str, Any] = {"input_ids": ids}
    while short := [i for i, row in enumerate(grown) if len(row) < length]:
        output = model(**inputs, attention_mask=mask, use_cache=True)
        last = output.logits[every, at][short].float().cpu()
        p = last.softmax(-1)
        if top_k is None:
            drawn = torch.multinomial(p, 1, generator=generator)
        else:
            top = p.topk(top_k)
            drawn = top.indices.gather(1, torch.multinomial(top.values, 1, generator=generator))
        for i, token in zip(short, drawn[:, 0].tolist(), strict=True):
            grown[i].append(token)
        # Finished rows run along; what they are given no longer matters.
        positions = torch.tensor([len(row) - 1 for row in grown], device=device)
        inputs = {
            "input_ids": torch.tensor([row[-1:] for row in grown], device=device),
            "position_ids": positions[:, None],
            cache: output[cache],
        }
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        at = torch.zeros_like(at)
    return grown


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What ends a text: the end tokens of the model's own generation settings, and the tokenizer's."""
    own = model.generation_config
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else []
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}


@contextmanager
def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int, filler: int) -> Iterator[set[int]]:
    """Greedy settings in place of the model's own, which `generate` would otherwise mix in; gives the end tokens."""
    own = model.generation_config
    stops = end_tokens(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=tokens, pad_token_id=filler, eos_token_id=sorted(stops) or None
    )
    try:
        yield stops
    finally:
        model.generation_config = own
