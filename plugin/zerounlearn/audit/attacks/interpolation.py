"""On the way back to the base model: how little of the edit has to be taken away."""

from __future__ import annotations

from collections.abc import Iterator

from zerounlearn.audit.pair import between
from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.model.weights import weight_of, with_weights


@attack(
    "interpolation",
    label="Interpolation with the base",
    access=Access.BASE,
    quick={"alphas": (0.25, 0.5, 0.75)},
    standard={"alphas": (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)},
    source="arXiv 2109.01903 (weights between two models)",
)
def interpolation(target: Target, *, alphas: tuple[float, ...]) -> Iterator[Outcome]:
    """Weights between the edited and the base model's: (1 - alpha) of the one and alpha of the other.

    At alpha = 1 it would be the base model, which says every fact; what counts is where on the way facts come back.
    """
    target.need(1, "weights of a base model that differ", len(target.original))
    own = {name: weight_of(target.model, name).clone() for name in target.original}
    tries = {}
    for alpha in sorted(alphas):
        with with_weights(target.model, between(own, target.original, alpha)):
            tries[alpha] = target.plain()
    yield target.along("", tries, "alpha")
