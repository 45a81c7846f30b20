"""The columns of tables and plots: of registered metrics, of the joint score, of what a run costs, and of tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from zerounlearn.evaluation.registry import Column, Goal, Group, in_order, probability_of

__all__ = ["Column", "Goal", "Group", "column", "columns"]

_JOINT = Column(
    "score",
    "Score",
    Goal.HIGHER,
    Group.CORE,
    "Forgetting and keeping in one: the harmonic mean of what is forgotten of Eff. and Gen., of what is kept of each "
    "specificity, and of the perplexity before over that after; 1 is perfect, and one miss spoils it.",
)
_COST = (
    Column("unlearn_seconds", "Unlearning", Goal.LOWER, Group.COST, "Wall-clock time of unlearning a forget set.", "s"),
    Column("evaluate_seconds", "Evaluation", Goal.NONE, Group.COST, "Wall-clock time of measuring.", "s"),
    Column("peak_bytes", "Peak memory", Goal.LOWER, Group.COST, "Largest memory held.", "GiB", 2.0**-30),
)


def column(metric: str) -> Column:
    """The column of a metric; an unknown one keeps its name and has no better direction."""
    known = _known()
    if metric in known:
        return known[metric]
    if metric.startswith("lm_eval/"):
        return _task(metric)
    if metric.startswith("audit/"):
        return _attack(metric)
    stem = metric.removesuffix("_probability")
    if stem != metric:
        return probability_of(column(stem))
    return Column(metric, metric.replace("_", " "), Goal.NONE, Group.OTHER, "No description.", digits=3)


def columns(metrics: Iterable[str]) -> list[Column]:
    """Of each metric once, in the order of print: known ones as registered, then the others by name."""
    order = {metric: i for i, metric in enumerate(_known())}
    groups = list(Group)

    def key(c: Column) -> tuple[int, int, str]:
        known = order.get(c.metric, order.get(c.metric.removesuffix("_probability"), len(order)))
        return groups.index(c.group), known, c.metric

    return sorted((column(metric) for metric in set(metrics)), key=key)


def _known() -> dict[str, Column]:
    return {one.column.metric: one.column for one in in_order().values()} | {c.metric: c for c in (_JOINT, *_COST)}


def _attack(metric: str) -> Column:
    """`audit/<attack>`: facts that it brings back above the controls; `any` of them, and `kl`, the edit's distance."""
    name = metric.partition("/")[2]
    if name == "kl":
        meaning = "Mean KL(base ‖ edited) on ordinary text, nats a token, of what was attacked."
        return Column(metric, "KL", Goal.LOWER, Group.ATTACKS, meaning, digits=4)
    if name == "holes":
        meaning = "Questions beside the facts that the base model answers and the edited model no longer does."
        return Column(metric, "Holes", Goal.LOWER, Group.ATTACKS, meaning, "%", 100.0, 1)
    by = "any attack" if name == "any" else f"the strongest variant of the attack {name!r}, above the controls"
    meaning = f"Facts that come back by {by}."
    return Column(metric, name.replace("_", " ").capitalize(), Goal.LOWER, Group.ATTACKS, meaning, "%", 100.0, 1)


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
