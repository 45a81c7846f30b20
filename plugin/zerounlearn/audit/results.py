"""What an audit found: shares with intervals, the excess over the controls, and for each fact what brought it back.

A share of facts is given with Wilson's interval; the excess of the facts' share over the controls' with Newcombe's, as
of two independent samples, and with Fisher's exact one-sided p, corrected for the number of variants by Holm's method.
The interval is one over facts: what it says is of facts like these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter, ValidationError

from zerounlearn.audit.holes import Holes, Lost
from zerounlearn.audit.registry import Access
from zerounlearn.audit.target import Finding, Outcome
from zerounlearn.errors import AuditError, FrameworkError
from zerounlearn.files import write_text
from zerounlearn.redaction import Redaction

try:
    from scipy import stats
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
except ImportError as error:
    raise FrameworkError(
        f"an audit needs {str(error.name).partition('.')[0]}: pip install 'zerounlearn[audit]'"
    ) from error

FORMAT = 1
LEVEL = 0.05
"""Of significance, after correction."""
FILE = "audit.json"
Interval = tuple[float, float]
"""95 %, both ends from 0 to 1, those of an excess from -1 to 1."""


@dataclass(frozen=True)
class Variant:
    """One variant of an attack, on the edited model and on the base model.

    Attributes:
        attack: its name in the registry.
        label: on paper, with the variant.
        access: the name of an `Access`.
        edited: what it found in the edited model.
        ceiling: what it found in the base model.
    """

    attack: str
    label: str
    access: str
    edited: Outcome
    ceiling: Outcome

    @property
    def level(self) -> int:
        """How much an attacker must have."""
        return Access[self.access].level

    @property
    def needs(self) -> str:
        """The same in words."""
        return Access[self.access].value

    @property
    def counts(self) -> bool:
        """Whether what it finds is the answer, and its attacker has not got the base model anyway."""
        return self.access != Access.BASE.name and not self.edited.beside

    @property
    def interval(self) -> Interval:
        """Of the share of facts that it found."""
        return _wilson([one.found for one in self.edited.facts])

    @property
    def excess(self) -> float:
        """The share of facts found above that of controls."""
        return self.edited.share - self.edited.alarms

    @property
    def excess_interval(self) -> Interval:
        """Of the excess."""
        facts, controls = self._counts()
        low, high = confint_proportions_2indep(*facts, *controls, compare="diff", method="newcomb")
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Of facts being found no more often than controls, one-sided, uncorrected."""
        (found, facts), (alarms, controls) = self._counts()
        table = [[found, facts - found], [alarms, controls - alarms]]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)

    @property
    def recovered(self) -> float | None:
        """The excess against the base model's, from 0 to 1; None where the attack finds nothing there either."""
        ceiling = self.ceiling.share - self.ceiling.alarms
        return None if ceiling <= 0 else min(1.0, max(0.0, self.excess / ceiling))

    def brought_back(self, i: int) -> bool:
        """Whether it found fact `i` in the edited model, and at most half of that fact's controls."""
        controls = self.edited.controls[i]
        return self.edited.facts[i].found and fmean(one.found for one in controls) <= 0.5

    def _counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Found and asked, of facts and of controls."""
        controls = [one.found for each in self.edited.controls for one in each]
        facts = [one.found for one in self.edited.facts]
        return (sum(facts), len(facts)), (sum(controls), len(controls))


@dataclass(frozen=True)
class Attacked:
    """One attack as it was run.

    Attributes:
        attack: its name.
        source: where it was published.
        settings: of the budget.
        variants: what it found.
        tokens: read by the model in attacking the edited model and in attacking the base, padding included.
    """

    attack: str
    source: str
    settings: dict[str, object]
    variants: tuple[Variant, ...]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class AuditedFact:
    """A fact of the audit; digests in the place of words where it was redacted."""

    prompt: str
    answer: str
    controls: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """All that an audit found, and what it was run on.

    Attributes:
        facts: those that the base model says: what the shares are of.
        unknown: facts that were given and that the base model does not say.
        attacked: in the order of what they need.
        not_run: why, by attack.
        disruption: mean KL(base ‖ edited) on ordinary text, nats a token; None without text.
        settings: budget, seed, controls a fact, tokens of text.
        fingerprints: of both models, the tokenizer, facts, text and this package's code.
        environment: versions, device and dtype.
        seconds: by attack; the one part that differs from run to run.
        format: of the file.
        holes: what was lost beside the facts; None where nothing was asked.
    """

    facts: tuple[AuditedFact, ...]
    unknown: int
    attacked: tuple[Attacked, ...]
    not_run: dict[str, str]
    disruption: float | None
    settings: dict[str, str | int]
    fingerprints: dict[str, str]
    environment: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT
    holes: Holes | None = None

    @property
    def variants(self) -> list[Variant]:
        """Of all attacks."""
        return [variant for each in self.attacked for variant in each.variants]

    @cached_property
    def corrected(self) -> list[float]:
        """Holm's p of each variant."""
        return [float(p) for p in multipletests([one.p for one in self.variants], method="holm")[1]]

    def against(self, i: int) -> list[tuple[Variant, int]]:
        """What brought fact `i` back, the least effort first, each with the tokens that its attack read.

        Of attacks whose findings are statistical, those alone whose corrected p is at most 0.05; none that take the
        base model, which has the facts, or that tell of something beside the answer.
        """
        tokens = {each.attack: each.tokens[0] for each in self.attacked}
        found = [
            (variant, tokens[variant.attack])
            for variant, p in zip(self.variants, self.corrected, strict=True)
            if variant.counts and variant.brought_back(i) and (p <= LEVEL or not variant.edited.statistical)
        ]
        return sorted(found, key=lambda one: (one[0].level, one[1]))

    def redacted(self, redaction: Redaction) -> Audit:
        """The same with keyed digests in the place of prompts, answers, and what brought them back."""
        name = redaction.digest

        def silent(outcome: Outcome) -> Outcome:
            def one(found: Finding) -> Finding:
                return found._replace(how=redaction.blotted(found.how))

            controls = tuple(tuple(map(one, each)) for each in outcome.controls)
            return replace(
                outcome, facts=tuple(map(one, outcome.facts)), controls=controls, note=redaction.blotted(outcome.note)
            )

        def quiet(variant: Variant) -> Variant:
            return replace(variant, edited=silent(variant.edited), ceiling=silent(variant.ceiling))

        def blank(lost: Lost) -> Lost:
            return Lost(*map(name, lost))

        beside = self.holes and replace(self.holes, examples=tuple(map(blank, self.holes.examples)))
        return replace(
            self,
            holes=beside,
            facts=tuple(AuditedFact(name(f.prompt), name(f.answer), f.controls) for f in self.facts),
            attacked=tuple(replace(each, variants=tuple(map(quiet, each.variants))) for each in self.attacked),
        )

    def to_json(self) -> str:
        """The whole, indented; NaN and infinities as JSON has them not: null is read back as NaN."""
        return json.dumps(_adapter.dump_python(self, mode="json"), indent=1, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write audit.json.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_text(folder / FILE, self.to_json())

    @classmethod
    def load(cls, place: str | Path) -> Audit:
        """From audit.json, or the folder that holds it.

        Raises:
            AuditError: it is none, or of another format.
        """
        file = Path(place) / FILE if Path(place).is_dir() else Path(place)
        try:
            text = file.read_text(encoding="utf-8")
            found = json.loads(text).get("format")
            if found != FORMAT:
                raise AuditError(f"{str(file)!r} is of format {found!r}, and this version reads {FORMAT}")
            return _adapter.validate_json(text)
        except (OSError, ValidationError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise AuditError(f"{str(file)!r} is no audit: {reason}") from None


def _wilson(found: Sequence[bool]) -> Interval:
    low, high = proportion_confint(sum(found), len(found), method="wilson")
    return float(low), float(high)


_adapter = TypeAdapter(Audit)
