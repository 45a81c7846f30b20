"""Reading inside: whether hidden states still hold the answer, or still tell that the subject is known."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.states import Asked, known_pairs, paired_states
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.model.tape import Tape

_FOLDS, _PAIRS = 5, 10


@attack(
    "reading",
    label="Reading inside",
    access=Access.ACTIVATIONS,
    quick={"ranks": (1, 5, 20), "pairs": 40, "every": 5},
    standard={"ranks": (1, 2, 5, 10, 20, 50), "pairs": 100, "every": 1},
    needs=["scikit-learn"],
    source="logit lens: nostalgebraist 2020, in audits arXiv 2402.16835; linear probes: 1610.01644",
)
def reading(target: Target, *, ranks: tuple[int, ...], pairs: int, every: int) -> Iterator[Outcome]:
    """The answer's first token read off each layer by the logit lens; and a linear probe for a known subject.

    The lens takes the state at the prompt's last token through the final norm and head: found where the token is among
    the first k at any layer. The probe is a logistic regression on that state, trained on prompts that the model
    answers against the same prompts with made-up subjects, none of them of the audit's; its layer is the one that
    cross-validation likes best. It does not give the answer: it tells whether the model still knows the subject.
    """
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    tape = asked.tape()
    yield _lens(target, asked, tape, ranks)
    known = known_pairs(target, pairs)
    if len(known) >= _PAIRS:
        yield _probe(target, paired_states(target, known), asked.lasts(tape), every)


def _lens(target: Target, asked: Asked, tape: Tape, ranks: tuple[int, ...]) -> Outcome:
    first = asked.wanted[asked.firsts]

    def above(logits: Tensor, ids: Tensor) -> tuple[Tensor]:
        return ((logits > logits.gather(-1, ids[:, None])).sum(-1),)

    places = []
    for layer in range(asked.depth):
        states = asked.at(tape.outputs[layer])[asked.firsts]
        places.append(torch.cat([place for (place,) in asked.read(states, above, first)]))
    best, layer_of = torch.stack(places).min(0)
    tries = {
        float(k): [
            Finding(place < k, 1 / (1 + place), f"layer {layer}")
            for place, layer in zip(best.tolist(), layer_of.tolist(), strict=True)
        ]
        for k in sorted(ranks)
    }
    return target.along("logit lens", tries, "first")


def _probe(target: Target, others: Tensor, states: Tensor, every: int) -> Outcome:
    """From states (layers, 2p, d) of p known prompts, then of their strange ones, and (layers, n, d) of those asked."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = others.shape[1] // 2
    label = [1] * count + [0] * count
    pair = [*range(count), *range(count)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))

    def told(layer: int) -> float:
        folds = GroupKFold(_FOLDS)
        return float(cross_val_score(probe, others[layer].cpu().numpy(), label, groups=pair, cv=folds).mean())

    accuracy = {layer: told(layer) for layer in range(len(others) - 1, -1, -every)}
    layer = max(accuracy, key=lambda one: accuracy[one])
    probe.fit(others[layer].cpu().numpy(), label)
    scores = probe.decision_function(states[layer].cpu().numpy())
    note = f"layer {layer}: it tells {accuracy[layer]:.0%} of other subjects from made-up ones"
    return target.by_score("linear probe", [float(one) for one in scores], note=note, beside=True)
