"""Gradient difference (arXiv 2203.12817, 2401.06121)."""

from __future__ import annotations

from zerounlearn.config import option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingAnswers, Term


@methods.register("GradDiff", source="arXiv 2203.12817, 2401.06121")
@settings
class GradDiff(RetainingAnswers):
    """Gradient difference: ascent on the forget set, descent on the retain set."""

    alg_name: str = option("GradDiff", "The name under which EasyEdit knows the method.")

    def forget_term(self, forget: ForgetSet) -> Term:
        """Ascent on the answers' likelihood."""
        return Term(len(forget.answers), lambda batch: objectives.ascent(forget.log_p(batch)))
