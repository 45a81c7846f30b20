"""Patching: nothing is lost by the base model's own states, everything by a stranger's, and controls keep nothing."""

from __future__ import annotations

import pytest
import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.patching import _strangers, left, patching
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.states import Asked
from zerounlearn.errors import AuditError


def test_the_share_left_is_one_less_the_published_score() -> None:
    lost = torch.tensor([[1.0, 0.04, 2.0], [3.0, -1.0, 0.01]], dtype=torch.float64)
    gone = torch.tensor([[0.5, 9.0, -1.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    kept, layers = left(lost, gone)
    # The first: (0.5 + 3) of 4 erased; the second: no layer loses 0.05; the third: one layer, nothing of it erased.
    assert kept.tolist() == pytest.approx([0.125, 0, 1])
    assert layers.tolist() == [2, 0, 1]


def test_the_base_model_keeps_all_and_what_it_never_knew_keeps_nothing(forgetful: Forgetful) -> None:
    pair = Pair.of(forgetful.model, forgetful.edit)
    target = forgetful.target(original=pair.original)
    with pair.as_base():
        said = target.outcome("", target.plain())
        [base] = patching(target, every=1)
    assert [one.score for one in base.facts] == pytest.approx([1] * 4)
    for asked, found in zip(said.controls, base.controls, strict=True):
        assert [one.found for one in found] <= [one.found for one in asked]
        assert all(one.score == 0 for one, had in zip(found, asked, strict=True) if not had.found)
    [edited] = patching(target, every=1)
    assert sum(one.score for one in edited.facts) < sum(one.score for one in base.facts)
    assert all(0 <= one.score <= 1 for one in edited.facts)
    assert [edited] == list(patching(target, every=1))


def test_a_strangers_spots_are_another_controls_of_the_same_fact(forgetful: Forgetful) -> None:
    target = forgetful.target()
    asked = Asked.of(target, [fact.request.query for fact in target.all])
    spots, apt = _strangers(target, asked)
    starts = [*asked.firsts.tolist(), len(asked.wanted)]
    whose = torch.bucketize(spots, torch.tensor(starts), right=True) - 1
    own = torch.bucketize(torch.arange(len(spots)), torch.tensor(starts), right=True) - 1
    for mine, theirs in set(zip(own.tolist(), whose.tolist(), strict=True)):
        assert mine != theirs or not apt[mine]
        fact = mine if mine < 4 else (mine - 4) // 4
        assert not apt[mine] or theirs in range(4 + 4 * fact, 8 + 4 * fact)
    assert all(apt[:4])
    assert asked.wanted[spots].tolist() == asked.wanted.tolist()


def test_it_needs_a_base_and_two_controls(forgetful: Forgetful) -> None:
    with pytest.raises(AuditError, match="weights of a base model"):
        list(patching(forgetful.target(), every=1))
    original = Pair.of(forgetful.model, forgetful.edit).original
    few = forgetful.target(original=original)
    object.__setattr__(few, "controls", tuple(each[:1] for each in few.controls))
    with pytest.raises(AuditError, match="2 controls"):
        list(patching(few, every=1))
