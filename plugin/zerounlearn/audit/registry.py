"""The attacks of an audit: each is a function that is registered, with what it needs and what it may spend.

An attack is written in one place:

    @attack("shouting", label="Shouting", access=Access.PROMPTS, quick={"marks": 1}, standard={"marks": 3})
    def shouting(target: Target, *, marks: int) -> Iterator[Outcome]:
        \"\"\"The prompt in capitals.\"\"\"
        queries = [fact.request.query._replace(prompt=fact.request.prompt.upper() + "!" * marks) for fact in target.all]
        yield target.outcome(f"{marks} marks", [Finding.of(score) for score in target.scores(queries)])

It is called on the edited model and on the base model, and asks the facts and their controls alike. Whatever it changes
in the model it puts back. A package of somebody else's registers its own through the entry-point group
`zerounlearn.plugins`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from zerounlearn.errors import ConfigError
from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from zerounlearn.audit.target import Outcome

BUDGETS = ("quick", "standard", "thorough")
"""In the order of what they cost; one has whatever those before it have."""


class Access(Enum):
    """What an attacker must have; the value is how reports say it, the order is that of ever more."""

    PLAIN = "the question itself"
    PROMPTS = "other prompts"
    OUTPUTS = "probabilities or samples of the output"
    ACTIVATIONS = "hidden states, read or changed"
    WEIGHTS = "the weights, changed without training"
    TRAINING = "the weights, trained"
    BASE = "the base model"

    @property
    def level(self) -> int:
        """How much it is: from 0."""
        return list(Access).index(self)


Run = Callable[..., "Iterable[Outcome]"]


@dataclass(frozen=True)
class Attack:
    """One way of bringing back what was forgotten.

    Attributes:
        name: in options, studies and files.
        label: in tables.
        access: what an attacker must have for it.
        run: takes a `Target` and the settings of a budget, and gives an outcome for each variant.
        budgets: settings by budget; a budget without an entry leaves the attack out.
        needs: packages that it imports, by the names that pip knows.
        meaning: one line on it.
    """

    name: str
    label: str
    access: Access
    run: Run
    budgets: Mapping[str, Mapping[str, Any]]
    needs: tuple[str, ...] = ()
    meaning: str = ""

    def settings(self, budget: str) -> Mapping[str, Any] | None:
        """What it spends under a budget; that of the nearest smaller one where it has none of its own; else None."""
        for name in reversed(BUDGETS[: BUDGETS.index(budget) + 1]):
            if name in self.budgets:
                return self.budgets[name]
        return None


attacks: Registry[Attack] = Registry("attack", "zerounlearn.audit.attacks.*")
"""All attacks by name."""


def attack(
    name: str,
    *,
    label: str,
    access: Access,
    quick: Mapping[str, Any] | None = None,
    standard: Mapping[str, Any] | None = None,
    thorough: Mapping[str, Any] | None = None,
    needs: Iterable[str] = (),
    source: str = "",
) -> Callable[[Run], Run]:
    """Register a function as an attack; the first line of its docstring says what it is.

    Args:
        name: see `Attack`.
        label: see `Attack`.
        access: see `Attack`.
        quick: its settings where ten facts may take seconds; None leaves it out.
        standard: where they may take minutes; by default those of `quick`.
        thorough: where time is no matter; by default those of `standard`.
        needs: see `Attack`.
        source: where it was published.
    """
    given = {"quick": quick, "standard": standard, "thorough": thorough}

    def enter(run: Run) -> Run:
        line = (run.__doc__ or "").strip().split("\n")[0]
        budgets = {budget: dict(settings) for budget, settings in given.items() if settings is not None}
        attacks.add(name, Attack(name, label, access, run, budgets, tuple(needs), line), summary=line, source=source)
        return run

    return enter


def chosen(names: Iterable[str] = (), *, without: Iterable[str] = ()) -> list[Attack]:
    """The attacks of these names, or all but `without`, in the order of what they need, then of their names.

    Raises:
        ConfigError: a name is unknown, or is asked for and left out at once.
    """
    wanted, left = list(names), {attacks.entry(name).name for name in without}
    if both := left & set(wanted):
        raise ConfigError(f"attack {min(both)!r} is asked for and left out: drop it from one of the two")
    found = [attacks[name] for name in wanted or attacks if name not in left]
    if not found:
        raise ConfigError("every attack is left out: leave one in")
    return sorted(found, key=lambda one: (one.access.level, one.name))


def check_budget(budget: str, field: str = "budget") -> str:
    """The budget, if it is one.

    Raises:
        ConfigError: it is none.
    """
    if budget not in BUDGETS:
        raise ConfigError(f"{field}={budget!r}: expected {', '.join(BUDGETS)}")
    return budget
