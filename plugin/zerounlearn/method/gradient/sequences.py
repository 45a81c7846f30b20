"""Prompts with answers as token rows, and what a model makes of them, with gradients where they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.hooks import first_tensor, forward_until
from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import check_ids, encode, filler_id, pad


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and its answer; the answer begins at position `start` >= 1."""

    ids: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: Sequence[int]) -> Sample:
        """A prompt and the token ids of its answer."""
        ids = encode(tokenizer, prompt)
        return cls((*ids, *answer), len(ids))

    @property
    def size(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.start


def text_samples(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Sample]:
    """Texts as answers to their own first token, cut to `max_length` tokens; those without a second are left out."""
    rows = [encode(tokenizer, text)[:max_length] for text in texts]
    return [Sample(tuple(row), 1) for row in rows if len(row) > 1]


class Reader:
    """Reads samples with a model, right-padded whatever the tokenizer's padding side.

    Log-probabilities are float32 (float64 for a float64 model).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.head: nn.Module = model.get_output_embeddings()
        self._filler = filler_id(tokenizer, model)

    def _inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor | bool]:
        # The last token is only ever predicted.
        check_ids(self.model, [sample.ids for sample in samples])
        ids, mask = pad([sample.ids[:-1] for sample in samples], self._filler, input_device(self.model))
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}

    def states(self, samples: Sequence[Sample]) -> Tensor:
        """Final hidden states (Σ sizes, d), after the last norm, that the answers' tokens are predicted from."""
        hidden: Tensor = self.model.base_model(**self._inputs(samples)).last_hidden_state
        at = [(i, p) for i, sample in enumerate(samples) for p in range(sample.start - 1, len(sample.ids) - 1)]
        row, position = torch.tensor(at, device=hidden.device).T
        return hidden[row, position]

    def logits(self, states: Tensor, head: nn.Module | None = None) -> Tensor:
        """Vocabulary logits (m, v) of final hidden states (m, d)."""
        logits: Tensor = (head or self.head)(states)
        return logits if logits.dtype == torch.float64 else logits.float()

    def log_p(self, samples: Sequence[Sample]) -> Tensor:
        """The samples' log π(answer | prompt) (n,), summed over the answer's tokens."""
        logits = self.logits(self.states(samples))
        wanted = torch.tensor([t for sample in samples for t in sample.ids[sample.start :]], device=logits.device)
        parts = (-F.cross_entropy(logits, wanted, reduction="none")).split([sample.size for sample in samples])
        return torch.stack([part.sum() for part in parts])

    def output_of(self, block: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """Hidden states (Σ lengths, d) that a block hands on, sample by sample; blocks above it do not run."""
        inputs = self._inputs(samples)
        seen: list[Tensor] = []
        handle = block.register_forward_hook(lambda _, __, output: seen.append(first_tensor(output)))
        try:
            forward_until(self.model, block, **inputs)
        finally:
            handle.remove()
        return torch.cat([row[: len(sample.ids) - 1] for row, sample in zip(seen[0], samples, strict=True)])


def chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """The samples in order, `size` at a time."""
    for i in range(0, len(samples), size):
        yield samples[i : i + size]
