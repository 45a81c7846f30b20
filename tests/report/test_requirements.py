"""What a run must reach: how it is written, when it is met, and what a report says of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests.helpers import FACTS, memorised
from zerounlearn.api import unlearn_and_report
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import methods
from zerounlearn.report.requirements import Requirement
from zerounlearn.report.run import Phase

BEFORE, AFTER = (
    Phase(eff=1.0, eff_probability=0.9, spe=0.8, ppl=20.0),
    Phase(eff=0.05, eff_probability=0.1, spe=0.6, ppl=21.0),
)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("eff<=0.05", True),
        ("eff<0.05", False),
        (" eff <= 5e-2 ", True),
        ("spe>=0.75x", True),
        ("spe>=0.76x", False),
        ("spe>0.5", True),
        ("ppl<=1.05x", True),
        ("ppl<=1.04x", False),
        ("gen<=1", False),  # which was not measured
        ("gen<=1x", False),
    ],
)
def test_a_bound_is_met_or_not(text: str, met: bool) -> None:
    judged = Requirement.of(text).judged(BEFORE, AFTER)
    assert judged.met is met
    assert ("not measured" in str(judged)) == text.startswith("gen")
    assert str(judged).endswith(", met" if met else ", not met")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eff", "require='eff': expected a name, one of <= >= < >, and a number"),
        ("eff=0.05", "expected a name"),
        ("eff<=0.0.5", "expected a name"),
        ("eff<=five", "expected a name"),
        ("", "expected a name"),
        ("efff<=0.05", r"no number 'efff': did you mean 'eff'\?"),
        ("eff_probability<=0.05", "no number 'eff_probability'"),
    ],
)
def test_what_is_no_bound_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Requirement.of(text)


def test_a_fact_that_is_still_said_is_named(small_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    said = [f"{request.prompt} {request.answer}" for request in FACTS[:2]]
    model = memorised(small_tokenizer, said)
    facts = [Fact(request) for request in FACTS[:2]]
    nothing = methods["GA"](layers=[1], steps=1, lr=1e-9)
    with caplog.at_level(logging.WARNING, "zerounlearn"):
        report, edit = unlearn_and_report(
            model, small_tokenizer, facts, nothing, text=None, require=["eff<=0.5", "eff>=1x"]
        )
    assert [fact.answer for fact in report.still_said] == [request.answer for request in FACTS[:2]]
    assert [judged.text for judged in report.failed] == ["eff<=0.5"]
    assert f"still said: 2 of 2 facts: {FACTS[0].prompt!r} → {FACTS[0].answer!r}" in caplog.text
    assert "required eff<=0.5: 1, not met" in caplog.text
    assert "eff>=1x" not in caplog.text
    page = report.to_markdown()
    assert f"**Still said:** 2 of 2: {FACTS[0].prompt} → {FACTS[0].answer}; " in page
    assert "- required eff<=0.5: 1, not met" in page.replace("\\", "")
    assert all(torch.isfinite(value).all() for value in model.parameters())
    edit.revert(model)

    caplog.clear()
    gone, _ = unlearn_and_report(
        model, small_tokenizer, facts, methods["GA"](layers=[0, 1], steps=30, lr=1e-2), text=None, require=["eff<=0"]
    )
    assert (gone.still_said, gone.failed) == ([], [])
    assert "still said" not in caplog.text + gone.to_markdown().lower()
