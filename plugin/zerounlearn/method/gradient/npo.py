"""Negative preference optimisation (arXiv 2404.05868)."""

from __future__ import annotations

from zerounlearn.config import Number, option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingAnswers, Term


@methods.register("NPO", source="arXiv 2404.05868")
@settings
class NPO(RetainingAnswers):
    """Negative preference optimisation."""

    alg_name: str = option("NPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; for β → 0 this is gradient ascent.", gt=0)

    def forget_term(self, forget: ForgetSet) -> Term:
        """NPO against the model as it was."""
        reference = forget.reference()
        return Term(len(forget.answers), lambda batch: objectives.npo(forget.log_p(batch), reference[batch], self.beta))
