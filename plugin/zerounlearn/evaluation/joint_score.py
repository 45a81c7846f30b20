"""One number for what a model forgets and what it keeps, relative to the model before.

A method that forgets everything by breaking the model must not look good in any column, so both halves are judged
together. The shares that count, each between 0 and 1:

- forgotten: how much less of the forget set is said than before, prompts (`eff`) and paraphrases (`gen`);
- kept: how much of what was said of the same relation, of the same subject and of what is unrelated is said still
  (`spe_relation`, `spe_subject`, `spe_unrelated`; `spe` where a draw has none of these);
- fluent: the perplexity before over that after (`ppl`).

The joint score is their harmonic mean, as close to the worst of them as to the rest together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

FLOOR = 0.01
"""No share counts as less, so that methods which miss one aim are still told apart."""
COLLAPSE = 0.1
"""A model that keeps less of everything than this, or is less fluent than this, has collapsed."""

Numbers = Mapping[str, float | None]
"""Metrics by name, shares from 0 to 1; None is as good as absent."""

_FORGOTTEN = ("eff", "gen")
_KEPT = ("spe_relation", "spe_subject", "spe_unrelated")


def forgotten(before: Numbers, after: Numbers) -> list[float]:
    """Shares of what was said of the forget set that are not said any more; none of what was not known."""
    return [1 - share for share in _ratios(_FORGOTTEN, before, after)]


def kept(before: Numbers, after: Numbers) -> list[float]:
    """Shares of what was said beside the forget set that are said still; none of what was not known."""
    return _ratios(_KEPT, before, after) or _ratios(("spe",), before, after)


def joint_score(before: Numbers, after: Numbers) -> float | None:
    """The harmonic mean of all shares, from `FLOOR` to 1; None where nothing was known to forget, or to keep.

    Args:
        before: the base model's numbers; a metric that is not there, is 0 or not finite gives no share.
        after: the unlearned model's.
    """
    gone, still = forgotten(before, after), kept(before, after)
    if not gone or not still:
        return None
    shares = (*gone, *still, *_fluent(before, after))
    return statistics.harmonic_mean([min(max(share, FLOOR), 1.0) for share in shares])


def collapsed(before: Numbers, after: Numbers) -> bool:
    """Whether there is no model left to speak of: it keeps next to nothing, or its perplexity is tenfold."""
    still = kept(before, after)
    return (bool(still) and statistics.fmean(still) < COLLAPSE) or any(x < COLLAPSE for x in _fluent(before, after))


def _fluent(before: Numbers, after: Numbers) -> list[float]:
    return [0.0 if math.isnan(1 / share) else 1 / share for share in _ratios(("ppl",), before, after) if share]


def _ratios(names: tuple[str, ...], before: Numbers, after: Numbers) -> list[float]:
    pairs = ((before.get(name), after.get(name)) for name in names)
    return [now / then for then, now in pairs if then and math.isfinite(then) and now is not None]
