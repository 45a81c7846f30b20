"""What an attack is given and gives: a model with facts and controls to ask, and a finding for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.chat import query_as_chat
from zerounlearn.data.fact import Fact
from zerounlearn.errors import AuditError
from zerounlearn.model.answers import AnswerTokens, Score, answer_tokens, resolve_joints
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import Queries, Query

_T = TypeVar("_T")

FALSE_ALARMS = 0.05
"""Share of the controls above the threshold of an attack that has none of its own."""


class Finding(NamedTuple):
    """What an attack found of one fact or control.

    `found` says whether the answer came back, `score` how strongly (more is more; an attack's own unit), `how` by what:
    the prompt, the step, the layer.
    """

    found: bool
    score: float
    how: str = ""

    @classmethod
    def of(cls, score: Score, how: str = "") -> Finding:
        """Of an answer under teacher forcing: found where each of its tokens is the arg-max."""
        return cls(score.said, score.probability, how)

    @classmethod
    def best(cls, findings: Iterable[Finding]) -> Finding:
        """The strongest of several tries: one that found it before one that did not, then the higher score."""
        return max(findings, key=lambda one: (one.found, one.score))

    @classmethod
    def first(cls, findings: Sequence[Finding]) -> Finding:
        """The first try that found it, else that with the highest score: tries in the order of what they cost."""
        return next((one for one in findings if one.found), cls.best(findings))


class Point(NamedTuple):
    """One point of a curve: the attack's strength, and the shares found of facts and of controls."""

    x: float
    facts: float
    controls: float


@dataclass(frozen=True)
class Outcome:
    """What one variant of an attack found.

    Attributes:
        variant: its name within the attack: "int4 in groups of 32"; empty where there is but one.
        facts: a finding each.
        controls: the findings of each fact's controls.
        curve: shares found against the attack's strength.
        axis: what the curve goes along, with its unit.
        note: what a reader has to know of this run.
        statistical: whether a finding is a score above those of the controls, some of which are so by chance; else the
            answer itself came back.
        beside: whether a finding tells something beside the answer (that the subject is known), and so is none of it.
    """

    variant: str
    facts: tuple[Finding, ...]
    controls: tuple[tuple[Finding, ...], ...]
    curve: tuple[Point, ...] = ()
    axis: str = ""
    note: str = ""
    statistical: bool = False
    beside: bool = False

    @property
    def share(self) -> float:
        """Of the facts, found."""
        return fmean(one.found for one in self.facts)

    @property
    def alarms(self) -> float:
        """Of the controls, found."""
        return fmean(one.found for each in self.controls for one in each)


@dataclass(frozen=True)
class Target:
    """A model, what it is to be asked, and what an attacker may use.

    Attributes:
        model: as it is to be attacked; left as it was, bit for bit.
        tokenizer: its tokenizer.
        facts: what was forgotten, in plain words, each with its paraphrases.
        controls: for each fact the same prompts with made-up subjects and the fact's own answer.
        others: (prompt, answer) of other subjects in the facts' relations, then of other relations: what an attacker
            knows beside the facts, for examples and for training.
        texts: ordinary text.
        seed: of all that is drawn.
        chat: whether every prompt goes through the tokenizer's chat template.
        base: whether `model` is the base model now.
        strange: for each of `others` its prompt with a made-up subject, or "" where its subject is not known.
        original: the base model's values of the weights that differ, for attacks that need the base model; on the base
            model itself they are those that it has.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: tuple[Fact, ...]
    controls: tuple[tuple[Fact, ...], ...]
    others: tuple[Query, ...] = ()
    texts: Sequence[str] = field(default=(), repr=False)
    seed: int = 0
    chat: bool = False
    base: bool = False
    strange: tuple[str, ...] = ()
    original: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def all(self) -> list[Fact]:
        """The facts, then the controls of each."""
        return [*self.facts, *(one for each in self.controls for one in each)]

    def generator(self) -> torch.Generator:
        """A fresh one on the CPU, from the seed."""
        return torch.Generator().manual_seed(self.seed)

    def asked(self, queries: Queries) -> list[Query]:
        """The queries as the model is asked: in the chat template, if wanted, with what stands before each answer."""
        given = [Query(*query) for query in queries]
        if self.chat:
            given = [query_as_chat(self.tokenizer, query._replace(joint=None)) for query in given]
        return resolve_joints(self.model, self.tokenizer, given)

    def answers(self, queries: Queries) -> list[AnswerTokens]:
        """What the model gives each token of the answers, teacher-forced; nothing is remembered from call to call."""
        return answer_tokens(self.model, self.tokenizer, self.asked(queries))

    def scores(self, queries: Queries) -> list[Score]:
        """Whether each answer is said, and its probability."""
        return [Score.of(tokens) for tokens in self.answers(queries)]

    def plain(self) -> list[Finding]:
        """Every fact and control in its own prompt, in the order of `all`."""
        return [Finding.of(score) for score in self.scores([fact.request.query for fact in self.all])]

    def texts_after(self, prompts: Sequence[str], tokens: int) -> list[str]:
        """Greedy continuations of prompts."""
        asked = [query_as_chat(self.tokenizer, Query(p, "")).prompt if self.chat else p for p in prompts]
        return generate(self.model, self.tokenizer, asked, tokens=tokens)

    def outcome(
        self,
        variant: str,
        findings: Sequence[Finding],
        *,
        curve: Sequence[Point] = (),
        axis: str = "",
        note: str = "",
    ) -> Outcome:
        """An outcome from findings in the order of `all`.

        Raises:
            ValueError: there are more or fewer.
        """
        facts, controls = self.split(findings)
        return Outcome(variant, tuple(facts), tuple(map(tuple, controls)), tuple(curve), axis, note)

    def by_score(
        self,
        variant: str,
        scores: Sequence[float],
        *,
        how: Sequence[str] = (),
        note: str = "",
        beside: bool = False,
    ) -> Outcome:
        """An outcome of scores that have no threshold of their own, in the order of `all`.

        A score counts as found where it is above all but a share `FALSE_ALARMS` of the controls; a control is held
        against those of the other facts.
        """
        facts, controls = self.split(list(zip(scores, how or [""] * len(scores), strict=True)))

        def judged(one: tuple[float, str], i: int) -> Finding:
            rest = torch.tensor([s for j, each in enumerate(controls) if j != i or len(controls) == 1 for s, _ in each])
            threshold = float(rest.double().quantile(1 - FALSE_ALARMS))
            return Finding(one[0] > threshold, one[0], one[1])

        return Outcome(
            variant,
            tuple(judged(one, i) for i, one in enumerate(facts)),
            tuple(tuple(judged(one, i) for one in each) for i, each in enumerate(controls)),
            note=note,
            statistical=True,
            beside=beside,
        )

    def calibrated(self, scores: Sequence[float]) -> list[float]:
        """Scores in the order of `all`, less the mean of the same fact's controls: what an easy answer adds is off.

        A control is held against the others of its fact, which leaves it the larger spread. After arXiv 2111.08440.

        Raises:
            AuditError: a fact has but one control.
        """
        facts, controls = self.split(scores)
        self.need(2, "controls for each fact", min(map(len, controls)))
        own = [one - fmean(each) for one, each in zip(facts, controls, strict=True)]
        return own + [one - (sum(each) - one) / (len(each) - 1) for each in controls for one in each]

    def point(self, x: float, findings: Sequence[Finding]) -> Point:
        """A point of a curve from findings in the order of `all`."""
        return self.mean_point(x, [one.found for one in findings])

    def mean_point(self, x: float, values: Sequence[float]) -> Point:
        """A point of a curve from numbers in the order of `all`: their means over facts and over controls."""
        facts, controls = self.split(values)
        return Point(x, fmean(facts), fmean(value for each in controls for value in each))

    def along(self, variant: str, tries: Mapping[float, Sequence[Finding]], axis: str, *, note: str = "") -> Outcome:
        """An outcome of tries of rising strength, each with findings in the order of `all`: the first that found it.

        Args:
            variant: see `Outcome`.
            tries: the findings by the strength, the weakest first.
            axis: what the strength is, with its unit: "rank", "alpha".
            note: see `Outcome`.
        """
        curve = [self.point(x, findings) for x, findings in tries.items()]
        named = [
            [one._replace(how=f"{axis} {x:g}" + (f", {one.how}" if one.how else "")) for one in findings]
            for x, findings in tries.items()
        ]
        return self.outcome(
            variant, list(map(Finding.first, zip(*named, strict=True))), curve=curve, axis=axis, note=note
        )

    def split(self, values: Sequence[_T]) -> tuple[list[_T], list[list[_T]]]:
        """Values in the order of `all`: those of the facts, and those of each fact's controls."""
        if len(values) != len(self.all):
            raise ValueError(f"{len(values)} values for {len(self.all)} facts and controls")
        found = iter(values)
        facts = [next(found) for _ in self.facts]
        return facts, [[next(found) for _ in each] for each in self.controls]

    def need(self, count: int, what: str, have: int) -> None:
        """Say that the attack cannot be run here.

        Raises:
            AuditError: there are fewer than `count`.
        """
        if have < count:
            raise AuditError(f"it needs {count} {what}, and there are {have}")
