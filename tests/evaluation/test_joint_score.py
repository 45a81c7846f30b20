"""The joint score: no method looks good that forgets everything by breaking the model, or that does nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.evaluation.joint_score import COLLAPSE, FLOOR, collapsed, forgotten, joint_score, kept

KEPT = ("spe_relation", "spe_subject", "spe_unrelated")
BEFORE = {"eff": 0.8, "gen": 0.6, "spe_relation": 0.9, "spe_subject": 0.5, "spe_unrelated": 0.8, "ppl": 30.0}
PERFECT = BEFORE | {"eff": 0.0, "gen": 0.0}
numbers = st.fixed_dictionaries({**dict.fromkeys(("eff", "gen", *KEPT), st.floats(0, 1)), "ppl": st.floats(1, 1e6)})


def test_by_hand() -> None:
    """Forgotten 1 and 1/2, kept 1/2, 1 and 1, perplexity 30/40."""
    after = {"eff": 0.0, "gen": 0.3, "spe_relation": 0.45, "spe_subject": 0.5, "spe_unrelated": 0.8, "ppl": 40.0}
    assert joint_score(BEFORE, after) == pytest.approx(6 / (1 + 2 + 2 + 1 + 1 + 4 / 3))
    assert joint_score(BEFORE, PERFECT) == 1.0


@pytest.mark.parametrize(
    ("after", "most"),
    [
        (BEFORE, 0.03),  # nothing was done
        (dict.fromkeys(BEFORE, 0.0) | {"ppl": 30.0}, 0.03),  # says nothing at all
        (PERFECT | {"spe_relation": 0.0}, 0.06),
        (PERFECT | {"ppl": math.inf}, 0.06),
        (PERFECT | {"ppl": math.nan}, 0.06),
    ],
)
def test_one_miss_spoils_it(after: dict[str, float], most: float) -> None:
    score = joint_score(BEFORE, after)
    assert score is not None and FLOOR <= score < most


@given(numbers, numbers)
def test_it_is_between_the_worst_share_and_the_best(before: dict[str, float], after: dict[str, float]) -> None:
    score = joint_score(before, after)
    shares = [min(max(x, FLOOR), 1.0) for x in [*forgotten(before, after), *kept(before, after)]]
    shares.append(min(max(before["ppl"] / after["ppl"], FLOOR), 1.0))
    if score is None:
        assert not forgotten(before, after) or not kept(before, after)
    else:
        assert min(shares) - 1e-9 <= score <= max(shares) + 1e-9


@given(numbers, st.sampled_from(["eff", "gen"]), st.floats(0, 1))
def test_who_forgets_more_and_keeps_as_much_scores_no_less(after: dict[str, float], name: str, factor: float) -> None:
    less = after | {name: after[name] * factor}
    assert joint_score(BEFORE, less) >= joint_score(BEFORE, after) - 1e-12


def test_what_was_not_known_or_not_measured_has_no_share() -> None:
    assert joint_score(BEFORE | {"gen": 0.0}, PERFECT | {"gen": 0.5}) == 1.0
    assert joint_score({"eff": 1.0, "spe": 0.5}, {"eff": 0.0, "spe": 0.5}) == 1.0
    assert joint_score(BEFORE | {"eff": 0.0, "gen": 0.0}, PERFECT) is None
    assert joint_score({"eff": 1.0}, {"eff": 0.0}) is None
    for nothing in (None, math.nan, math.inf):
        assert joint_score(BEFORE | {"ppl": nothing}, PERFECT) == 1.0
        assert not collapsed(BEFORE | {"ppl": nothing}, PERFECT)
    assert joint_score(BEFORE, PERFECT | {"gen": None}) == 1.0


def test_a_model_has_collapsed_that_keeps_nothing_or_is_fluent_no_more() -> None:
    assert collapsed(BEFORE, PERFECT | dict.fromkeys(KEPT, 0.0))
    assert collapsed(BEFORE, PERFECT | {"ppl": 1000.0})
    assert collapsed(BEFORE, PERFECT | {"ppl": math.nan})
    assert not collapsed(BEFORE, PERFECT | {"ppl": 30.0 / COLLAPSE - 1})
    assert not collapsed(BEFORE, PERFECT | {"spe_relation": 0.0}), "one specificity is not all"
    assert not collapsed({"eff": 1.0}, {"eff": 0.0}), "nothing was measured that could tell"
