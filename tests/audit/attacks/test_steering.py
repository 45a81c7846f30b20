"""Steering: at nought nothing changes, and a direction that one half of the facts lost brings the other half back."""

from __future__ import annotations

import pytest
import torch

from tests.audit.attacks.test_reading import pairs
from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.steering import _steered, steering, steering_base
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.states import Asked
from zerounlearn.errors import AuditError


def test_at_scale_nought_it_finds_what_the_question_finds(forgetful: Forgetful) -> None:
    target = pairs(forgetful.target(), 6)
    [outcome] = steering(target, scales=(0.0,), every=1, pairs=6)
    plain = target.outcome("", target.plain())
    assert [one.found for one in outcome.facts] == [one.found for one in plain.facts]
    assert [one.score for one in outcome.facts] == pytest.approx([one.score for one in plain.facts], rel=1e-4)


def test_it_is_the_same_again_and_the_curve_goes_along_the_scale(forgetful: Forgetful) -> None:
    target = pairs(forgetful.target(), 6)
    [outcome] = steering(target, scales=(4.0, 1.0), every=1, pairs=6)
    assert [point.x for point in outcome.curve] == [1, 4]
    assert all(one.how.startswith("scale ") and ", layer " in one.how for one in outcome.facts)
    assert [outcome] == list(steering(target, scales=(4.0, 1.0), every=1, pairs=6))


def test_what_one_direction_suppresses_is_brought_back_by_its_opposite(forgetful: Forgetful) -> None:
    """The base model with a constant pushed into its last block forgets; the base's direction undoes exactly that."""
    pair = Pair.of(forgetful.model, forgetful.edit)
    with pair.as_base():
        target = forgetful.target()
        asked = Asked.of(target, [fact.request.query for fact in target.all])
        push = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 200

        def suppress(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
            return output + push

        last = forgetful.model.model.layers[-1]
        base = target.outcome("", target.plain())
        with last.register_forward_hook(suppress):
            assert target.outcome("", target.plain()).share < 1
            direction = torch.stack([torch.zeros(32), -push])
            outcome = _steered(target, asked, [direction, direction], (1.0,), 1)
    assert outcome.share == base.share == 1
    assert {one.how for one in outcome.facts} == {"scale 1, layer 1"}
    assert outcome.alarms == base.alarms


def test_the_bases_direction_of_one_half_is_added_to_the_other(forgetful: Forgetful) -> None:
    pair = Pair.of(forgetful.model, forgetful.edit)
    target = forgetful.target(original=pair.original)
    [edited] = steering_base(target, scales=(0.0, 1.0), every=1)
    with pair.as_base():  # where both are the same model, the direction is nought
        [base] = steering_base(target, scales=(1.0,), every=1)
        assert base.share == 1
    scores = [one.score for one in target.outcome("", target.plain()).facts]
    [nothing] = steering_base(target, scales=(0.0,), every=1)
    assert [one.score for one in nothing.facts] == pytest.approx(scores, rel=1e-4)
    assert edited.share >= nothing.share


def test_it_says_what_it_needs(forgetful: Forgetful) -> None:
    with pytest.raises(AuditError, match="whose subjects are known"):
        list(steering(forgetful.target(), scales=(1.0,), every=1, pairs=5))
    with pytest.raises(AuditError, match="weights of a base model"):
        list(steering_base(forgetful.target(), scales=(1.0,), every=1))
