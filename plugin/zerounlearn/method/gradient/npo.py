"""Negative preference optimisation (arXiv 2404.05868)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from zerounlearn.config import Number, option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingAnswers, Term

PUBLISHED: Mapping[str, Any] = {
    "epochs": 10,
    "shuffle": False,
    "end_token": True,
    "lr": 1e-5,
    "max_grad_norm": 0.0,
    "minibatch_size": 4,
}
"""What the runs of ZeroUnlearn's published code (baselines/NPO) have in common."""


@methods.register("NPO", source="arXiv 2404.05868")
@settings
class NPO(RetainingAnswers):
    """Negative preference optimisation."""

    alg_name: str = option("NPO", "The name under which EasyEdit knows the method.")
    preset: Literal["default", "paper", "paper_grad_diff", "paper_kl"] = option(
        "default",
        "The runs of ZeroUnlearn's published code (arXiv 2605.18879): 'paper' without a retain term, "
        "'paper_grad_diff' with the retain answers' NLL, 'paper_kl' with the divergence from the model as it was.",
    )
    beta: Number = option(0.1, "Inverse temperature; for β → 0 this is gradient ascent.", gt=0)

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {**PUBLISHED, "retain_weight": 0.0},
        "paper_grad_diff": {**PUBLISHED, "retain_loss": "nll_tokens"},
        "paper_kl": {**PUBLISHED, "retain_loss": "kl_rows"},
    }

    def forget_term(self, forget: ForgetSet) -> Term:
        """NPO against the model as it was."""
        reference = forget.reference()
        return Term(len(forget.answers), lambda batch: objectives.npo(forget.log_p(batch), reference[batch], self.beta))
