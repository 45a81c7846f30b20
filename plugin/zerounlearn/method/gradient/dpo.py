"""Direct preference optimisation as unlearning: of the neutral target, or of "I don't know." (arXiv 2305.18290)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from zerounlearn.config import Number, option, settings
from zerounlearn.data.request import EOS, PAD, Request, target_ids
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingAnswers, Term


@methods.register("DPO-Unlearn", source="arXiv 2305.18290")
@settings
class DPO(RetainingAnswers):
    """Preference of the neutral target over the sensitive answer.

    Not named DPO: a current EasyEdit has an editing method and a class of that name.
    """

    alg_name: str = option("DPO-Unlearn", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; larger stays closer to the model as it was.", gt=0)
    neutral_target: str = option("eos", "What is preferred where a request does not say: 'eos', 'pad', or a text.")

    def validate(self) -> None:
        """As for all, and the neutral target."""
        super().validate()
        if not self.neutral_target.strip():
            raise ConfigError(f"neutral_target={self.neutral_target!r}: expected 'eos', 'pad' or a text")

    def forget_term(self, forget: ForgetSet) -> Term:
        """The neutral target is preferred."""
        return _preference(forget, forget.requests, self.neutral_target, self.beta)


@methods.register("IdkPO", source="arXiv 2305.18290, 2401.06121")
@settings
class IdkPO(RetainingAnswers):
    """Preference of "I don't know." over the sensitive answer."""

    alg_name: str = option("IdkPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; larger stays closer to the model as it was.", gt=0)
    idk_text: str = option("I don't know.", "The preferred answer to every request.")

    def validate(self) -> None:
        """As for all, and the preferred answer."""
        super().validate()
        if not self.idk_text.strip() or self.idk_text in (EOS, PAD):
            raise ConfigError(f"idk_text={self.idk_text!r}: expected a text; a token is preferred by 'DPO-Unlearn'")

    def forget_term(self, forget: ForgetSet) -> Term:
        """The text is preferred, whatever neutral target a request names."""
        requests = [replace(request, neutral=None) for request in forget.requests]
        return _preference(forget, requests, self.idk_text, self.beta)


def _preference(forget: ForgetSet, requests: Sequence[Request], preferred_text: str, beta: float) -> Term:
    """DPO's loss on pairs of a preferred text and the sensitive answer.

    Raises:
        RequestError: a sensitive answer equals what would be preferred to it.
    """
    preferred = [forget.sample(r.prompt, target_ids(forget.tokenizer, r, preferred_text)) for r in requests]
    preferred_before, answers_before = forget.reference(preferred), forget.reference()

    def loss(batch: list[int]) -> Tensor:
        both = forget.reader.log_p([*(preferred[i] for i in batch), *(forget.answers[i] for i in batch)])
        wanted, unwanted = both.split(len(batch))
        return objectives.dpo(wanted, preferred_before[batch], unwanted, answers_before[batch], beta)

    return Term(len(forget.answers), loss)
