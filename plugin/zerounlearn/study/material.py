"""What a cell forgets, what it keeps, and what its model is asked: one draw from a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from zerounlearn.data.catalogue import EMBEDDED, load
from zerounlearn.data.entry import Entry, Question, facts_of
from zerounlearn.data.fact import Fact
from zerounlearn.data.packaged import load_facts, split_facts
from zerounlearn.data.protocol import split
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, ZeroUnlearnError
from zerounlearn.evaluation.probes import Items, Probes
from zerounlearn.model.fingerprint import value_digest
from zerounlearn.study.spec import DataSpec

_PACKAGED = ("evaluation", "development", "all")
_NEIGHBOURS = 10
"""Kept entries about the same target that count as neighbours of what is forgotten, a fact at most."""


@dataclass(frozen=True)
class Data:
    """A data set of a study, loaded.

    Attributes:
        label: the study's name of it.
        entries: what is forgotten is drawn from them: from their second half, or, where `keep` is given, from all.
        keep: entries to keep, where they come as a set of their own.
        utility: questions by part, for model utility.
    """

    label: str
    entries: Sequence[Entry]
    keep: Sequence[Entry] | None
    utility: Mapping[str, tuple[Question, ...]]

    @classmethod
    def load(cls, spec: DataSpec) -> Data:
        """Read it from where `spec` says.

        Raises:
            ZeroUnlearnError: the source or an option is wrong, or a record is, named with the data set's label.
        """
        try:
            entries = _load(spec, spec.options)
            keep = None if spec.keep is None else _load(spec, {**spec.options, **spec.keep})
            return cls(spec.label, entries, keep, {k: _questions(spec, v) for k, v in spec.utility.items()})
        except ZeroUnlearnError as error:
            raise type(error)(f"datasets.{spec.label}: {error}") from error
        except ValueError as error:  # a loader's own option
            raise ConfigError(f"datasets.{spec.label}: {error}") from error

    def draw(self, n: int, seed: int, *, retain_size: int, unrelated_size: int) -> Material:
        """`n` entries to forget, drawn by `seed`, and what goes with them.

        Of the entries to keep, in an order drawn by `seed` too, the first `retain_size` facts are the retain set, and
        the next facts that have neither relation nor subject in common with what is forgotten are the unrelated ones.

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
        shown = {fact.request.prompt for fact in retain}
        topics = {topic for entry in drawn if (topic := _topic(entry))}
        subjects = {fact.request.subject for entry in drawn for fact in entry.facts}
        unrelated = [
            (fact.request.prompt, fact.request.answer)
            for fact in facts_of(entry for entry in kept if _topic(entry) not in topics)
            if fact.request.prompt not in shown and fact.request.subject not in subjects
        ]
        facts = tuple(facts_of(_asked(entry, kept) for entry in drawn))
        return Material(
            facts=facts,
            retain=tuple(fact.request for fact in retain),
            probes=Probes.of(facts, retain=[fact.request for fact in retain], unrelated=unrelated[:unrelated_size]),
            token_by_token=tuple(dict.fromkeys(item for entry in drawn for item in getattr(entry, "locality", ()))),
            questions=tuple(question for entry in drawn for question in _with_false_answers(entry)),
            openings=tuple(dict.fromkeys(text for e in drawn for text in getattr(e, "generation_prompts", ()))),
            utility=self.utility,
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
    """

    facts: tuple[Fact, ...]
    retain: tuple[Request, ...]
    probes: Probes
    token_by_token: Items
    questions: tuple[Question, ...]
    openings: tuple[str, ...]
    utility: Mapping[str, tuple[Question, ...]]

    @property
    def requests(self) -> list[Request]:
        """What is to be forgotten."""
        return [fact.request for fact in self.facts]

    @property
    def asked(self) -> set[str]:
        """Every prompt that measures something on this draw."""
        probes = vars(self.probes).values()
        return {prompt for items in (*probes, self.token_by_token) for prompt, _ in items}

    def digest(self) -> str:
        """Of everything in it, in its order."""
        return value_digest(asdict(self))


def _load(spec: DataSpec, options: Mapping[str, Any]) -> list[Entry]:
    if spec.name == EMBEDDED and spec.source is None:
        return _packaged(options)
    return load(spec.name, spec.source, **options)


def _packaged(options: Mapping[str, Any]) -> list[Entry]:
    """The packaged facts of one part, mixed: they are sorted by relation, and the halves would have few in common.

    The default is the part that no hyperparameter was chosen on. The order is always the same.
    """
    part = options.get("facts", "evaluation")
    if set(options) - {"facts"} or part not in _PACKAGED:
        raise ConfigError(f"options={dict(options)}: the packaged facts have 'facts', one of {', '.join(_PACKAGED)}")
    development, evaluation = split_facts(load_facts())
    chosen = {"development": development, "evaluation": evaluation, "all": [*development, *evaluation]}[part]
    numbers = {fact.case_id for fact in chosen}
    entries = [entry for entry in load(EMBEDDED) if getattr(entry, "case_id", None) in numbers]
    return [entries[i] for i in torch.randperm(len(entries), generator=torch.Generator().manual_seed(0)).tolist()]


def _questions(spec: DataSpec, options: Mapping[str, Any]) -> tuple[Question, ...]:
    entries = _load(spec, options)
    if not all(hasattr(entry, "to_ask") for entry in entries):
        raise ConfigError(f"utility: data set {spec.name!r} has no questions with false answers, as TOFU has them")
    return tuple(entry.to_ask() for entry in entries)  # type: ignore[attr-defined]


def _topic(entry: Entry) -> str | None:
    """What entries have in common: the relation, or RWKU's person."""
    return getattr(entry, "relation", None) or getattr(entry, "target", None)


def _asked(entry: Entry, kept: Sequence[Entry]) -> Entry:
    """The entry with its specificity where `Probes` looks for it."""
    if hasattr(entry, "locality"):  # measured token by token instead
        return replace(entry, fact=replace(entry.fact, others=()))  # type: ignore[type-var, attr-defined]
    target = getattr(entry, "target", None)
    if target is None:
        return entry
    near = facts_of(other for other in kept if getattr(other, "target", None) == target)[:_NEIGHBOURS]
    neighbours = tuple((fact.request.prompt, fact.request.answer) for fact in near)
    return replace(entry, fact=replace(entry.fact, neighbours=neighbours))  # type: ignore[type-var, attr-defined]


def _with_false_answers(entry: Entry) -> list[Question]:
    """TOFU's perturbed answers, or the false answers that editing methods would write."""
    if getattr(entry, "perturbed_answers", ()):
        return [entry.to_ask()]  # type: ignore[attr-defined]
    single = getattr(entry, "counterfactual", None)
    false = getattr(entry, "counterfactuals", (single,) if single else ())
    pairs = [(fact.request, answer) for fact, answer in zip(entry.facts, false, strict=False)]
    return [Question(r.prompt, r.answer, r.answer, (answer,)) for r, answer in pairs if answer != r.answer]
