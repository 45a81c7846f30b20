"""How deep the forgetting goes: the edited model's hidden states put into the base model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.states import Asked
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.model.answers import AnswerTokens
from zerounlearn.model.weights import with_weights

_GAP = 0.05  # nats a token: what a state must carry for its layer to count, as published
_KEPT = 0.5


@attack(
    "patching",
    label="Patching depth",
    access=Access.BASE,
    quick={"every": 6},
    standard={"every": 2},
    thorough={"every": 1},
    source="arXiv 2605.24614 (UDS)",
)
def patching(target: Target, *, every: int) -> Iterator[Outcome]:
    """How much of what the base model's states carry of the answer the edited model's carry as well: 1 - UDS.

    The states at the positions that predict the answer are replaced in the base model, one layer at a time, and the
    loss of the answer's log-probability is measured: with those of a made-up subject in the same prompt, which know
    nothing of it (the paper takes a retrained model), and with the edited model's. A layer counts where the former
    lose at least 0.05 nats a token. Found where at least half is left of what the base model says; of what it does
    not say nothing can be left. Layers below the edit are the base model's own: what counts is where the subject's
    states are read.
    """
    target.need(1, "weights of a base model that differ", len(target.original))
    target.need(2, "controls for each fact", min(map(len, target.controls)))
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    strangers, apt = _strangers(target, asked)
    own = asked.tape()
    layers = range(asked.depth - 1, -1, -every)
    with with_weights(target.model, target.original):
        base = asked.tape()
        said = asked.answers(asked.at(base.outputs[asked.depth - 1]))
        lost, gone = [], []
        for layer in layers:
            hidden = base.outputs[layer]
            lost.append(_loss(said, asked.onwards(base, layer, asked.put(hidden, asked.at(hidden)[strangers]))))
            gone.append(_loss(said, asked.onwards(base, layer, asked.put(hidden, asked.at(own.outputs[layer])))))
    kept, counted = left(torch.stack(lost), torch.stack(gone))
    findings = []
    for i, tokens in enumerate(said):
        says = bool(tokens.hit.all()) and apt[i]
        score = float(kept[i]) if says else 0.0
        findings.append(Finding(says and score >= _KEPT, score, f"{int(counted[i])} of {len(layers)} layers"))
    yield target.outcome("", findings)


def left(lost: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """1 - UDS of each of n answers, 0 where no layer counts; and how many layers count.

    Args:
        lost: log-probability lost by states that never knew (layers, n).
        gone: lost by the edited model's states (layers, n).
    """
    counts = lost > _GAP
    weight = lost.where(counts, 0)
    erased = (gone.clamp(min=0).minimum(lost)).where(counts, 0)
    total = weight.sum(0)
    return torch.where(total > 0, 1 - erased.sum(0) / total, 0), counts.sum(0)


def _loss(before: list[AnswerTokens], after: list[AnswerTokens]) -> Tensor:
    """(n,): mean log-probability a token before less that after, in float64."""
    return torch.stack([(a.log_p - b.log_p).double().mean() for a, b in zip(before, after, strict=True)])


def _strangers(target: Target, asked: Asked) -> tuple[Tensor, list[bool]]:
    """For each of the spots that of a made-up subject in the same prompt, and for which queries there is one.

    There is none where another subject makes other tokens of the answer.
    """
    of_fact, others = [*range(len(target.facts))], len(target.facts)
    spans = [range(start, start + size) for start, size in zip(asked.firsts.tolist(), asked.sizes, strict=True)]
    controls, start = [], others
    for each in target.controls:
        controls.append(range(start, start + len(each)))
        start += len(each)
    owner = of_fact + [i for i, each in enumerate(controls) for _ in each]
    spots, apt = [], []
    for i, fact in enumerate(owner):
        ids = asked.wanted[list(spans[i])].tolist()
        same = [j for j in controls[fact] if j != i and asked.wanted[list(spans[j])].tolist() == ids]
        later = [j for j in same if j > i]
        apt.append(bool(same))
        spots += spans[(later or same or [i])[0]]
    return torch.tensor(spots), apt
