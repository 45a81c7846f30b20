"""Gradient ascent (arXiv 1906.12330, 2210.01504)."""

from __future__ import annotations

from zerounlearn.config import option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, GradientMethod, Term


@methods.register("GA", source="arXiv 1906.12330, 2210.01504")
@settings
class GA(GradientMethod):
    """Gradient ascent, without anything to keep."""

    alg_name: str = option("GA", "The name under which EasyEdit knows the method.")

    def forget_term(self, forget: ForgetSet) -> Term:
        """Ascent on the answers' likelihood."""
        return Term(len(forget.answers), lambda batch: objectives.ascent(forget.log_p(batch)))
