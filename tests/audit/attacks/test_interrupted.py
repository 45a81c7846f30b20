"""Attacks under every budget on a small model, and stopped at any point: the model is left as it was either way."""

from __future__ import annotations

import pytest
import torch

from tests.audit.attacks.test_reading import pairs
from tests.audit.conftest import Forgetful
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Target

NAMES = (
    "interpolation", "patching", "pruning", "reading", "reversal", "rounding", "sampling", "steering", "steering_base",
)  # fmt: skip


def given(forgetful: Forgetful) -> Target:
    original = Pair.of(forgetful.model, forgetful.edit).original
    plain = pairs(forgetful.target(), 12)
    return Target(
        plain.model, plain.tokenizer, plain.facts, plain.controls, plain.others, plain.texts,
        strange=plain.strange, original=original,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_the_edited_and_on_the_base_model_with_the_same_variants(forgetful: Forgetful, name: str) -> None:
    settings = attacks[name].settings("standard")
    assert settings is not None
    target = given(forgetful)
    edited = list(attacks[name].run(target, **settings))
    with Pair.of(forgetful.model, forgetful.edit).as_base():
        base = list(attacks[name].run(target, **settings))
    assert [one.variant for one in edited] == [one.variant for one in base] != []
    for one in (*edited, *base):
        assert len(one.facts) == 4 and [len(each) for each in one.controls] == [4] * 4
        assert all(0 <= point.facts <= 1 for point in one.curve)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_leaves_no_trace(forgetful: Forgetful, name: str, after: int) -> None:
    passes = 0

    def stop(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes > after:
            raise KeyboardInterrupt

    settings = attacks[name].settings("standard")
    assert settings is not None
    state = torch.random.get_rng_state()
    norm = forgetful.model.model.layers[-1].input_layernorm
    with norm.register_forward_pre_hook(stop), pytest.raises(KeyboardInterrupt):
        list(attacks[name].run(given(forgetful), **settings))
    assert torch.equal(state, torch.random.get_rng_state())
