"""Questions that a truth ratio is taken on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt, its answer, the answer in other words (or the same), and false answers."""

    prompt: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]
