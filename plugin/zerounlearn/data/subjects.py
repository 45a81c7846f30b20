"""Subjects like those of a forget set: proposed by the model, or made up, which nothing is known about."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.generate import sample
from zerounlearn.model.tokens import encode

# Lists that the model continues when it is asked for subjects: how many, how long in tokens, subjects shown in each.
_LISTS, _LIST_LENGTH, _SHOWN = 12, 40, 6
# A proposal of more words is prose and no subject.
_WORDS = 5

# What made-up names are put together from.
_BEGINNINGS = ("b", "d", "dr", "f", "g", "gl", "h", "k", "l", "m", "n", "p", "r", "s", "sk", "t", "th", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_ENDS = ("", "", "l", "n", "r", "s", "x")


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


def made_up(subject: str, generator: torch.Generator) -> str:
    """A name of as many words as the subject has, each with a capital where the subject's has one."""
    words = []
    for word in subject.split():
        parts = (_BEGINNINGS, _VOWELS) * (2 + (len(word) > 5)) + (_ENDS,)
        name = "".join(part[int(torch.randint(len(part), (), generator=generator))] for part in parts)
        words.append(name.capitalize() if word[:1].isupper() else name)
    return " ".join(words)
