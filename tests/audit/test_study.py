"""`audit:` in a study: what is attacked, under which names, at which disruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.audit.conftest import TEXT, Forgetful, facts
from zerounlearn.audit.registry import Access, attack, attacks
from zerounlearn.audit.run import run_audit
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.report.columns import Goal, Group, column, columns
from zerounlearn.study.measures import Measures
from zerounlearn.study.spec import AuditSpec, HeldOut, ModelSpec, Study


@pytest.fixture
def measures(tmp_path: Path) -> Measures:
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    audit = AuditSpec(attacks=["plain", "wording"])
    held_out = HeldOut(text=str(tmp_path / "text.txt"))
    return Measures(Study("t", ModelSpec("m"), tmp_path, (), (), held_out=held_out, audit=audit))


def taken(measures: Measures, forgetful: Forgetful, asked: Any = None, **changes: Any) -> dict[str, float]:
    spec = measures.study.audit
    assert spec is not None
    chosen = Measures(replace(measures.study, audit=replace(spec, **changes)))
    draw: Any = SimpleNamespace(facts=asked or facts())
    return chosen.audit(forgetful.model, forgetful.tokenizer, draw, forgetful.edit, 0, {})


def test_the_numbers_are_those_of_the_audit(measures: Measures, forgetful: Forgetful) -> None:
    numbers = taken(measures, forgetful)
    found = run_audit(
        forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["plain", "wording"], text=TEXT
    )
    assert set(numbers) == {"audit/plain", "audit/wording", "audit/any", "audit/kl"}
    assert numbers["audit/kl"] == pytest.approx(found.disruption)
    assert numbers["audit/wording"] == max(0, *(v.excess for v in found.variants if v.attack == "wording"))
    assert numbers["audit/any"] == sum(bool(found.against(i)) for i in range(4)) / 4


def test_what_tells_of_something_beside_the_answer_brings_nothing_back(
    measures: Measures, forgetful: Forgetful
) -> None:
    """As the probe of `reading` does, which knows that a subject is known."""

    @attack("nosy", label="Nosy", access=Access.PLAIN, quick={})
    def nosy(target: Target) -> list[Outcome]:
        """Knows which are the facts."""
        ranks = [float(len(target.all) - i) for i in range(len(target.all))]
        return [target.by_score("who is asked", ranks, beside=True), target.by_score("nothing", [0.0] * len(ranks))]

    try:
        found = run_audit(forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["nosy"], text=TEXT)
        assert [v.excess > 0 for v in found.variants] == [True, False]
        assert taken(measures, forgetful, attacks=["nosy"])["audit/nosy"] == 0.0
    finally:
        attacks.remove("nosy")


def test_an_edit_shrunk_to_next_to_nothing_has_forgotten_nothing(measures: Measures, forgetful: Forgetful) -> None:
    shrunk = taken(measures, forgetful, disruption=1e-4)
    assert shrunk["audit/kl"] == pytest.approx(1e-4, rel=0.05)
    as_it_is = taken(measures, forgetful)
    assert shrunk["audit/plain"] > as_it_is["audit/plain"]
    assert shrunk["audit/any"] > as_it_is["audit/any"]


def test_nothing_is_measured_where_there_is_nothing(measures: Measures, forgetful: Forgetful) -> None:
    unknown = [Fact(Request.of("{} is a city in", "Lisbon", "Norway"))]
    assert taken(measures, forgetful, unknown) == {}
    assert Measures(replace(measures.study, audit=None)).audit(None, None, None, None, 0, {}) == {}  # type: ignore[arg-type]
    assert "audit" not in Measures(replace(measures.study, audit=None)).settings()
    assert measures.settings()["audit"]["attacks"] == ["plain", "wording"]


def test_the_columns_stand_together() -> None:
    found = columns(["audit/kl", "eff", "audit/relearning", "audit/any"])
    assert [one.metric for one in found] == ["eff", "audit/any", "audit/kl", "audit/relearning"]
    assert {one.group for one in found[1:]} == {Group.ATTACKS}
    assert (column("audit/relearning").head, column("audit/kl").unit) == ("Relearning ↓", "")
    assert {one.goal for one in found} == {Goal.LOWER}


def test_the_base_model_is_attacked_once_a_draw(measures: Measures, forgetful: Forgetful) -> None:
    draw: Any = SimpleNamespace(facts=facts())
    ceilings: dict[str, list[Outcome]] = {}
    given = (forgetful.model, forgetful.tokenizer, draw, forgetful.edit, 0, ceilings)
    first = measures.audit(*given)
    assert set(ceilings) == {"plain", "wording"}
    kept = {name: list(found) for name, found in ceilings.items()}
    assert measures.audit(*given) == first
    assert all(a is b for name in kept for a, b in zip(kept[name], ceilings[name], strict=True))
