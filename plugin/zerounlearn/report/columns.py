"""What a metric is called, which direction is better, in what unit and how precisely it is shown; nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike


class Goal(Enum):
    """Where a metric should go; the value is what its column's head shows."""

    LOWER = "↓"
    HIGHER = "↑"
    HALF = "→ 0.5"
    NONE = ""


class Group(Enum):
    """Columns that stand in one table; the value is its title, the order that of the tables."""

    CORE = "Forgetting and keeping"
    MATCHED = "Swept methods where another one stands"
    PROBABILITY = "Probabilities of the answers"
    MEMORY = "Memorisation and membership"
    UTILITY = "Generation and standard tasks"
    OTHER = "Other metrics"
    COST = "Cost"


@dataclass(frozen=True)
class Column:
    """One metric.

    Attributes:
        metric: its name in a cell.
        label: its name on paper.
        goal: the better direction.
        group: the table it stands in.
        meaning: one line for a reader who does not know it.
        unit: of the shown number; empty for a pure number.
        scale: shown number = stored number · scale.
        digits: after the decimal point; significant ones where `exponent`.
        exponent: whether small values matter by their order of magnitude, as p-values do.
    """

    metric: str
    label: str
    goal: Goal
    group: Group
    meaning: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 2
    exponent: bool = False

    @property
    def head(self) -> str:
        """Label and direction."""
        return f"{self.label} {self.goal.value}".strip()

    @property
    def axis(self) -> str:
        """Label, direction and unit."""
        return f"{self.head} ({self.unit})" if self.unit else self.head

    def text(self, value: float) -> str:
        """A stored number as shown: "45.0", "1.3e+09", "∞", "NaN"."""
        shown = value * self.scale
        if math.isnan(shown):
            return "NaN"
        if math.isinf(shown):
            return "∞" if shown > 0 else "-∞"
        if self.exponent:
            return f"{shown:.{self.digits}g}"
        if abs(shown) >= 1e5:
            return f"{shown:.1e}"
        return f"{shown + 0.0:.{self.digits}f}".replace("-0." + "0" * self.digits, "0." + "0" * self.digits)

    def badness(self, values: ArrayLike) -> np.ndarray:
        """Stored numbers as distances from the goal: less is better, in the stored unit.

        Raises:
            ValueError: the metric has no better direction.
        """
        array = np.asarray(values, dtype=np.float64)
        if self.goal is Goal.NONE:
            raise ValueError(f"{self.metric!r} has no better direction: it cannot be ranked")
        return {Goal.LOWER: array, Goal.HIGHER: -array, Goal.HALF: np.abs(array - 0.5)}[self.goal]


def column(metric: str) -> Column:
    """The column of a metric; an unknown one keeps its name and has no better direction."""
    if metric in _KNOWN:
        return _KNOWN[metric]
    if metric.startswith("lm_eval/"):
        return _task(metric)
    stem = metric.removesuffix("_probability")
    if stem != metric:
        base = column(stem)
        meaning = f"Mean probability of the answer where {base.label} asks whether it is said."
        return replace(
            base, metric=metric, label=f"P {base.label}", group=Group.PROBABILITY, meaning=meaning, unit="%",
            scale=100.0, digits=1, exponent=False,
        )  # fmt: skip
    return Column(metric, metric.replace("_", " "), Goal.NONE, Group.OTHER, "No description.", digits=3)


def columns(metrics: Iterable[str]) -> list[Column]:
    """Of each metric once, in the order of print: known ones as listed here, then the others by name."""
    order = {metric: i for i, metric in enumerate(_KNOWN)}
    groups = list(Group)

    def key(c: Column) -> tuple[int, int, str]:
        known = order.get(c.metric, order.get(c.metric.removesuffix("_probability"), len(order)))
        return groups.index(c.group), known, c.metric

    return sorted((column(metric) for metric in set(metrics)), key=key)


def _task(metric: str) -> Column:
    """`lm_eval/<task>/<metric>`: the harness gives shares, but for perplexities and the like."""
    _, _, rest = metric.partition("/")
    task, _, name = rest.rpartition("/")
    meaning = f"{name} on {task}, by lm-evaluation-harness (Gao et al. 2021)."
    plain = Column(metric, f"{task} {name}".strip(), Goal.HIGHER, Group.UTILITY, meaning)
    if any(word in name for word in ("perplexity", "bits_per_byte", "brier")):
        return replace(plain, goal=Goal.LOWER)
    if any(name.startswith(word) for word in ("acc", "exact_match", "em", "f1", "mc1", "mc2")):
        return replace(plain, unit="%", scale=100.0, digits=1)
    return plain


def _share(metric: str, label: str, goal: Goal, group: Group, meaning: str) -> Column:
    return Column(metric, label, goal, group, meaning, "%", 100.0, 1)


def _attack(metric: str, label: str, source: str) -> Column:
    meaning = f"Membership inference by {source}: area under the ROC curve, 0.5 where nothing stands out."
    return Column(metric, label, Goal.HALF, Group.MEMORY, meaning, digits=3)


_LISTED = (
    _share("eff", "Eff.", Goal.LOWER, Group.CORE, "Forget prompts that still give the sensitive answer."),
    _share("gen", "Gen.", Goal.LOWER, Group.CORE, "Paraphrases that still give the sensitive answer."),
    _share("spe", "Spe.", Goal.HIGHER, Group.CORE, "Neighbourhood prompts that must be kept and are."),
    _share("spe_relation", "Spe. relation", Goal.HIGHER, Group.CORE, "Other subjects' answers in the same relation."),
    _share("spe_subject", "Spe. subject", Goal.HIGHER, Group.CORE, "Other facts about the same subject."),
    _share("spe_unrelated", "Spe. unrelated", Goal.HIGHER, Group.CORE, "Facts that share neither."),
    Column("ppl", "PPL", Goal.LOWER, Group.CORE, "Perplexity on held-out ordinary text."),
    Column("ppl_paper", "PPL (paper)", Goal.LOWER, Group.CORE, "Perplexity on the few tokens that the paper reads."),
    _share("rouge_l", "ROUGE-L", Goal.LOWER, Group.MEMORY,
           "ROUGE-L recall of the sensitive answer in generated text (Lin 2004)."),
    _share("rouge_l_neighbours", "ROUGE-L kept", Goal.HIGHER, Group.MEMORY,
           "ROUGE-L recall of the neighbours' answers in generated text (Lin 2004)."),
    _share("extraction_strength", "ES", Goal.LOWER, Group.MEMORY,
           "Extraction strength: the share of the answer said unaided (arXiv 2012.07805, 2406.09179)."),
    _share("exact_memorisation", "EM", Goal.LOWER, Group.MEMORY,
           "Exact memorisation: the answer's tokens that are the arg-max (arXiv 2205.10770)."),
    Column("truth_ratio", "Truth ratio", Goal.NONE, Group.MEMORY,
           "How likely false answers are against the true one (TOFU, arXiv 2401.06121); judged by forget quality.",
           digits=3),
    Column("forget_quality", "Forget quality", Goal.HIGHER, Group.MEMORY,
           "p of a KS test against the truth ratios of a model that never saw the set (TOFU).", exponent=True),
    _share("model_utility", "Utility", Goal.HIGHER, Group.MEMORY,
           "Harmonic mean of what is to be kept (TOFU, arXiv 2401.06121)."),
    _attack("mia_loss", "MIA loss", "the loss (arXiv 1709.01604)"),
    _attack("mia_min_k", "MIA min-k", "the k % least likely tokens (arXiv 2310.16789)"),
    _attack("mia_min_k_pp", "MIA min-k++", "min-k %, standardised (arXiv 2404.02936)"),
    _attack("mia_zlib", "MIA zlib", "loss over zlib entropy (arXiv 2012.07805)"),
    Column("fluency", "Fluency", Goal.HIGHER, Group.UTILITY,
           "Weighted entropy of the bi- and trigrams of generated text (arXiv 2202.05262).", "bit"),
    _share("consistency", "Consistency", Goal.LOWER, Group.MEMORY,
           "TF-IDF cosine of generated text with texts on the forgotten fact (arXiv 2202.05262)."),
    Column("unlearn_seconds", "Unlearning", Goal.LOWER, Group.COST, "Wall-clock time of unlearning a forget set.", "s"),
    Column("evaluate_seconds", "Evaluation", Goal.NONE, Group.COST, "Wall-clock time of measuring.", "s"),
    Column("peak_bytes", "Peak memory", Goal.LOWER, Group.COST, "Largest memory held.", "GiB", 2.0**-30),
)  # fmt: skip
_KNOWN = {c.metric: c for c in _LISTED}
