"""What a cell forgets, what it keeps, and what its model is asked: one draw from a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.catalogue import load
from zerounlearn.data.chat import as_chat
from zerounlearn.data.entry import Entry, MultiHop, Question, facts_of
from zerounlearn.data.fact import Fact
from zerounlearn.data.known import known_entries
from zerounlearn.data.lengths import check_lengths
from zerounlearn.data.protocol import split
from zerounlearn.data.request import Request
from zerounlearn.data.text import nfc, shown
from zerounlearn.errors import ConfigError, RequestError, ZeroUnlearnError
from zerounlearn.evaluation.probes import Probes
from zerounlearn.model.fingerprint import value_digest
from zerounlearn.model.tokens import Queries
from zerounlearn.study.spec import DataSpec

_NEIGHBOURS = 10
"""Kept entries about the same target that count as neighbours of what is forgotten, a fact at most."""

_KEPT = 1000
"""Facts to keep that metrics of keeping ask, at most; so many the published evaluation asks."""


@dataclass(frozen=True)
class Data:
    """A data set of a study, loaded.

    Attributes:
        label: the study's name of it.
        entries: what is forgotten is drawn from them: from their second half, or, where `keep` is given, from all.
        keep: entries to keep, where they come as a set of their own.
        utility: questions by part, for model utility.
        known: whether only entries that the model knows count; `asked_of` leaves out the others.
    """

    label: str
    entries: Sequence[Entry]
    keep: Sequence[Entry] | None
    utility: Mapping[str, tuple[Question, ...]]
    known: bool = False

    @classmethod
    def load(cls, spec: DataSpec) -> Data:
        """Read it from where `spec` says.

        Raises:
            ZeroUnlearnError: the source or an option is wrong, or a record is, named with the data set's label.
        """
        try:
            entries = load(spec.name, spec.source, **spec.options)
            utility = {part: _questions(spec, part, options) for part, options in spec.utility.items()}
            return cls(spec.label, entries, _kept(spec), utility, spec.known)
        except ZeroUnlearnError as error:
            raise type(error)(f"datasets.{spec.label}: {error}") from error

    def asked_of(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Data:
        """As this model is asked: chat records in its template, and entries that it must know, if they must, alone.

        The halves stay as they were.

        Args:
            model: the unedited model, left as it was.
            tokenizer: its tokenizer.

        Raises:
            RequestError: a prompt is longer than the model's context.
        """
        entries = _in_chat(tokenizer, self.entries)
        try:
            check_lengths(model.config, tokenizer, facts_of(entries))
        except RequestError as error:
            raise RequestError(f"datasets.{self.label}: {error}") from None
        keep = None if self.keep is None else _in_chat(tokenizer, self.keep)
        if self.known:
            middle = len(entries) // 2 if keep is None else 0
            keep = known_entries(model, tokenizer, entries[:middle] if keep is None else keep)
            entries = known_entries(model, tokenizer, entries[middle:])
        return replace(self, entries=entries, keep=keep, known=False)

    def identity(self, n: int, seed: int, *, retain_size: int, unrelated_size: int) -> str:
        """A digest of all that a draw depends on but the model, which is not asked.

        Raises:
            ConfigError: `n` is out of range.
        """
        material = self.draw(n, seed, retain_size=retain_size, unrelated_size=unrelated_size)
        if not self.known:
            return material.digest()
        return value_digest([asdict(self), n, seed, retain_size, unrelated_size])

    def draw(self, n: int, seed: int, *, retain_size: int, unrelated_size: int) -> Material:
        """`n` entries to forget, drawn by `seed`, and what goes with them.

        Of the entries to keep, in an order drawn by `seed` too, the first `retain_size` facts are the retain set, and
        the next facts that have neither topic nor subject in common with what is forgotten are the unrelated ones.

        Raises:
            ConfigError: `n` is out of range.
        """
        try:
            drawn, kept = split(self.entries, n, seed, self.keep)
        except ConfigError as error:
            raise ConfigError(f"datasets.{self.label}: {error}") from None
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
        kept = [kept[i] for i in order]
        retain = facts_of(kept)[:retain_size]
        retained = {fact.request.key for fact in retain}
        topics = {entry.topic for entry in drawn if entry.topic}
        subjects = {fact.request.subject for entry in drawn for fact in entry.facts}
        unrelated = [
            fact.request.query
            for fact in facts_of(entry for entry in kept if entry.topic not in topics)
            if fact.request.key not in retained and fact.request.subject not in subjects
        ]
        facts = tuple(facts_of(_with_neighbours(entry, kept) for entry in drawn))
        measured = facts_of(kept)[:_KEPT]
        others = [fact.request for fact in measured if fact.request.key not in retained]
        return Material(
            facts=facts,
            retain=tuple(fact.request for fact in retain),
            probes=Probes.of(facts, retain=[fact.request for fact in retain], unrelated=unrelated[:unrelated_size]),
            token_by_token=tuple(dict.fromkeys(item for entry in drawn for item in entry.token_by_token)),
            questions=tuple(question for entry in drawn for question in _with_false_answers(entry)),
            openings=tuple(dict.fromkeys(text for entry in drawn for text in entry.openings)),
            utility=self.utility,
            multi_hop=tuple(entry.multi_hop for entry in drawn if entry.multi_hop is not None),
            kept=tuple(measured),
            same_answer=_same_answer([fact.request for fact in facts], others),
        )


@dataclass(frozen=True)
class Material:
    """One draw: the forget set and all that is measured on it.

    Attributes:
        facts: what is forgotten.
        retain: facts to keep that a method may be shown.
        probes: the prompts behind Eff, Gen and the specificities.
        token_by_token: (prompt, answer) whose specificity is next-token accuracy, as ZsRE's is.
        questions: the forget prompts that come with false answers, for truth ratio and membership inference.
        openings: texts to go on from, for fluency.
        utility: questions by part, for model utility.
        multi_hop: questions that take several of the facts.
        kept: facts of what is kept, the retain set first, for metrics of keeping.
        same_answer: those of them, but for the retain set, whose answer is forgotten of another subject.
    """

    facts: tuple[Fact, ...]
    retain: tuple[Request, ...]
    probes: Probes
    token_by_token: Queries
    questions: tuple[Question, ...]
    openings: tuple[str, ...]
    utility: Mapping[str, tuple[Question, ...]]
    multi_hop: tuple[MultiHop, ...] = ()
    kept: tuple[Fact, ...] = ()
    same_answer: Queries = ()

    @property
    def requests(self) -> list[Request]:
        """What is to be forgotten."""
        return [fact.request for fact in self.facts]

    @property
    def asked(self) -> set[str]:
        """Every prompt that measures something on this draw."""
        probes = vars(self.probes).values()
        return {query[0] for items in (*probes, self.token_by_token, self.same_answer) for query in items}

    def digest(self) -> str:
        """Of everything in it, in its order."""
        return value_digest(asdict(self))


def _kept(spec: DataSpec) -> list[Entry] | None:
    """The entries to keep: the same data set with other options, or another one that `keep` names with its source."""
    if spec.keep is None:
        return None
    options = dict(spec.keep)
    if not options.keys() & {"name", "source"}:
        return load(spec.name, spec.source, **{**spec.options, **options})
    name, source = options.pop("name", "facts"), options.pop("source", None)
    return load(name, source, **options)


def _in_chat(tokenizer: PreTrainedTokenizerBase, entries: Sequence[Entry]) -> list[Entry]:
    """The entries, those that want it in the tokenizer's chat template."""
    return [
        replace(entry, facts=tuple(as_chat(tokenizer, entry.facts, every=False)))
        if any(fact.request.chat for fact in entry.facts)
        else entry
        for entry in entries
    ]


def _questions(spec: DataSpec, part: str, options: Any) -> tuple[Question, ...]:
    if not isinstance(options, Mapping):
        raise ConfigError(f"utility.{part}={shown(options)}: expected a mapping of options, such as part: retain99")
    entries = load(spec.name, spec.source, **options)
    questions = tuple(entry.question for entry in entries if entry.question is not None)
    if len(questions) < len(entries):
        raise ConfigError(
            f"utility.{part}: data set {spec.name!r} has no questions with false answers there, as TOFU has them "
            "with perturbed: true"
        )
    return questions


def _same_answer(forgotten: Sequence[Request], others: Sequence[Request]) -> Queries:
    """Those about other subjects whose answer is one of those forgotten."""
    subjects, answers = ({nfc(getattr(r, part)) for r in forgotten} for part in ("subject", "answer"))
    return tuple(r.query for r in others if nfc(r.answer) in answers and nfc(r.subject) not in subjects)


def _with_neighbours(entry: Entry, kept: Sequence[Entry]) -> Entry:
    """The entry with kept ones about the same target as neighbours of its facts, where a data set names targets."""
    if entry.target is None:
        return entry
    near = facts_of(other for other in kept if other.target == entry.target)[:_NEIGHBOURS]
    neighbours = tuple(fact.request.query for fact in near)
    return replace(entry, facts=tuple(replace(fact, neighbours=neighbours) for fact in entry.facts))


def _with_false_answers(entry: Entry) -> list[Question]:
    """TOFU's perturbed answers, or the false answers that editing methods would write."""
    if entry.question is not None:
        return [entry.question]
    pairs = [(fact.request, answer) for fact, answer in zip(entry.facts, entry.counterfactuals, strict=False)]
    return [Question(r.prompt, r.answer, r.answer, (answer,)) for r, answer in pairs if answer != r.answer]
