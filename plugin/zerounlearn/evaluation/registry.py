"""The metrics of a study: each is a function that is registered, with all that an output must know about it.

A metric is written in one place:

    @metric("answer_length", label="Length", goal=Goal.NONE, meaning="Tokens of a sensitive answer.")
    def _length(asked: Asked) -> float | None:
        return fmean(len(tokens.ids) for tokens in asked.answers(asked.probes.eff))

Without `meaning`, the first line of the docstring stands in tables and guides. The function gets an `Asked`, which
runs each prompt once for all metrics, and gives its number, or None where the draw has nothing for it. A package of
somebody else's registers its own through the entry-point group `zerounlearn.plugins`, and a study takes it by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from zerounlearn.evaluation.asked import Asked

_MODULES = tuple(
    f"zerounlearn.evaluation.{name}"
    for name in (
        *("probes", "false_answers", "multi_hop", "perplexity", "rouge"),
        *("memorisation", "truth", "membership", "fluency"),
    )
)


class Goal(Enum):
    """Where a metric should go; the value is what its column's head shows."""

    LOWER = "↓"
    HIGHER = "↑"
    HALF = "→ 0.5"
    NONE = ""


class Group(Enum):
    """Columns that stand in one table; the value is its title, the order that of the tables."""

    CORE = "Forgetting and keeping"
    RELATIVE = "Relative to the base model"
    MATCHED = "Swept methods where another one stands"
    PROBABILITY = "Probabilities of the answers"
    MEMORY = "Memorisation and membership"
    ATTACKS = "What attacks bring back"
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


Measure = Callable[["Asked"], "float | None"]


@dataclass(frozen=True)
class Metric:
    """A number of a model on a draw.

    Attributes:
        column: how it is shown.
        measure: takes it; None where the draw has nothing for it.
        always: whether every study takes it; the others are named in its `metrics`.
        needs: settings of a study or its data sets that it cannot do without, each with what to say where it is not
            given.
    """

    column: Column
    measure: Measure
    always: bool = False
    needs: Mapping[str, str] = field(default_factory=dict)


metrics: Registry[Metric] = Registry("metric", *_MODULES)
"""All metrics by name."""


def metric(
    name: str,
    *,
    label: str,
    goal: Goal,
    group: Group = Group.OTHER,
    unit: str = "",
    digits: int | None = None,
    exponent: bool = False,
    always: bool = False,
    needs: Mapping[str, str] | None = None,
    source: str = "",
    meaning: str = "",
) -> Callable[[Measure], Measure]:
    """Register a function as a metric.

    Args:
        name: in studies and cells.
        label: in tables and plots.
        goal: the better direction.
        group: the table it stands in.
        unit: of the shown number; "%" for a share, which is measured from 0 to 1.
        digits: shown after the decimal point; 1 for a share and else 2.
        exponent: see `Column`.
        always: see `Metric`.
        needs: see `Metric`.
        source: where it was published.
        meaning: one line on it; by default the first of the function's docstring.
    """

    def enter(measure: Measure) -> Measure:
        line = meaning or (measure.__doc__ or "").strip().split("\n")[0]
        share = unit == "%"
        shown = (1 if share else 2) if digits is None else digits
        column = Column(name, label, goal, group, line, unit, 100.0 if share else 1.0, shown, exponent)
        metrics.add(name, Metric(column, measure, always, needs or {}), summary=line, source=source)
        return measure

    return enter


def probability_of(base: Column) -> Column:
    """The column of the mean probability of the answers whose being said `base` counts."""
    meaning = f"Mean probability of the answer where {base.label} asks whether it is said."
    return replace(
        base,
        metric=f"{base.metric}_probability",
        label=f"P {base.label}",
        group=Group.PROBABILITY,
        meaning=meaning,
        unit="%",
        scale=100.0,
        digits=1,
        exponent=False,
    )


def in_order() -> dict[str, Metric]:
    """All metrics by name, in the order of print, whatever was imported first: ours as listed above, then others'."""

    def place(name: str) -> int:
        module = metrics[name].measure.__module__
        return _MODULES.index(module) if module in _MODULES else len(_MODULES)

    return {name: metrics[name] for name in sorted(metrics, key=place)}


def optional() -> list[str]:
    """Names of the metrics that a study takes on demand."""
    return [name for name, one in in_order().items() if not one.always]


def take(asked: Asked, names: Iterable[str] = ()) -> dict[str, float]:
    """The numbers of the metrics that are always taken, and of those named; without those that have nothing to measure.

    Raises:
        ConfigError: a name is unknown.
    """
    wanted = {name for name in names if metrics.entry(name)}
    taken = {name: one.measure(asked) for name, one in in_order().items() if one.always or name in wanted}
    return {name: value for name, value in taken.items() if value is not None}
