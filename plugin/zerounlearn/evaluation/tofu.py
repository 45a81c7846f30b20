"""TOFU's three numbers of a question, from two passes over the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.entry import Question
from zerounlearn.evaluation.memorisation import probability, probability_among
from zerounlearn.evaluation.rouge import rouge_l_recall
from zerounlearn.evaluation.truth import Mean, truth_ratio
from zerounlearn.model.answers import answer_tokens
from zerounlearn.model.generate import generate


@dataclass(frozen=True)
class Answered:
    """One question's numbers: `probability` (or among the options), `rouge` (ROUGE-L recall), `truth_ratio` (R)."""

    probability: float
    rouge: float
    truth_ratio: float


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    options: bool = False,
    end: bool = False,
    mean: Mean = "arithmetic",
    tokens: int = 200,
) -> list[Answered]:
    """Probability, ROUGE-L recall and truth ratio of each question, in order.

    Args:
        model: any causal language model, left as it was.
        tokenizer: its tokenizer.
        questions: with at least one false answer each.
        options: take the probability among the false answers, as TOFU does for real authors and world facts.
        end: see `answer_tokens`.
        mean: see `truth_ratio`.
        tokens: see `generate`.
    """
    items = [(q.prompt, text) for q in questions for text in (q.answer, q.paraphrased, *q.perturbed)]
    log_ps = iter([t.log_p for t in answer_tokens(model, tokenizer, items, end=end)])
    said = rouge_l_recall(
        generate(model, tokenizer, [q.prompt for q in questions], tokens=tokens), [q.answer for q in questions]
    )
    answered = []
    for question, rouge in zip(questions, said, strict=True):
        answer, paraphrased, *perturbed = (next(log_ps) for _ in range(2 + len(question.perturbed)))
        p = probability(answer)
        if options:
            p = probability_among(p, [probability(log_p) for log_p in perturbed])
        answered.append(Answered(p, rouge, truth_ratio(paraphrased, perturbed, mean=mean)))
    return answered
