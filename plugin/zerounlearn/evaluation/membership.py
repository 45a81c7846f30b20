"""Membership inference: whether a text that was to be forgotten still looks like training data.

Each attack scores one text from the log-probabilities of its tokens; the higher the score, the more it looks like
a member. `auc` compares the forget set with texts the model never saw: 0.5 is what forgetting aims at, above it the
forget set still stands out, and below it stands out by being unnaturally unlikely.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from scipy import stats
from torch import Tensor

from zerounlearn.model.answers import AnswerTokens

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
    return float(stats.mannwhitneyu(members, others, method="asymptotic").statistic) / (len(members) * len(others))


def _lowest(values: Tensor, percent: float) -> float:
    if not 0 < percent <= 100:
        raise ValueError(f"percent={percent!r}: expected a number above 0 and at most 100")
    count = max(1, int(values.numel() * percent / 100 + 1e-9))
    return float(values.sort().values[:count].mean())
