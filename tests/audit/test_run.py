"""The audit as a whole: what is counted, what is compared with what, what is refused, that nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.audit.conftest import TEXT, Forgetful, facts
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.registry import BUDGETS, Access, attack, attacks, chosen
from zerounlearn.audit.results import Audit
from zerounlearn.audit.run import run_audit
from zerounlearn.audit.target import Finding, Outcome, Point, Target
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.errors import AuditError, ConfigError
from zerounlearn.model.answers import score


def audited(forgetful: Forgetful, **changes: Any) -> Audit:
    given: dict[str, Any] = {"only": ("plain", "wording"), "text": TEXT, "base": forgetful.edit} | changes
    return run_audit(forgetful.model, forgetful.tokenizer, given.pop("facts", facts()), **given)


def test_it_counts_what_the_base_model_says_and_compares_with_it(forgetful: Forgetful) -> None:
    unknown = Fact(Request.of("{} is a city in", "Lisbon", "Norway"))
    audit = audited(forgetful, facts=[*facts(), unknown])
    assert (len(audit.facts), audit.unknown) == (4, 1)
    [plain, *rest] = audit.variants
    said = [one.said for one in score(forgetful.model, forgetful.tokenizer, [f.request.query for f in facts()])]
    assert [one.found for one in plain.edited.facts] == said
    assert plain.edited.share < plain.ceiling.share == 1
    assert {variant.attack for variant in rest} == {"wording"}
    assert {len(each) for variant in audit.variants for each in variant.edited.controls} == {2}
    assert audit.disruption is not None and audit.disruption > 0
    assert audit.attacked[0].tokens[0] == audit.attacked[0].tokens[1] > 0


@pytest.mark.parametrize("where", ["edit", "model"])
def test_an_edit_and_its_base_model_are_the_same_base(forgetful: Forgetful, where: str) -> None:
    base = copy.deepcopy(forgetful.model)
    forgetful.edit.revert(base)
    audit = audited(forgetful, base=base if where == "model" else forgetful.edit)
    assert audit.fingerprints["base"] != audit.fingerprints["edited"]
    other = audited(forgetful)
    for a, b in zip(audit.attacked, other.attacked, strict=True):
        assert a == b


def test_the_same_seed_gives_the_same_bytes_but_for_times(forgetful: Forgetful) -> None:
    first, second, other = (replace(audited(forgetful, seed=seed), seconds={}).to_json() for seed in (0, 0, 1))
    assert first == second != other


def test_an_audit_is_read_back_as_it_was(forgetful: Forgetful, tmp_path: Path) -> None:
    audit = audited(forgetful)
    audit.save(tmp_path)
    assert Audit.load(tmp_path) == Audit.load(tmp_path / "audit.json") == audit


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is no audit"), ("[]", "is no audit"), ('{"format": 9}', "format 9"), ('{"format": 1}', "is no audit")],
)
def test_what_is_no_audit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(AuditError, match=message):
        Audit.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": [Fact(Request.of("{} is a city in", "Lisbon", "Norway"))]}, "says none of the 1 facts"),
        ({"controls": 0}, "controls=0"),
        ({"budget": "huge"}, "budget='huge'"),
        ({"only": ["plane"]}, "did you mean 'plain'"),
        ({"only": ["plain"], "without": ["plain"]}, "asked for and left out"),
    ],
)
def test_what_makes_no_audit_is_refused(forgetful: Forgetful, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((AuditError, ConfigError), match=message):
        audited(forgetful, **changes)


def test_two_models_must_belong_together(forgetful: Forgetful, small_tokenizer: Any) -> None:
    same = copy.deepcopy(forgetful.model)
    with pytest.raises(AuditError, match="has the base model's weights"):
        Pair.of(forgetful.model, same)
    same.model.layers = same.model.layers[:1]
    with pytest.raises(AuditError, match="different architectures: model.layers.1"):
        Pair.of(forgetful.model, same)
    forgetful.edit.revert(forgetful.model)
    with pytest.raises(AuditError, match="not on the model"):
        Pair.of(forgetful.model, forgetful.edit)
    forgetful.edit.apply(forgetful.model)


@pytest.fixture
def registered() -> Iterator[None]:
    """Four attacks of somebody else's."""

    @attack("shouting", label="Shouting", access=Access.PROMPTS, quick={"marks": 1}, thorough={"marks": 3})
    def shouting(target: Target, *, marks: int) -> Iterator[Outcome]:
        """Exclamation marks."""
        queries = [fact.request.query._replace(prompt=f"{'!' * marks} {fact.request.prompt}") for fact in target.all]
        yield target.outcome(f"{marks} marks", [Finding.of(one) for one in target.scores(queries)])

    @attack("impossible", label="Impossible", access=Access.PLAIN, quick={})
    def impossible(target: Target) -> list[Outcome]:
        """What cannot be run."""
        target.need(100, "facts", len(target.facts))
        return []

    @attack("dear", label="Dear", access=Access.TRAINING, thorough={})
    def dear(target: Target) -> list[Outcome]:
        """What only a large budget has."""
        return [target.outcome("", target.plain())]

    @attack("absent", label="Absent", access=Access.PLAIN, quick={}, needs=["no-such-package"])
    def absent(target: Target) -> list[Outcome]:
        """What needs a package."""
        raise AssertionError

    yield
    for name in ("shouting", "impossible", "dear", "absent"):
        attacks.remove(name)


def test_an_attack_is_given_the_base_models_weights_and_strange_prompts(
    forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Target] = []

    def look(target: Target) -> list[Outcome]:
        given.append(target)
        return [target.outcome("", target.plain())]

    monkeypatch.setitem(
        attacks._entries, "plain", replace(attacks.entry("plain"), target=replace(attacks["plain"], run=look))
    )
    first, *rest = facts()
    neighbours = (("The capital of Germany is", "Berlin"), ("You are a reader", "of it"))
    audited(forgetful, only=["plain"], facts=[replace(first, neighbours=neighbours), *rest])
    for target in given:
        assert set(target.original) == set(forgetful.edit.before)
        told = dict(zip(target.others, target.strange, strict=True))
        [prompt] = [strange for query, strange in told.items() if query.prompt == "The capital of Germany is"]
        assert prompt.startswith("The capital of ") and prompt.endswith(" is") and "Germany" not in prompt
        [unknown] = [strange for query, strange in told.items() if query.prompt == "You are a reader"]
        assert unknown == ""
        assert not {fact.request.prompt for fact in target.all} & set(target.strange)


@pytest.mark.usefixtures("registered")
def test_an_attack_is_registered_and_what_is_not_run_says_why(forgetful: Forgetful) -> None:
    audit = audited(forgetful, only=["shouting", "impossible", "dear", "absent"])
    assert [variant.label for variant in audit.variants] == ["Shouting: 1 marks"]
    assert audit.not_run["impossible"] == "it needs 100 facts, and there are 4"
    assert "more than the budget 'quick'" in audit.not_run["dear"]
    assert "zerounlearn[audit]" in audit.not_run["absent"]
    assert audit.not_run["plain"].startswith("not asked for")
    assert [attacks["shouting"].settings(budget) for budget in BUDGETS] == [{"marks": 1}, {"marks": 1}, {"marks": 3}]
    assert [one.name for one in chosen(["dear", "shouting", "plain"])] == ["plain", "shouting", "dear"]


def test_a_failure_midway_leaves_the_model_as_it_was(forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def stop(target: Target) -> list[Outcome]:
        calls.append(target.base)
        if target.base:
            raise KeyboardInterrupt
        return [target.outcome("", target.plain())]

    monkeypatch.setitem(
        attacks._entries, "plain", replace(attacks.entry("plain"), target=replace(attacks["plain"], run=stop))
    )
    with pytest.raises(KeyboardInterrupt):
        audited(forgetful)
    assert calls == [False, True]  # the fixture looks at the weights


def test_the_numbers_are_those_of_the_findings() -> None:
    def outcome(facts: list[bool], controls: list[list[bool]]) -> Outcome:
        return Outcome(
            "",
            tuple(Finding(f, float(f)) for f in facts),
            tuple(tuple(Finding(c, float(c)) for c in each) for each in controls),
        )

    edited = outcome([True, True, False, True], [[False, False], [True, False], [False, False], [True, True]])
    ceiling = outcome([True] * 4, [[False, False]] * 4)
    variant = zu.audit.results.Variant("x", "X", "PROMPTS", edited, ceiling)
    assert (variant.edited.share, variant.edited.alarms) == (0.75, 3 / 8)
    assert variant.excess == variant.recovered == 0.375
    assert [variant.brought_back(i) for i in range(4)] == [True, True, False, False]
    low, high = variant.excess_interval
    assert -1 <= low < 0.375 < high <= 1
    low, high = variant.interval
    assert (round(low, 3), round(high, 3)) == (0.301, 0.954)  # Wilson's, of 3 of 4
    # Of 12 asked 6 were found: the chance that 3 or 4 of them are among the four facts.
    assert variant.p == pytest.approx((20 * 6 + 15) / 495)
    nothing = outcome([False] * 4, [[False, False]] * 4)
    assert replace(variant, ceiling=nothing).recovered is None


def test_a_score_without_a_threshold_is_held_against_the_controls(forgetful: Forgetful) -> None:
    target = forgetful.target()
    scores = [9.0, 0.5, -1.0, 0.0, *(i / 16 for i in range(16))]
    outcome = target.by_score("", scores)
    assert [one.found for one in outcome.facts] == [True, False, False, False]
    assert outcome.alarms <= 0.25
    assert fmean(one.score for each in outcome.controls for one in each) == pytest.approx(fmean(scores[4:]))
    with pytest.raises(ValueError, match="3 values"):
        target.outcome("", [Finding(True, 1.0)] * 3)
    assert target.point(2.0, [Finding(i == 0, 0.0) for i in range(20)]) == Point(2.0, 0.25, 0.0)


def test_controls_ask_the_same_of_subjects_that_do_not_exist(forgetful: Forgetful) -> None:
    target = forgetful.target()
    for fact, controls in zip(target.facts, target.controls, strict=True):
        subjects = {one.request.subject for one in controls}
        assert len(subjects) == 4 and fact.request.subject not in subjects
        for one in controls:
            assert one.request.answer == fact.request.answer
            assert one.request.prompt == fact.request.prompt.replace(fact.request.subject, one.request.subject)
            assert one.paraphrases == tuple(
                p.replace(fact.request.subject, one.request.subject) for p in fact.paraphrases
            )
    assert len({one.request.subject for one in target.all}) == len(target.all)


def test_kl_is_nought_for_equal_weights_and_that_of_the_two_models_else(forgetful: Forgetful) -> None:
    from zerounlearn.audit.disruption import disruption

    pair = Pair.of(forgetful.model, forgetful.edit)
    same = Pair(forgetful.model, {n: v.clone() for n, v in forgetful.weights().items() if n in pair.original})
    assert disruption(same, forgetful.tokenizer, TEXT) == 0
    ids = torch.tensor([[i for text in TEXT for i in forgetful.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        edited = forgetful.model(input_ids=ids).logits[0].log_softmax(-1)
        with pair.as_base():
            base = forgetful.model(input_ids=ids).logits[0].log_softmax(-1)
    expected = torch.nn.functional.kl_div(edited, base, log_target=True, reduction="batchmean")
    assert disruption(pair, forgetful.tokenizer, TEXT) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("goal", [0.01, 0.3])
def test_an_edit_is_scaled_to_a_disruption_and_put_back(forgetful: Forgetful, goal: float) -> None:
    from zerounlearn.audit.disruption import at_disruption, disruption

    pair = Pair.of(forgetful.model, forgetful.edit)
    whole = disruption(pair, forgetful.tokenizer, TEXT)
    with at_disruption(pair, forgetful.tokenizer, TEXT, goal) as factor:
        assert disruption(pair, forgetful.tokenizer, TEXT) == pytest.approx(goal, rel=0.05)
        assert (factor < 1) == (goal < whole)
    assert disruption(pair, forgetful.tokenizer, TEXT) == whole  # the fixture looks at the weights
    with pytest.raises(AuditError, match="still nearer"), at_disruption(pair, forgetful.tokenizer, TEXT, 1e9):
        pass
