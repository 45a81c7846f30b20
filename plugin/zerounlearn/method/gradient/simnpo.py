"""SimNPO (arXiv 2410.07163)."""

from __future__ import annotations

from torch import Tensor

from zerounlearn.config import Number, option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingAnswers, Term


@methods.register("SimNPO", source="arXiv 2410.07163")
@settings
class SimNPO(RetainingAnswers):
    """NPO without a reference model, by the answer's probability per token."""

    alg_name: str = option("SimNPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(2.5, "Inverse temperature.", gt=0)
    gamma: Number = option(0.0, "Margin; larger asks for lower probabilities.", ge=0)

    def forget_term(self, forget: ForgetSet) -> Term:
        """SimNPO; it needs no reference."""

        def loss(batch: list[int]) -> Tensor:
            log_p = forget.log_p(batch)
            return objectives.simnpo(log_p, forget.sizes(batch).to(log_p.device), self.beta, self.gamma)

        return Term(len(forget.answers), loss)
