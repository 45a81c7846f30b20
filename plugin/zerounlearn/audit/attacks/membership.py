"""Whether an answer still looks like something that the model was trained on: scores of its tokens after the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.errors import AuditError
from zerounlearn.evaluation.membership import auc, loss, min_k, min_k_plus_plus, zlib_ratio
from zerounlearn.method.gradient.sequences import Reader, Sample
from zerounlearn.model.answers import answer_tokens
from zerounlearn.model.hooks import frozen
from zerounlearn.model.tokens import Query, continuation

_CHANCE = 0.5
"""The AUC of a model that never read the facts, which none has at hand."""


@attack(
    "membership",
    label="Membership",
    access=Access.OUTPUTS,
    quick={},
    source="arXiv 1709.01604 (loss), 2012.07805 (zlib), 2310.16789, 2404.02936 (min-k), 2407.06460 (privleak)",
)
def membership(target: Target) -> Iterator[Outcome]:
    """Membership inference from the answers' tokens: loss, zlib, min-k, min-k++.

    Only the answer is scored, given its prompt: that a made-up name is improbable tells nothing. There is no reference
    model: one that never read the facts is nothing an attacker has.
    """
    queries = target.asked([fact.request.query for fact in target.all])
    tokens = answer_tokens(target.model, target.tokenizer, queries, moments=True)
    yield _outcome(target, "loss", [loss(one.log_p) for one in tokens])
    yield _outcome(target, "zlib", [zlib_ratio(t.log_p, q.answer) for t, q in zip(tokens, queries, strict=True)])
    yield _outcome(target, "min-k", [min_k(one.log_p) for one in tokens])
    yield _outcome(target, "min-k++", [min_k_plus_plus(one) for one in tokens])


@attack("gradient_norm", label="Gradient norm", access=Access.WEIGHTS, standard={}, source="arXiv 2402.17012")
def gradient_norm(target: Target) -> Iterator[Outcome]:
    """Membership inference from the norm of the gradient of the answer's loss, which is small for what was learnt."""
    queries = target.asked([fact.request.query for fact in target.all])
    yield _outcome(target, "", _steepness(target, queries))


def _outcome(target: Target, variant: str, scores: Sequence[float]) -> Outcome:
    """Facts that stand out from their own made-up subjects; AUC and MUSE's privleak are of the scores as they are."""
    facts, controls = target.split(scores)
    area = auc(facts, [score for each in controls for score in each])
    note = (
        f"AUC {area:.3f} of the facts against the made-up subjects; "
        f"privleak {(area - _CHANCE) / _CHANCE:+.1%} against an AUC of {_CHANCE}"
    )
    return target.by_score(variant, target.calibrated(scores), note=note)


def _steepness(target: Target, queries: Sequence[Query]) -> list[float]:
    """Minus the norm of the gradient of each answer's loss per token by all weights.

    Raises:
        AuditError: the weights are offloaded or quantised.
    """
    weights = list(target.model.parameters())
    if any(weight.is_meta or not weight.is_floating_point() for weight in weights):
        raise AuditError("it takes gradients of the weights, which are offloaded or quantised: load the model whole")
    reader, norms = Reader(target.model, target.tokenizer), []
    with frozen(target.model), torch.enable_grad():
        for weight in weights:
            weight.requires_grad_(True)
        for query in queries:
            answer = continuation(target.tokenizer, *query)
            sample = Sample.of(target.tokenizer, query.prompt, answer)
            mean = reader.log_p([sample]).sum() / sample.size
            parts = torch.autograd.grad(mean, weights, allow_unused=True)
            squares = [torch.linalg.vector_norm(part.float()).double().square() for part in parts if part is not None]
            norms.append(-float(torch.stack(squares).sum().sqrt()))
    return norms
