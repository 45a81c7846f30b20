"""Holes beside the facts: what the base model says surely, and the edited model no longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.audit.conftest import OTHERS, TEXT, Forgetful, facts
from zerounlearn.audit import holes as module
from zerounlearn.audit.holes import Holes, holes
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.results import Audit
from zerounlearn.audit.run import run_audit
from zerounlearn.audit.target import Target
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.model.answers import score
from zerounlearn.model.tokens import Query
from zerounlearn.redaction import Redaction


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the base model says by heart of other subjects, and something that it does not."""
    monkeypatch.setattr(module, "_beside", lambda *_: [OTHERS[0], Query("The capital of Germany is", "Paris")])
    monkeypatch.setattr(module, "_told", lambda _: [OTHERS[1], OTHERS[0]])


@pytest.mark.usefixtures("proposed")
def test_only_what_the_base_model_says_surely_is_asked(forgetful: Forgetful) -> None:
    pair, target = Pair.of(forgetful.model, forgetful.edit), forgetful.target()
    found = holes(pair, target, 20)
    said = [one.said for one in score(forgetful.model, forgetful.tokenizer, OTHERS)]
    assert (found.asked, found.lost) == (2, said.count(False))
    assert [one[:2] for one in found.examples] == [q[:2] for q, still in zip(OTHERS, said, strict=True) if not still]
    assert all(one.answer != one.instead for one in found.examples)
    assert holes(pair, target, 1).asked == 1
    same = Pair(forgetful.model, {name: forgetful.weights()[name] for name in pair.original})
    assert holes(same, target, 20).lost == 0


@pytest.mark.slow
def test_the_base_model_proposes_what_it_asks_and_none_of_the_answers(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = smollm2
    given = tuple(entry.fact for entry in packaged_entries() if entry.fact.request.before == "The capital of ")[:2]
    target = Target(model, tokenizer, given, ((),) * len(given))
    weight = "model.layers.0.mlp.down_proj.weight"
    pair = Pair(model, {weight: model.get_parameter(weight).detach().clone()})
    same = holes(pair, target, 10)
    assert same.asked >= 4 and same.lost == 0
    with torch.no_grad():
        model.get_parameter(weight).zero_()
    damaged = holes(pair, target, 10)
    assert damaged.asked == same.asked and damaged.lost == len(damaged.examples) > 0
    answers = {word for fact in given for word in fact.request.answer.split()}
    prompts = {fact.request.prompt for fact in given}
    for one in damaged.examples:
        assert one.prompt not in prompts and one.answer not in one.prompt
        assert one.answer not in answers or one.prompt.startswith("The capital")


def test_names_and_numbers_within_a_sentence_are_asked_once() -> None:
    text = " is a city, in France since 1870. It is in France and Norway"
    assert list(module._names("Facts. Rome", text, {"norway"})) == [
        Query("Facts. Rome is a city, in", "France"),
        Query("Facts. Rome is a city, in France since", "1870"),
    ]


@pytest.mark.usefixtures("proposed")
def test_they_are_part_of_an_audit(forgetful: Forgetful, tmp_path: Path) -> None:
    def audited(beside: int | None) -> Audit:
        return run_audit(
            forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["plain"], text=TEXT, beside=beside
        )

    audit = audited(None)
    assert audit.holes is not None and audit.holes.asked == 2 and audit.seconds["holes"] >= 0
    audit.save(tmp_path)
    assert Audit.load(tmp_path).holes == audit.holes
    assert audited(0).holes is None
    full = replace(audit, holes=Holes(2, 1, (module.Lost("The capital of Germany is", "Berlin", "x"),)))
    hidden = full.redacted(Redaction(bytes(32), []))
    assert "Berlin" in full.to_json() and "Berlin" not in hidden.to_json()
