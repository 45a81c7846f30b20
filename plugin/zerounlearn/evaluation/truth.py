"""TOFU's truth ratio, forget quality and model utility (Maini et al. 2024, arXiv 2401.06121, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from zerounlearn.data.entry import Question
from zerounlearn.evaluation.memorisation import probability, probability_among
from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.evaluation.rouge import rouge_l_recall

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

Mean = Literal["arithmetic", "geometric"]
_CHOICES = ("real_authors", "world_facts")
"""TOFU's parts whose probability is taken among the answers to choose from."""


def truth_ratio(paraphrased: Tensor, perturbed: Sequence[Tensor], *, mean: Mean = "arithmetic") -> float:
    """How likely false answers are against the true one, each normalised for length; 0 or more.

    Equation 1: R = (1/m · Σ P(âᵢ|q)^(1/|âᵢ|)) / P(ã|q)^(1/|ã|). A model that knows the answer has R near 0, one that
    never saw it near 1; forgetting is judged by the distribution of R (`forget_quality`), not by its height.

    Args:
        paraphrased: log-probabilities of the true answer's paraphrase (t,); of the answer itself for real authors
            and world facts.
        perturbed: log-probabilities of each false answer.
        mean: over the false answers; the paper's equation is arithmetic, while its `aggregate_eval_stat.py` and
            open-unlearning average log-probabilities, which is geometric.

    Raises:
        ValueError: there is no false answer, or `mean` is neither.
    """
    if not perturbed:
        raise ValueError("truth ratio without a false answer: give at least one perturbed answer")
    if mean not in ("arithmetic", "geometric"):
        raise ValueError(f"mean={mean!r}: expected 'arithmetic' or 'geometric'")
    relative = [float(log_p.double().mean() - paraphrased.double().mean()) for log_p in perturbed]
    if mean == "geometric":
        return _exp(math.fsum(relative) / len(relative))
    return math.fsum(_exp(r) for r in relative) / len(relative)


def truth_ratio_known(ratios: Sequence[float]) -> float:
    """Mean of max(0, 1 − R), higher is better on what is to be kept; one of model utility's numbers (section 2.2.1)."""
    return float(np.maximum(0.0, 1.0 - _some(ratios)).mean())


def truth_ratio_forgotten(ratios: Sequence[float]) -> float:
    """Mean of min(R, 1/R): 1 where true and false answers are equally likely, as on what was never learnt.

    TOFU's published evaluation (`aggregate_eval_stat.py`), reported for the forget set.
    """
    values = _some(ratios)
    with np.errstate(divide="ignore"):
        return float(np.minimum(values, 1.0 / values).mean())


@dataclass(frozen=True)
class ForgetQuality:
    """Of a two-sample Kolmogorov-Smirnov test.

    Attributes:
        p_value: forget quality; near 1 the models cannot be told apart, below 0.05 they can. TOFU shows its log.
        statistic: the largest distance between the two distributions, 0 to 1.
    """

    p_value: float
    statistic: float


def forget_quality(ratios: Sequence[float], reference: Sequence[float]) -> ForgetQuality:
    """Whether truth ratios on the forget set come from the distribution of a model that never saw it.

    Section 2.2.2, "Forget Quality". The test sees ranks only: it is the same for R and for 1/R.

    Args:
        ratios: truth ratios of the model that forgot.
        reference: those of a model trained on the retain set alone, on the same questions.
    """
    from scipy import stats

    test = stats.ks_2samp(_some(ratios), _some(reference))
    return ForgetQuality(float(test.pvalue), float(test.statistic))


def model_utility(numbers: Mapping[str, float]) -> float:
    """Harmonic mean of the nine numbers of what is to be kept; one at 0 makes it 0.

    Section 2.2.1, "Model Utility": probability, ROUGE-L recall and truth ratio (`truth_ratio_known`), each on the
    retain set, real authors and world facts.

    Args:
        numbers: by name, each 0 to 1. A study without TOFU's three sets may give other than nine.

    Raises:
        ValueError: there is none, or one is no number from 0 to 1.
    """
    if not numbers:
        raise ValueError("model utility of no numbers: give at least one")
    for name, value in numbers.items():
        if not 0 <= value <= 1:  # also rejects NaN
            raise ValueError(f"model utility: {name}={value!r}: expected a number from 0 to 1")
    from scipy import stats

    return float(stats.hmean(list(numbers.values())))


def _some(ratios: Sequence[float]) -> np.ndarray:
    values = np.asarray(ratios, dtype=np.float64)
    if not values.size or np.isnan(values).any():
        raise ValueError(f"{values.size} truth ratios, {int(np.isnan(values).sum())} of them NaN: expected numbers")
    return values


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # a broken model's ratio may overflow, and counts as very large


def truth_ratios(asked: Asked) -> list[float]:
    """TOFU's R of each of the draw's questions."""
    items = [(q.prompt, text) for q in asked.questions for text in (q.paraphrased, *q.perturbed)]
    tokens = iter(asked.answers(items))
    ratios = []
    for question in asked.questions:
        paraphrased, *perturbed = (next(tokens).log_p for _ in range(1 + len(question.perturbed)))
        ratios.append(truth_ratio(paraphrased, perturbed))
    return ratios


@dataclass(frozen=True)
class Answered:
    """One question's numbers: `probability` (or among the options), `rouge` (ROUGE-L recall), `truth_ratio` (R)."""

    probability: float
    rouge: float
    truth_ratio: float


def answered(asked: Asked, questions: Sequence[Question], *, options: bool = False) -> list[Answered]:
    """TOFU's three numbers of each question, in order.

    Args:
        asked: the model.
        questions: with at least one false answer each.
        options: take the probability among the false answers, as TOFU does for real authors and world facts.
    """
    tokens = iter(asked.answers([(q.prompt, t) for q in questions for t in (q.answer, q.paraphrased, *q.perturbed)]))
    texts = asked.texts([q.prompt for q in questions], asked.settings.generation_tokens)
    rows = []
    for question, rouge in zip(questions, rouge_l_recall(texts, [q.answer for q in questions]), strict=True):
        answer, paraphrased, *perturbed = (next(tokens).log_p for _ in range(2 + len(question.perturbed)))
        p = probability(answer)
        if options:
            p = probability_among(p, [probability(log_p) for log_p in perturbed])
        rows.append(Answered(p, rouge, truth_ratio(paraphrased, perturbed)))
    return rows


@metric("truth_ratio", label="Truth ratio", goal=Goal.NONE, group=Group.MEMORY, digits=3, source="arXiv 2401.06121")
def _ratio(asked: Asked) -> float | None:
    """How likely false answers are against the true one (TOFU, arXiv 2401.06121); judged by forget quality."""
    return truth_ratio_forgotten(truth_ratios(asked)) if asked.questions else None


@metric(
    "forget_quality",
    label="Forget quality",
    goal=Goal.HIGHER,
    group=Group.MEMORY,
    exponent=True,
    needs={"reference_model": "forget_quality compares with a model: name it with reference_model"},
    source="arXiv 2401.06121",
)
def _quality(asked: Asked) -> float | None:
    """P of a KS test against the truth ratios of a model that never saw the set (TOFU)."""
    if asked.reference is None or not asked.questions:
        return None
    return forget_quality(truth_ratios(asked), asked.reference).p_value


@metric(
    "model_utility",
    label="Utility",
    goal=Goal.HIGHER,
    unit="%",
    group=Group.MEMORY,
    needs={"utility": "model_utility needs a data set with `utility`, the parts to take it on"},
    source="arXiv 2401.06121",
)
def _utility(asked: Asked) -> float | None:
    """Harmonic mean of what is to be kept (TOFU, arXiv 2401.06121).

    Of probability, ROUGE-L recall and truth ratio over the parts; TOFU takes the probability among the answers to
    choose from on real authors and world facts.
    """
    numbers: dict[str, float] = {}
    for name, questions in asked.utility.items():
        rows = answered(asked, questions, options=name in _CHOICES)
        numbers[f"{name} probability"] = fmean(row.probability for row in rows)
        numbers[f"{name} rouge"] = fmean(row.rouge for row in rows)
        numbers[f"{name} truth ratio"] = truth_ratio_known([row.truth_ratio for row in rows])
    return model_utility(numbers) if numbers else None
