"""Token ids and positions, without relying on a tokenizer's padding side or on a BOS token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

FactToken = Literal["last", "subject_first", "subject_last", "subject_first_after_last"]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, with the special tokens that the tokenizer adds of itself."""
    return list(tokenizer(text)["input_ids"])


def locate(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, fact_token: FactToken
) -> tuple[list[int], int]:
    """Token ids of `text` and the position at which the fact about text[start:end] is looked up.

    Works on character offsets, so a BOS token, a subject at either end and a subject that shares a token
    with its surroundings are all placed right. A tokenizer without offsets is asked for the length of the
    text up to the subject's end instead.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        inside = [i for i, (s, e) in enumerate(encoded["offset_mapping"]) if s < end and e > start and e > s]
        first, last = inside[0], inside[-1]
    else:
        ids = encode(tokenizer, text)
        first = len(encode(tokenizer, text[:start].rstrip()))
        last = len(encode(tokenizer, text[:end])) - 1
    if fact_token == "last":
        return ids, len(ids) - 1
    if fact_token == "subject_first":
        return ids, first
    if fact_token == "subject_first_after_last":
        return ids, min(last + 1, len(ids) - 1)
    return ids, last


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> list[int]:
    """Token ids of `answer` as it follows `prompt` after one space.

    They are read off the joint text where its tokens begin with the prompt's, which is right for
    SentencePiece as for byte-level BPE; where the two merge across the border, the answer is tokenised by
    itself.
    """
    ids = encode(tokenizer, prompt)
    joint = encode(tokenizer, f"{prompt} {answer}")
    if joint[: len(ids)] == ids and len(joint) > len(ids):
        return joint[len(ids) :]
    return list(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])


def pad(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask, both (n, longest) and int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def filler_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with; masked everywhere, so any valid one will do."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each at most `batch_tokens` tokens when padded."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
