"""GCG by nanogcg: what it finds is asked by us, the tokenizer and torch's state stay, its absence is told."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks import gcg as module
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.errors import AuditError
from zerounlearn.model.tokens import Query


def run(target: Target, **changes: Any) -> Outcome:
    [outcome] = attacks["gcg"].run(target, **{"steps": 2, "width": 8} | changes)
    return outcome


@pytest.fixture
def nanogcg() -> Any:
    return pytest.importorskip("nanogcg", reason="pip install --no-deps nanogcg")


def test_it_searches_for_each_fact_and_its_first_control(forgetful: Forgetful, nanogcg: Any) -> None:
    target = forgetful.target()
    state, template = torch.get_rng_state(), target.tokenizer.chat_template
    outcome = run(target)
    assert [len(each) for each in outcome.controls] == [1] * 4
    assert torch.equal(torch.get_rng_state(), state) and target.tokenizer.chat_template == template
    assert not torch.are_deterministic_algorithms_enabled()
    for fact, found in zip(target.facts, outcome.facts, strict=True):
        [again] = target.scores([Query(found.how, *fact.request.query[1:])])
        assert (again.said, again.probability) == pytest.approx((found.found, found.score))
        assert found.how.endswith(fact.request.prompt) and found.how != fact.request.prompt
    assert run(target) == outcome


def test_more_steps_find_more_probable_answers(forgetful: Forgetful, nanogcg: Any) -> None:
    few, many = (run(forgetful.target(), steps=steps, width=16) for steps in (1, 12))
    assert sum(one.score for one in many.facts) > sum(one.score for one in few.facts)


def test_what_does_not_work_is_told(forgetful: Forgetful, nanogcg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'inputs_embeds'\nand more")

    monkeypatch.setattr(nanogcg, "run", broken)
    with pytest.raises(AuditError, match=r"nanogcg does not work on this model: .* 'inputs_embeds'$"):
        run(forgetful.target())


def test_without_the_package_it_says_how_to_have_it(forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(AuditError, match="pip install --no-deps nanogcg"):
        module._nanogcg()
