"""Prompts with answers as token rows, and what a model makes of them, with gradients where they are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.errors import ConfigError
from zerounlearn.model.answers import logits_at
from zerounlearn.model.hooks import first_tensor, forward_until
from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import check_ids, encode, filler_id, pad


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt and its answer; the answer begins at position `start` >= 1."""

    ids: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: Sequence[int], *, end: bool = False) -> Sample:
        """A prompt and the token ids of its answer; with `end`, the end-of-text token is the answer's last.

        Raises:
            ConfigError: `end` is asked of a tokenizer without one.
        """
        ids = encode(tokenizer, prompt)
        last = end_token(tokenizer, "end_token=true") if end else None
        ended = () if last is None or answer[-1:] == [last] else (last,)
        return cls((*ids, *answer, *ended), len(ids))

    @property
    def size(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.start


def end_token(tokenizer: PreTrainedTokenizerBase, purpose: str) -> int:
    """The id of the end-of-text token.

    Raises:
        ConfigError: there is none; `purpose` says what for.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{purpose}: this tokenizer has no end-of-text token")
    return int(tokenizer.eos_token_id)


def text_samples(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Sample]:
    """Texts as answers to their own first token, cut to `max_length` tokens; those without a second are left out."""
    rows = [encode(tokenizer, text)[:max_length] for text in texts]
    return [Sample(tuple(row), 1) for row in rows if len(row) > 1]


class Reader:
    """Reads samples with a model, right-padded whatever the tokenizer's padding side.

    Logits are the model's own, with whatever it does to them after its head (soft-capping, scaling); they and the
    log-probabilities are float32 (float64 for a float64 model). Where a method takes a `width`, rows are padded to it
    with the end-of-text token, and every position of them counts instead of those that predict an answer's tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.head: nn.Module = model.get_output_embeddings()
        self._tokenizer = tokenizer
        self._filler = filler_id(tokenizer, model)

    def _inputs(self, samples: Sequence[Sample], width: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask (n, t) without each last token, which is only ever predicted."""
        check_ids(self.model, [sample.ids for sample in samples])
        rows = [sample.ids[:-1] for sample in samples]
        if width is None:
            return pad(rows, self._filler, input_device(self.model))
        longest = max(len(row) for row in rows)
        if longest > width:
            raise ConfigError(f"row_length={width}: a row to be kept has {longest} tokens: raise it")
        ids, mask = pad(rows, end_token(self._tokenizer, "rows of one length"), input_device(self.model))
        filled = F.pad(ids, (0, width - longest), value=end_token(self._tokenizer, "rows of one length"))
        return filled, F.pad(mask, (0, width - longest))

    def _read(self, samples: Sequence[Sample], width: int | None) -> Tensor:
        ids, mask = self._inputs(samples, width)
        spans = [(s.start - 1, len(s.ids) - 1) if width is None else (0, width) for s in samples]
        places = torch.tensor([(row, position) for row, span in enumerate(spans) for position in range(*span)])
        logits = logits_at(self.model, ids, mask, places)
        return logits if logits.dtype == torch.float64 else logits.float()

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Vocabulary logits (Σ sizes, v) that the answers' tokens are predicted by."""
        return self._read(samples, None)

    @torch.no_grad()
    def states(self, samples: Sequence[Sample], width: int | None = None) -> list[Tensor]:
        """What the head is given, a tensor (size, d) a sample, for `logits_beside`."""
        seen: list[Tensor] = []
        with self.head.register_forward_hook(lambda _, args, __: seen.append(args[0][0])):
            self._read(samples, width)
        return list(seen[0].split([sample.size if width is None else width for sample in samples]))

    def logits_beside(
        self, samples: Sequence[Sample], states: Tensor, head: nn.Module, width: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (m, v) of samples now, and those (m, v) that earlier states (m, d) stand for, without gradients.

        Both are one tensor from the head on, so that the model does to the earlier ones what it does to its own.

        Args:
            samples: m places in all.
            states: from `states`.
            head: the head as it was when they were taken; it may be the model's, if nothing trains that.
            width: see the class.
        """

        def earlier(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            with torch.no_grad():
                reference = head.forward(states)  # not head(states): this hook would be called again
            return torch.cat([output, reference[None].to(output)], dim=1)

        with self.head.register_forward_hook(earlier):
            now, then = self._read(samples, width).split(len(states))
        return now, then.detach()

    def log_p(self, samples: Sequence[Sample]) -> Tensor:
        """The samples' log π(answer | prompt) (n,), summed over the answer's tokens."""
        logits = self.logits(samples)
        wanted = torch.tensor([t for sample in samples for t in sample.ids[sample.start :]], device=logits.device)
        parts = (-F.cross_entropy(logits, wanted, reduction="none")).split([sample.size for sample in samples])
        return torch.stack([part.sum() for part in parts])

    def output_of(self, block: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """Hidden states (Σ lengths, d) that a block hands on, sample by sample; blocks above it do not run."""
        ids, mask = self._inputs(samples)
        seen: list[Tensor] = []
        with block.register_forward_hook(lambda _, __, output: seen.append(first_tensor(output))):
            forward_until(self.model, block, input_ids=ids, attention_mask=mask, use_cache=False)
        return torch.cat([row[: len(sample.ids) - 1] for row, sample in zip(seen[0], samples, strict=True)])


def chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """The samples in order, `size` at a time."""
    for i in range(0, len(samples), size):
        yield samples[i : i + size]
