"""What the model itself writes for a run: prefixes that a fact is to be forgotten behind, and subjects like others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import encode, filler_id, pad

OPENINGS = ("The", "Therefore", "Because", "I", "You")
# Lists that the model continues when it is asked for subjects: how many, how long in tokens, subjects shown in each.
_LISTS, _LIST_LENGTH, _SHOWN = 12, 40, 6
# A proposal of more words is prose and no subject.
_WORDS = 5


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    generator: torch.Generator,
    top_k: int = 5,
) -> list[list[int]]:
    """Token ids that continue each row until it has `length` tokens, top-k sampled, all rows in one batch.

    The draw is made on the CPU in float32, so that a seed gives the same choice of ranks on every device.
    """
    grown = [list(row) for row in rows]
    device = input_device(model)
    ids, mask = pad(grown, filler_id(tokenizer), device)
    at = mask.sum(1) - 1
    every = torch.arange(len(grown), device=device)
    inputs: dict[str, Any] = {"input_ids": ids}
    while short := [i for i, row in enumerate(grown) if len(row) < length]:
        output = model(**inputs, attention_mask=mask, use_cache=True)
        last = output.logits[every, at][short].float().cpu()
        top = last.softmax(-1).topk(top_k)
        drawn = torch.multinomial(top.values, 1, generator=generator)
        for i, token in zip(short, top.indices.gather(1, drawn)[:, 0].tolist(), strict=True):
            grown[i].append(token)
        # Finished rows run along; what they are given no longer matters.
        positions = torch.tensor([len(row) - 1 for row in grown], device=device)
        inputs = {
            "input_ids": torch.tensor([row[-1:] for row in grown], device=device),
            "position_ids": positions[:, None],
            "past_key_values": output.past_key_values,
        }
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        at = torch.zeros_like(at)
    return grown


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


def propose_subjects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[str],
    count: int,
    *,
    but: Collection[str] = (),
    generator: torch.Generator,
) -> list[str]:
    """At most `count` others like `subjects`, as the model goes on with lists of them; none of `but` among them.

    Proposals are not checked: what they are for, keys that a prompt's other subjects have, needs no true answers.
    """
    rows = []
    for _ in range(_LISTS):
        order = torch.randperm(len(subjects), generator=generator)[:_SHOWN].tolist()
        rows.append(encode(tokenizer, ", ".join(subjects[i] for i in order) + ","))
    length = max(len(row) for row in rows) + _LIST_LENGTH
    grown = sample(model, tokenizer, rows, length, generator=generator, top_k=10)
    taken = {name.casefold() for name in (*subjects, *but)}
    found: dict[str, str] = {}
    for row, start in zip(grown, rows, strict=True):
        text = str(tokenizer.decode(row[len(start) :], skip_special_tokens=True)).split("\n")[0]
        for part in text.split(",")[:-1]:  # the last may be cut off
            name = part.removeprefix(" and ").strip(" .\"'")
            fits = 0 < len(name.split()) <= _WORDS and name[:1].isalnum() and "{}" not in name
            if fits and name.casefold() not in taken:
                found.setdefault(name.casefold(), name)
    return list(found.values())[:count]
