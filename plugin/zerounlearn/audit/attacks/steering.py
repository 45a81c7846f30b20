"""One direction a layer, added to hidden states: what is only suppressed comes back when it is pushed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.states import Asked, known_pairs, paired_states
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.model.answers import AnswerTokens, Score
from zerounlearn.model.weights import with_weights

_SOURCE = "arXiv 2606.03291"


@attack(
    "steering",
    label="Steering",
    access=Access.ACTIVATIONS,
    quick={"scales": (1.0, 4.0), "every": 5, "pairs": 20},
    standard={"scales": (0.5, 1.0, 2.0, 4.0), "every": 2, "pairs": 50},
    thorough={"scales": (0.5, 1.0, 2.0, 4.0, 8.0), "every": 1, "pairs": 100},
    source=_SOURCE,
)
def steering(target: Target, *, scales: tuple[float, ...], every: int, pairs: int) -> Iterator[Outcome]:
    """Towards a known subject: the mean difference between prompts that are answered and those of made-up subjects.

    The states at the prompt's last token are compared; the difference, times a scale, is added there and at the tokens
    of the answer. Of the layers that counts which served the facts of the other half best, for each scale.
    """
    target.need(2, "facts", len(target.facts))
    known = known_pairs(target, pairs)
    target.need(2, "other facts whose subjects are known", len(known))
    states = paired_states(target, known)
    direction = states[:, : len(known)].mean(1) - states[:, len(known) :].mean(1)
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    yield _steered(target, asked, [direction, direction], scales, every)


@attack(
    "steering_base",
    label="Steering by the base model",
    access=Access.BASE,
    standard={"scales": (0.5, 1.0, 2.0, 4.0), "every": 2},
    thorough={"scales": (0.5, 1.0, 2.0, 4.0, 8.0), "every": 1},
    source=_SOURCE,
)
def steering_base(target: Target, *, scales: tuple[float, ...], every: int) -> Iterator[Outcome]:
    """Back to the base model: the mean difference between its states and the edited model's on half of the facts.

    It is added to the states of the other half and of its controls, as in `steering`.
    """
    target.need(2, "facts", len(target.facts))
    target.need(1, "weights of a base model that differ", len(target.original))
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    own = asked.lasts(asked.tape())
    with with_weights(target.model, target.original):
        base = asked.lasts(asked.tape())
    moved = (base - own)[:, : len(target.facts)]
    yield _steered(target, asked, [moved[:, 1 - half :: 2].mean(1) for half in (0, 1)], scales, every)


def _steered(
    target: Target, asked: Asked, directions: Sequence[Tensor], scales: Sequence[float], every: int
) -> Outcome:
    """By scale: each half with its own direction (layers, d), in the layer that served the other half's facts best."""
    halves = [i % 2 for i in range(len(target.facts))]
    halves += [i % 2 for i, each in enumerate(target.controls) for _ in each]
    spot_halves = torch.tensor(halves).repeat_interleave(torch.tensor(asked.sizes))
    tape = asked.tape()
    tries = {}
    for scale in sorted(scales):
        found: dict[int, list[AnswerTokens]] = {}
        for layer in range(asked.depth - 1, -1, -every):
            hidden = tape.outputs[layer]
            push = torch.stack([scale * direction[layer] for direction in directions])[spot_halves]
            found[layer] = asked.onwards(tape, layer, asked.put(hidden, asked.at(hidden) + push.to(hidden)))
        best = [max(found, key=lambda one: _mean(found[one], target, 1 - half)) for half in (0, 1)]
        tries[scale] = [
            Finding.of(Score.of(found[best[half]][i]), f"layer {best[half]}") for i, half in enumerate(halves)
        ]
    return target.along("", tries, "scale")


def _mean(tokens: Sequence[AnswerTokens], target: Target, half: int) -> float:
    """Mean log-probability of the answers of the facts of a half."""
    return fmean(float(tokens[i].log_p.double().sum()) for i in range(len(target.facts)) if i % 2 == half)
