"""Membership inference: whether a text that was to be forgotten still looks like training data.

Each attack scores one text from the log-probabilities of its tokens; the higher the score, the more it looks like
a member. `auc` compares the forget set with texts the model never saw: 0.5 is what forgetting aims at, above it the
forget set still stands out, and below it stands out by being unnaturally unlikely.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from zerounlearn.evaluation.registry import Goal, Group, metric
from zerounlearn.model.answers import AnswerTokens
from zerounlearn.model.tokens import Query

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

PERCENT = 20.0
"""Of the tokens; what the min-k papers find best on WikiMIA."""


def loss(log_p: Tensor) -> float:
    """Mean log-probability of the tokens, the loss attack with its sign turned.

    Yeom et al. 2018 (arXiv 1709.01604).
    """
    return float(log_p.double().mean())


def min_k(log_p: Tensor, percent: float = PERCENT) -> float:
    """Mean log-probability of the `percent` % least likely tokens, of one at least.

    Min-K % Prob, Shi et al. 2024 (arXiv 2310.16789). At 100 % it is `loss`.

    Raises:
        ValueError: `percent` is not above 0 and at most 100.
    """
    return _lowest(log_p.double(), percent)


def min_k_plus_plus(tokens: AnswerTokens, percent: float = PERCENT) -> float:
    """Mean of the `percent` % lowest (log p − μ)/σ, μ and σ those of log p under the model's own distribution.

    Min-K %++, Zhang et al. 2025 (arXiv 2404.02936). Where the distribution is uniform over what
    it allows, σ is 0 and so is log p − μ: such a token scores 0.

    Raises:
        ValueError: the pass was made without `moments`, or `percent` is out of range.
    """
    if tokens.mean is None or tokens.sd is None:
        raise ValueError("min-k %++ needs the mean and deviation of log-probabilities: ask the pass for moments=True")
    return _lowest((tokens.log_p - tokens.mean).double() / tokens.sd.double().clamp_min(1e-6), percent)


def zlib_ratio(log_p: Tensor, text: str) -> float:
    """Mean log-probability of the tokens per byte of the compressed text.

    Carlini et al. 2021 (arXiv 2012.07805), section 5.2: log-perplexity over zlib entropy, with its sign turned.
    """
    return loss(log_p) / len(zlib.compress(text.encode("utf-8")))


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Probability that a member scores above another text, ties counted by half; the area under the ROC curve.

    Raises:
        ValueError: one side is empty, or a score is NaN.
    """
    if not members or not others:
        raise ValueError(f"AUC of {len(members)} members and {len(others)} others: expected at least one of each")
    if any(math.isnan(score) for score in (*members, *others)):
        raise ValueError("AUC of scores with NaN: the model's log-probabilities are not finite")
    from scipy import stats

    return float(stats.mannwhitneyu(members, others, method="asymptotic").statistic) / (len(members) * len(others))


def _lowest(values: Tensor, percent: float) -> float:
    if not 0 < percent <= 100:
        raise ValueError(f"percent={percent!r}: expected a number above 0 and at most 100")
    count = max(1, int(values.numel() * percent / 100 + 1e-9))
    return float(values.sort().values[:count].mean())


_ATTACKS: dict[str, tuple[str, str, str, Callable[[AnswerTokens, str], float]]] = {
    "mia_loss": ("MIA loss", "the loss", "arXiv 1709.01604", lambda tokens, _: loss(tokens.log_p)),
    "mia_min_k": (
        "MIA min-k",
        "the k % least likely tokens",
        "arXiv 2310.16789",
        lambda tokens, _: min_k(tokens.log_p),
    ),
    "mia_min_k_pp": (
        "MIA min-k++",
        "min-k %, standardised",
        "arXiv 2404.02936",
        lambda tokens, _: min_k_plus_plus(tokens),
    ),
    "mia_zlib": (
        "MIA zlib",
        "loss over zlib entropy",
        "arXiv 2012.07805",
        lambda tokens, text: zlib_ratio(tokens.log_p, text),
    ),
}
"""Label, words, source and score of each attack."""


def _attack(score: Callable[[AnswerTokens, str], float]) -> Callable[[Asked], float | None]:
    def measure(asked: Asked) -> float | None:
        """AUC between the forget statements and the same statements with false answers.

        Texts of the same form that the model has not been trained on: 0.5 where nothing tells the true ones apart.
        """
        if not asked.questions:
            return None
        sides = (
            [Query(q.prompt, q.answer).text for q in asked.questions],
            [Query(q.prompt, answer).text for q in asked.questions for answer in q.perturbed],
        )
        tokens = dict(zip([*sides[0], *sides[1]], asked.statements([*sides[0], *sides[1]]), strict=True))
        members, others = ([score(tokens[text], text) for text in side] for side in sides)
        return auc(members, others)

    return measure


for _name, (_label, _words, _source, _score) in _ATTACKS.items():
    metric(
        _name,
        label=_label,
        goal=Goal.HALF,
        group=Group.MEMORY,
        digits=3,
        source=_source,
        meaning=f"Membership inference by {_words} ({_source}): area under the ROC curve, 0.5 if nothing stands out.",
    )(_attack(_score))
