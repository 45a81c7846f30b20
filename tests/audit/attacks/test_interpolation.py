"""Interpolation: nought is the edited model, one is the base model, and between them facts come back."""

from __future__ import annotations

import pytest

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.interpolation import interpolation
from zerounlearn.audit.pair import Pair
from zerounlearn.errors import AuditError


def test_the_ends_are_the_two_models(forgetful: Forgetful) -> None:
    pair = Pair.of(forgetful.model, forgetful.edit)
    target = forgetful.target(original=pair.original)
    for alpha, base in ((0.0, False), (1.0, True)):
        [outcome] = interpolation(target, alphas=(alpha,))
        if base:
            with pair.as_base():
                plain = target.plain()
        else:
            plain = target.plain()
        assert outcome == target.along("", {alpha: plain}, "alpha")


def test_what_was_forgotten_comes_back_on_the_way_and_controls_do_not(forgetful: Forgetful) -> None:
    target = forgetful.target(original=Pair.of(forgetful.model, forgetful.edit).original)
    [outcome] = interpolation(target, alphas=(0.9, 0.0, 0.99))
    assert [point.x for point in outcome.curve] == [0, 0.9, 0.99]
    assert outcome.curve[0].facts < outcome.curve[-1].facts == outcome.share == 1
    assert outcome.alarms < 0.5
    assert {one.how for one in outcome.facts} <= {"alpha 0", "alpha 0.9", "alpha 0.99"}


def test_on_the_base_model_itself_nothing_changes(forgetful: Forgetful) -> None:
    pair = Pair.of(forgetful.model, forgetful.edit)
    target = forgetful.target(original=pair.original, base=True)
    with pair.as_base():
        [outcome] = interpolation(target, alphas=(0.3, 0.7))
        assert outcome == target.along("", {x: target.plain() for x in (0.3, 0.7)}, "alpha")


def test_without_a_base_it_says_so(forgetful: Forgetful) -> None:
    with pytest.raises(AuditError, match="weights of a base model"):
        list(interpolation(forgetful.target(), alphas=(0.5,)))
