"""Controls that a model never knew: the same prompts about subjects that do not exist.

An attack that brings an answer back for a subject that was made up a moment ago shows what it does to any model, and
not what the model knew (arXiv 2502.15836 for soft prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from zerounlearn.data.fact import Fact
from zerounlearn.data.subjects import made_up
from zerounlearn.data.text import mentions


def never_known(facts: Sequence[Fact], count: int, generator: torch.Generator) -> tuple[tuple[Fact, ...], ...]:
    """For each fact `count` controls: its prompts with made-up subjects, and its own answer.

    Paraphrases that do not name the subject are left out.
    """
    return tuple(
        tuple(_control(fact, made_up(fact.request.subject, generator)) for _ in range(count)) for fact in facts
    )


def _control(fact: Fact, name: str) -> Fact:
    subject = fact.request.subject

    def renamed(text: str) -> str | None:
        spans = mentions(text, subject, whole=True)
        for start, end in reversed(spans):
            text = text[:start] + name + text[end:]
        return text if spans else None

    before, after = fact.request.before, fact.request.after  # which may name the subject, too
    request = replace(fact.request, before=renamed(before) or before, subject=name, after=renamed(after) or after)
    return Fact(request, tuple(filter(None, map(renamed, fact.paraphrases))))
