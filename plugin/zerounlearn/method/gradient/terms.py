"""Each method's loss on a model: which samples it reads, and which objective it puts them into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.data.request import Request, target_ids
from zerounlearn.errors import ConfigError
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.config import (
    DPO,
    NPO,
    RMU,
    GradientMethod,
    IdkPO,
    RetainingAnswers,
    SimNPO,
)
from zerounlearn.method.gradient.sequences import Reader, Sample, chunks
from zerounlearn.model.layout import Layout
from zerounlearn.model.tokens import continuation


@dataclass(frozen=True)
class Term:
    """A loss over `count` items: `of` takes the numbers of those in a batch, and runs the model on them."""

    count: int
    of: Callable[[list[int]], Tensor]

    def batches(self, size: int, *, generator: torch.Generator) -> Iterator[list[int]]:
        """Shuffled batches without end; every item comes once before any comes again."""
        while True:
            order: list[int] = torch.randperm(self.count, generator=generator).tolist()
            for i in range(0, self.count, size):
                yield order[i : i + size]


def answer_samples(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]) -> list[Sample]:
    """Each request's prompt with its answer."""
    return [Sample.of(tokenizer, r.prompt, continuation(tokenizer, *r.query)) for r in requests]


def forget_term(
    reader: Reader,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: GradientMethod,
) -> Term:
    """What the method minimises on the forget set; a reference is read here, once, from the model as it is.

    Raises:
        RequestError: a sensitive answer equals what would be preferred to it.
    """
    answers = answer_samples(tokenizer, requests)

    def log_p(batch: list[int]) -> Tensor:
        return reader.log_p([answers[i] for i in batch])

    def ascent(batch: list[int]) -> Tensor:
        return objectives.ascent(log_p(batch))

    if isinstance(hparams, NPO):
        beta, reference = hparams.beta, _reference(reader, answers, hparams)
        return Term(len(answers), lambda batch: objectives.npo(log_p(batch), reference[batch], beta))

    if isinstance(hparams, SimNPO):
        beta, gamma, sizes = hparams.beta, hparams.gamma, _sizes(answers)
        return Term(
            len(answers),
            lambda batch: objectives.simnpo(p := log_p(batch), sizes[batch].to(p.device), beta, gamma),
        )

    if isinstance(hparams, (DPO, IdkPO)):
        if isinstance(hparams, IdkPO):
            requests, preferred_text = [replace(r, neutral=None) for r in requests], hparams.idk_text
        else:
            preferred_text = hparams.neutral_target
        preferred = [Sample.of(tokenizer, r.prompt, target_ids(tokenizer, r, preferred_text)) for r in requests]
        beta = hparams.beta
        preferred_r, answers_r = (_reference(reader, samples, hparams) for samples in (preferred, answers))

        def preference(batch: list[int]) -> Tensor:
            both = reader.log_p([*(preferred[i] for i in batch), *(answers[i] for i in batch)])
            wanted, unwanted = both.split(len(batch))
            return objectives.dpo(wanted, preferred_r[batch], unwanted, answers_r[batch], beta)

        return Term(len(answers), preference)

    if isinstance(hparams, RMU):
        block = layout.blocks[_rmu_layer(layout, hparams)]
        generator = torch.Generator().manual_seed(hparams.seed)
        u = objectives.random_direction(layout.model.config.get_text_config().hidden_size, generator=generator)
        target = hparams.steering_coefficient * u

        def steered(batch: list[int]) -> Tensor:
            hidden = _wide(reader.output_of(block, [answers[i] for i in batch]))
            return objectives.misdirection(hidden, target.to(hidden))

        return Term(len(answers), steered)

    return Term(len(answers), ascent)


def retain_term(reader: Reader, layout: Layout, samples: Sequence[Sample], hparams: GradientMethod) -> Term:
    """What the method minimises on what is to be kept; a reference is read here, once, from the model as it is."""
    if isinstance(hparams, RMU):
        block = layout.blocks[_rmu_layer(layout, hparams)]
        frozen: list[Tensor] = []
        with torch.no_grad():
            for part in chunks(samples, hparams.minibatch_size):
                frozen += reader.output_of(block, part).split([len(sample.ids) - 1 for sample in part])

        def kept(batch: list[int]) -> Tensor:
            hidden = reader.output_of(block, [samples[i] for i in batch])
            return objectives.misdirection(_wide(hidden), _wide(torch.cat([frozen[i] for i in batch])))

        return Term(len(samples), kept)

    if isinstance(hparams, RetainingAnswers) and hparams.retain_loss == "kl":
        # States are kept, not logits: a thousand tokens' over a vocabulary of 50,000 take 200 MB.
        states: list[Tensor] = []
        with torch.no_grad():
            for part in chunks(samples, hparams.minibatch_size):
                states += reader.states(part).split([sample.size for sample in part])
        trained = any(parameter.requires_grad for parameter in reader.head.parameters())
        head = deepcopy(reader.head).requires_grad_(False) if trained else reader.head

        def diverged(batch: list[int]) -> Tensor:
            logits = reader.logits(reader.states([samples[i] for i in batch]))
            with torch.no_grad():
                reference = reader.logits(torch.cat([states[i] for i in batch]), head)
            return objectives.divergence(logits, reference)

        return Term(len(samples), diverged)

    sizes = _sizes(samples)

    def unlikely(batch: list[int]) -> Tensor:
        log_p = reader.log_p([samples[i] for i in batch])
        return objectives.likelihood(log_p, sizes[batch].to(log_p.device))

    return Term(len(samples), unlikely)


@torch.no_grad()
def _reference(reader: Reader, samples: Sequence[Sample], hparams: GradientMethod) -> Tensor:
    return torch.cat([reader.log_p(part) for part in chunks(samples, hparams.minibatch_size)])


def _sizes(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(sample.size) for sample in samples])


def _wide(hidden: Tensor) -> Tensor:
    """Squares of half-precision hidden states overflow float16, and lose small differences in bfloat16."""
    return hidden if hidden.dtype == torch.float64 else hidden.float()


def _rmu_layer(layout: Layout, hparams: RMU) -> int:
    layer = hparams.rmu_layer
    if layer is None or layer >= len(layout.blocks):
        raise ConfigError(f"rmu_layer={layer}: this model's layers are numbered 0 to {len(layout.blocks) - 1}")
    return layer
