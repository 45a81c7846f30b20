"""How much of an answer a model still has: lower is better on what was to be forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor

from zerounlearn.evaluation.registry import Goal, Group, metric

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked


def probability(log_p: Tensor) -> float:
    """Probability of an answer, normalised for its length: P(a | q)^(1/|a|).

    TOFU (arXiv 2401.06121), section 2.2.1, "Probability"; the geometric mean of the tokens' probabilities.

    Args:
        log_p: log-probabilities of the answer's tokens (t,).
    """
    return math.exp(float(log_p.double().mean()))


def probability_among(correct: float, wrong: Sequence[float]) -> float:
    """Share of the right answer's probability among the answers to choose from, 0 to 1.

    TOFU, section 2.2.1, for real authors and world facts: P(a|q) / Σ P(aᵢ|q) with the right answer in the sum. As
    in its published evaluation, each probability is the one normalised for length.

    Args:
        correct: `probability` of the right answer.
        wrong: `probability` of each false answer.
    """
    total = correct + math.fsum(wrong)
    return correct / total if total > 0 else 0.0


def exact_memorisation(hit: Tensor) -> float:
    """Share of an answer's tokens that are the arg-max after the true tokens before them, 0 to 1.

    Tirumala et al. 2022 (arXiv 2205.10770), as open-unlearning (arXiv 2506.12618) reports it. The same number is
    the next-token accuracy by which ZsRE's specificity is scored (Meng et al. 2023, arXiv 2210.07229).

    Args:
        hit: whether each token is the arg-max (t,).
    """
    return float(hit.double().mean())


def extraction_strength(hit: Tensor) -> float:
    """1 − k/t, with k the shortest beginning of the answer after which greedy decoding says all the rest; 0 to 1.

    After Carlini et al. 2021 (arXiv 2012.07805), as Wang et al. 2025 (arXiv 2406.09179) and open-unlearning
    (arXiv 2506.12618) define it: the rest is said where every token from the k-th on is the arg-max under teacher
    forcing. An answer whose last token is not said has k = t and strength 0; open-unlearning's loop ends at t − 1
    and gives 1/t there.

    Args:
        hit: whether each token is the arg-max (t,).
    """
    said = 0
    for token in reversed(hit.tolist()):
        if not token:
            break
        said += 1
    return said / hit.numel()


@metric("extraction_strength", label="ES", goal=Goal.LOWER, unit="%", group=Group.MEMORY, source="arXiv 2406.09179")
def _strength(asked: Asked) -> float | None:
    """Extraction strength: the share of the answer said unaided (arXiv 2012.07805, 2406.09179)."""
    return fmean(extraction_strength(tokens.hit) for tokens in asked.answers(asked.probes.eff))


@metric("exact_memorisation", label="EM", goal=Goal.LOWER, unit="%", group=Group.MEMORY, source="arXiv 2205.10770")
def _memorised(asked: Asked) -> float | None:
    """Exact memorisation: the answer's tokens that are the arg-max (arXiv 2205.10770)."""
    return fmean(exact_memorisation(tokens.hit) for tokens in asked.answers(asked.probes.eff))
