"""What a run must reach to count as done: `eff<=0.05`, read before the work and judged after it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerounlearn.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from zerounlearn.report.run import Phase

_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([a-z_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*(x?)\s*")
NAMES = ("eff", "gen", "spe", "spe_relation", "spe_subject", "spe_unrelated", "ppl")
"""What can be required: shares in [0, 1], and a perplexity."""


@dataclass(frozen=True)
class Requirement:
    """A bound on one number of the edited model.

    Attributes:
        name: one of `NAMES`.
        sign: <=, >=, < or >.
        bound: what it is compared with.
        relative: whether `bound` is a multiple of the number before the edit.
    """

    name: str
    sign: str
    bound: float
    relative: bool = False

    @classmethod
    def of(cls, text: str) -> Requirement:
        """Read `eff<=0.05`, or `ppl<=1.01x`: at most 1.01 times as much as before.

        Raises:
            ConfigError: it has another form, names no number of a report, or its bound is none.
        """
        form = _FORM.fullmatch(text)
        try:
            if form is None:
                raise ValueError
            name, sign, number, times = form.groups()
            bound = float(number)
        except ValueError:
            raise ConfigError(
                f"require={text!r}: expected a name, one of {' '.join(_SIGNS)}, and a number, as 'eff<=0.05', or "
                "'ppl<=1.01x' for a multiple of what it was before"
            ) from None
        if name not in NAMES:
            raise ConfigError(f"require={text!r}: no number {name!r}: {did_you_mean(name, NAMES)}")
        return cls(name, sign, bound, bool(times))

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}{'x' if self.relative else ''}"

    def judged(self, before: Phase, after: Phase) -> Judged:
        """Whether it is met; what was not measured is not."""
        old, new = getattr(before, self.name), getattr(after, self.name)
        if new is None or (self.relative and old is None):
            return Judged(str(self), None, met=False)
        bound = self.bound * old if self.relative else self.bound
        equal = math.isclose(new, bound, rel_tol=1e-9)  # 0.75 x 0.8 is a little more than 0.6
        return Judged(str(self), new, met="=" in self.sign if equal else _SIGNS[self.sign](new, bound))


@dataclass(frozen=True)
class Judged:
    """A requirement, the number that was measured, or None, and whether that met it."""

    text: str
    value: float | None
    met: bool

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.text}: {found}, {'met' if self.met else 'not met'}"


def requirements(texts: Iterable[str]) -> list[Requirement]:
    """See `Requirement.of`."""
    return [Requirement.of(text) for text in texts]
