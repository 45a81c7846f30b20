"""Token ids and positions, without relying on a tokenizer's padding side or on the special tokens it adds.

Where a prompt ends and its answer begins is decided here alone. The prompt stands as it is, byte for byte; between it
and the answer goes the *joint*, one space or nothing (`joint_of`), and `continuation` gives the answer's ids behind
the prompt's own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from zerounlearn.errors import ConfigError, RequestError

FactToken = Literal["last", "subject_first", "subject_last", "subject_first_after_last"]

_UNSPACED = ("THAI", "LAO ", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE")
"""Scripts without spaces between words, by the beginning of their characters' names, beside the East Asian ones."""


class Query(NamedTuple):
    """A prompt, its answer, and what stands between them; None leaves it to `joint_of`."""

    prompt: str
    answer: str
    joint: str | None = None

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        joint = joint_of(self.prompt, self.answer) if self.joint is None else self.joint
        return f"{self.prompt}{joint}{self.answer}"


Queries = Sequence[Query | tuple[str, str]]
"""Prompts with their answers: a plain pair leaves the joint to `joint_of`."""


def joint_of(prompt: str, answer: str) -> str:
    """What stands between a prompt and its answer: one space, or nothing.

    Nothing where either side brings its own white space, after an opening bracket or quotation mark, after a hyphen
    or dash that hangs on a word, after a slash, "@", "#" or "_", after a currency sign before a digit, before
    punctuation that hangs on the word before it, and within scripts that put no space between words (Chinese,
    Japanese, Thai, …). One space otherwise.
    """
    decided = decided_joint(prompt, answer)
    if decided is not None:
        return decided
    return "" if unspaced(prompt[-1]) else " "


def decided_joint(prompt: str, answer: str) -> str | None:
    """The joint where the text leaves no doubt, as after a letter; None where it does, as after a colon."""
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace():
        return ""
    last, first = prompt[-1], answer[0]
    hangs = len(prompt) > 1 and not prompt[-2].isspace()  # on a word, for what may also stand alone
    kind = unicodedata.category(last)
    if kind in ("Ps", "Pi") or last in "/\\@#_" or (unspaced(last) and unspaced(first)):
        return ""
    if last in "\"'`":
        opens = not hangs or unicodedata.category(prompt[-2]) in ("Ps", "Pi", "Pd")
        return "" if opens else " "
    if kind == "Pd":
        return "" if hangs else " "
    if kind == "Sc" and first.isdigit():
        return ""
    if unicodedata.category(first) in ("Pe", "Pf") or (first in ".,;:!?%…" and not answer[1:2].strip()):
        return ""
    if unspaced(last) or unspaced(first):
        return "" if kind.startswith("P") else None
    return " " if kind[0] in "LNM" or kind == "Pf" or last in ",;.!?%" else None


def unspaced(char: str) -> bool:
    """Whether the character belongs to a script without spaces between words; Korean has spaces, as emoji have."""
    if unicodedata.east_asian_width(char) in "WF":
        return "HANGUL" not in unicodedata.name(char, "") and unicodedata.category(char) != "So"
    return unicodedata.name(char, "").startswith(_UNSPACED)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that something may follow.

    Special tokens that the tokenizer puts before a text are kept, those that it appends (an end-of-text token) are
    left off: a model does not go on from there.
    """
    ids = list(tokenizer(text)["input_ids"])
    return ids[: len(ids) - _appended(tokenizer)]


def _appended(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer appends to every text."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return len(whole) - start - len(bare)
    return 0


def locate(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, fact_token: FactToken
) -> tuple[list[int], int]:
    """Token ids of `text`, as `encode` gives them, and the position where the fact about text[start:end] is looked up.

    Works on character offsets, so a BOS token, a subject at either end and a subject that shares a token
    with its surroundings are all placed right. Of a tokenizer without offsets the tokens of the text up to the
    subject are compared with those of the whole.

    Raises:
        RequestError: no token covers the subject.
    """
    ids = encode(tokenizer, text)
    if tokenizer.is_fast:
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][: len(ids)]
        inside = [i for i, (s, e) in enumerate(offsets) if s < end and e > start and e > s]
        if not inside:
            raise RequestError(f"{text!r}: this tokenizer has no token for the subject {text[start:end]!r}")
        first, last = inside[0], inside[-1]
    else:
        first = min(_covered(tokenizer, ids, text[:start]), len(ids) - 1)
        last = max(_covered(tokenizer, ids, text[:end], cut=True) - 1, first)
    if fact_token == "last":
        return ids, len(ids) - 1
    if fact_token == "subject_first":
        return ids, first
    if fact_token == "subject_first_after_last":
        return ids, min(last + 1, len(ids) - 1)
    return ids, last


def _covered(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], head: str, *, cut: bool = False) -> int:
    """How many of a text's tokens lie within its beginning `head`; with `cut`, one that reaches beyond counts too."""
    alone = encode(tokenizer, head)
    same = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    if not cut or same == len(alone):
        return same
    length = len(str(tokenizer.decode(alone)))
    return next((n for n in range(same + 1, len(ids)) if len(str(tokenizer.decode(list(ids[:n])))) >= length), len(ids))


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, joint: str | None = None) -> list[int]:
    """Token ids of `answer` behind those of `prompt` (`encode`), with `joint` between them.

    They are read off the joint text where its tokens begin with the prompt's, which is right for SentencePiece as for
    byte-level BPE. Where the two merge across the border ("Franco-" + "Prussian" has a token "-P"), the prompt keeps
    the ids that a model is given when it is asked to go on, and the answer is tokenised so that the ids of both
    together read as the joint text.

    Args:
        tokenizer: the model's.
        prompt: as it is asked.
        answer: what follows it.
        joint: what stands between; None for `joint_of`.
    """
    text = Query(prompt, answer, joint).text
    before, whole = encode(tokenizer, prompt), encode(tokenizer, text)
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before) :]
    after, read = text[len(prompt) :], str(tokenizer.decode(before))
    alone, line, behind_line = (
        list(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (after, "\n", f"\n{after}")
    )
    if str(tokenizer.decode(before + alone)) == read + after:
        return alone
    # SentencePiece puts a space before a text that stands alone; behind a line break it does not.
    behind = behind_line[len(line) :] if behind_line[: len(line)] == line else []
    return behind if str(tokenizer.decode(before + behind)) == read + after else alone


def pad(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask, both (n, longest) and int64."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def filler_id(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> int:
    """An id to pad with; masked everywhere, so any will do that the model's embedding has a row for."""
    rows = embedding_rows(model)
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(candidate) for candidate in candidates if candidate is not None and candidate < rows), 0)


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model's embedding knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def check_ids(model: nn.Module, rows: Sequence[Sequence[int]]) -> None:
    """Refuse ids that the model's embedding has no row for, before they are looked up in it.

    Raises:
        ConfigError: the tokenizer knows more tokens than the model.
    """
    highest, known = max((max(row) for row in rows if row), default=0), embedding_rows(model)
    if highest >= known:
        raise ConfigError(
            f"token id {highest} is none of the {known} that the model's embedding knows: its tokenizer has had tokens "
            "added; load the tokenizer that belongs to the model, or call model.resize_token_embeddings"
        )


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each at most `batch_tokens` tokens when padded."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
