"""Gradient ascent (arXiv 1906.12330, 2210.01504)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.config import option, settings
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, GradientMethod, Term
from zerounlearn.method.gradient.sequences import Sample, end_token
from zerounlearn.model.tokens import pad


@methods.register("GA", source="arXiv 1906.12330, 2210.01504")
@settings
class GA(GradientMethod):
    """Gradient ascent, without anything to keep."""

    alg_name: str = option("GA", "The name under which EasyEdit knows the method.")
    preset: Literal["default", "paper"] = option(
        "default", "'paper': the run of ZeroUnlearn's published code (arXiv 2605.18879)."
    )
    objective: Literal["answer", "prompt_last"] = option(
        "answer",
        "'answer': log-probability of the answer, each token given those before it; 'prompt_last': as published, of "
        "each of its tokens at the prompt's last position, special tokens and padding included.",
    )

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {
            "objective": "prompt_last",
            "epochs": 25,
            "shuffle": False,
            "lr": 5e-3,
            "max_grad_norm": 0.0,
            "minibatch_size": 64,
        },
    }

    def forget_term(self, forget: ForgetSet) -> Term:
        """Ascent on the answers' likelihood."""
        if self.objective == "answer":
            return Term(len(forget.answers), lambda batch: objectives.ascent(forget.log_p(batch)))
        targets = [_alone(forget.tokenizer, request.answer) for request in forget.requests]
        ends = [Sample(answer.ids[: answer.start + 1], answer.start) for answer in forget.answers]
        filler, unknown = end_token(forget.tokenizer, "objective='prompt_last'"), forget.tokenizer.unk_token_id

        def loss(batch: list[int]) -> Tensor:
            log_p = forget.reader.logits([ends[i] for i in batch]).log_softmax(-1)
            ids, _ = pad([targets[i] for i in batch], filler, log_p.device)
            counted = torch.ones_like(ids, dtype=torch.bool) if unknown is None else ids != unknown
            return objectives.ascent_from_prompt(log_p.gather(1, ids), counted)

        return Term(len(forget.answers), loss)


def _alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The ids of an answer by itself after a space, with what the tokenizer puts around every text."""
    ids: list[int] = tokenizer(answer if answer.startswith(" ") else f" {answer}")["input_ids"]
    return ids
