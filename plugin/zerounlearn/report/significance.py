"""Paired tests over seeds, corrected for the number of them.

The same seed draws the same facts for every method, so values pair by seed. The test is the two-sided paired t; where
every difference is the same, t is not defined, and the exact Wilcoxon signed-rank p stands in. All tests of one table
are one family, corrected by Holm's step-down method (Holm 1979): the chance that any of its marks is false is
at most the level, as far as each test's assumptions hold. Choosing the best of the same values as the reference
favours it a little; a reference named beforehand does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

MINIMUM = 3
"""Pairs below which no test is made."""
FEW = 5
"""Pairs below which a mark rests on the assumption of normal differences more than on the data."""
_EXACT = 12
"""Pairs up to which all 2^n patterns of signs are gone through."""


@dataclass(frozen=True)
class Comparison:
    """One method against the reference in one metric.

    Attributes:
        metric: its name.
        method: label.
        reference: label.
        pairs: seeds that have a value for both.
        difference: mean of method − reference, in the metric's stored unit.
        p_t: two-sided paired t.
        p_wilcoxon: two-sided Wilcoxon signed rank, exact up to 12 pairs; under 6 pairs it cannot fall below 0.05.
        test: "paired t" or "Wilcoxon": the one that counts; empty where there is none.
        p_holm: its p after Holm's correction.
        why_not: reason for there being no test.
    """

    metric: str
    method: str
    reference: str
    pairs: int
    difference: float
    p_t: float = float("nan")
    p_wilcoxon: float = float("nan")
    test: str = ""
    p_holm: float = float("nan")
    why_not: str = ""

    @property
    def mark(self) -> str:
        """‡ below 0.01, † below 0.05, else nothing."""
        return "‡" if self.p_holm < 0.01 else "†" if self.p_holm < 0.05 else ""


def compare(
    metric: str, method: str, reference: str, values: Mapping[int, float], against: Mapping[int, float]
) -> Comparison:
    """One test, not yet corrected.

    Args:
        metric: its name.
        method: label of the one.
        reference: label of the other.
        values: the method's, by seed.
        against: the reference's, by seed.
    """
    seeds = sorted(values.keys() & against.keys())
    one, other = (np.array([side[seed] for seed in seeds], dtype=np.float64) for side in (values, against))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ of two broken models
        d = one - other
    blank = Comparison(metric, method, reference, len(seeds), float(d.mean()) if len(seeds) else float("nan"))
    if len(seeds) < MINIMUM:
        return replace(blank, why_not=f"{len(seeds)} paired seeds: a test needs {MINIMUM}")
    if not np.isfinite(d).all():
        return replace(blank, why_not="a value is not finite")
    # Differences of shares are equal up to rounding only.
    rounding = 1e-9 * max(float(np.abs(one).max()), float(np.abs(other).max()))
    if np.abs(d).max() <= rounding:
        return replace(blank, p_t=1.0, p_wilcoxon=1.0, test="paired t")
    d[np.abs(d) <= rounding] = 0.0
    wilcoxon = _wilcoxon(d)
    if np.ptp(d) <= rounding:
        return replace(blank, p_wilcoxon=wilcoxon, test="Wilcoxon")
    return replace(blank, p_t=float(stats.ttest_1samp(d, 0.0).pvalue), p_wilcoxon=wilcoxon, test="paired t")


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's p; those without a test do not count."""
    tested = [i for i, c in enumerate(family) if c.test]
    found = list(family)
    if tested:
        raw = [family[i].p_t if family[i].test == "paired t" else family[i].p_wilcoxon for i in tested]
        for i, p in zip(tested, multipletests(raw, method="holm")[1], strict=True):
            found[i] = replace(found[i], p_holm=float(p))
    return found


def _wilcoxon(d: np.ndarray) -> float:
    """Exact for few pairs: by table, or, where ranks are tied as those of shares are, by all patterns of signs."""
    tied = len(np.unique(np.abs(d[d != 0.0]))) < len(d)
    if len(d) > _EXACT:
        return float(stats.wilcoxon(d).pvalue)
    method = stats.PermutationMethod(n_resamples=2**_EXACT) if tied else "exact"
    return float(stats.wilcoxon(d, method=method).pvalue)
