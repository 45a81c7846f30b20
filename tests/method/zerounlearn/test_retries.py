"""Facts that are still said after an edit: it is made again, and they are moved further."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import FACTS, hparams_for, memorised
from zerounlearn.method.edit import Edit
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.method.zerounlearn.keys import Walk
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.model.answers import score
from zerounlearn.model.lineage import Lineage


@pytest.fixture(scope="module")
def knowing(small_tokenizer):
    """A small model that says every one of `FACTS`."""
    model = memorised(small_tokenizer, [f"{fact.prompt} {fact.answer}" for fact in FACTS])
    assert all(one.said for one in score(model, small_tokenizer, [fact.query for fact in FACTS]))
    return model


def run_of(**changes):
    return hparams_for([0, 1], mom2_adjustment=False, fact_token="last", orthogonality="none", **changes)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(model, expected: dict[str, torch.Tensor]) -> None:
    for name, value in model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_what_stays_said_is_moved_as_far_as_one_edit_with_that_strength(
    knowing, small_tokenizer, tmp_path: Path
) -> None:
    again, once, facts = deepcopy(knowing), deepcopy(knowing), FACTS
    original = weights(again)
    strength = 2.0**-10  # far too little to forget anything, and exact in binary
    edit = unlearn(again, small_tokenizer, facts, run_of(strength=strength, retries=2), None)
    single = unlearn(once, small_tokenizer, facts, run_of(strength=strength * 1.5**2), None)
    assert all(one.said for one in score(again, small_tokenizer, [fact.query for fact in facts]))
    assert_same(again, weights(once))
    assert edit.layers == single.layers
    assert edit.digests == single.digests
    assert {name: len(held) for name, held in Lineage.of(again).traces.items()} == dict.fromkeys(edit.digests, 1)
    edit.save(tmp_path / "edit.safetensors")
    edited = weights(again)
    edit.revert(again)
    assert_same(again, original)
    Edit.load(tmp_path / "edit.safetensors").apply(again)
    assert_same(again, edited)


def test_only_what_is_still_said_goes_further_and_no_longer_than_that(
    knowing, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, known, unknown = deepcopy(knowing), FACTS[0], replace(FACTS[1], answer="never")
    assert not score(model, small_tokenizer, [unknown.query])[0].said
    seen, target = [], Walk.target

    def recorded(self, layer, z, strength):
        seen.append(strength.tolist())
        return target(self, layer, z, strength)

    monkeypatch.setattr(Walk, "target", recorded)
    run = run_of(strength=0.125, retries=8, v_lr=0.5, v_num_grad_steps=25)
    unlearn(model, small_tokenizer, [known, unknown], run, None)
    assert not score(model, small_tokenizer, [known.query])[0].said
    assert 1 < len(seen) < 9, "it took more than one edit, and stopped when the fact was forgotten"
    assert seen == [[0.125 * 1.5**i, 0.125] for i in range(len(seen))]


def test_a_stronger_edit_that_cannot_be_made_leaves_the_one_before(
    knowing, small_tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again, once, facts = deepcopy(knowing), deepcopy(knowing), FACTS
    strength = 2.0**-10
    check, checked = module._check_progress, []

    def refused_the_second_time(layers, gap) -> None:
        checked.append(layers[-1].layer)
        check(layers, gap)
        if len(checked) == 3:
            raise module.IllPosedError("too far")

    monkeypatch.setattr(module, "_check_progress", refused_the_second_time)
    with caplog.at_level(logging.WARNING):
        edit = unlearn(again, small_tokenizer, facts, run_of(strength=strength, retries=5), None)
    assert checked == [0, 1, 0, 0, 1]
    assert "too far" in caplog.text
    monkeypatch.undo()
    single = unlearn(once, small_tokenizer, facts, run_of(strength=strength), None)
    assert_same(again, weights(once))
    assert edit.layers == single.layers
