"""Membership scores are those of the answers' tokens, and what was learnt stands out from made-up subjects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks import membership as module
from zerounlearn.audit.registry import attacks
from zerounlearn.errors import AuditError
from zerounlearn.model.answers import answer_tokens
from zerounlearn.model.tokens import continuation, encode


def test_a_model_that_knows_is_told_from_one_that_was_made_to_forget(forgetful: Forgetful) -> None:
    edited = list(attacks["membership"].run(forgetful.target()))
    forgetful.edit.revert(forgetful.model)
    try:
        base = list(attacks["membership"].run(forgetful.target()))
    finally:
        forgetful.edit.apply(forgetful.model)
    assert [one.variant for one in edited] == [one.variant for one in base] == ["loss", "zlib", "min-k", "min-k++"]
    for before, after in zip(base[:3], edited[:3], strict=True):  # min-k++ sees no difference where all is sure
        assert before.share > 0.5 > after.share
        assert before.alarms <= 0.25
        assert "AUC 1.000" in before.note and "privleak +100.0%" in before.note
        assert "AUC 1.000" not in after.note


def test_the_scores_are_those_of_the_answer_alone(forgetful: Forgetful) -> None:
    target = forgetful.target()
    loss, zlib, *_ = attacks["membership"].run(target)
    tokens = answer_tokens(target.model, target.tokenizer, [fact.request.query for fact in target.all])
    raw = [float(one.log_p.mean()) for one in tokens]
    assert [one.score for one in loss.facts] == pytest.approx(target.calibrated(raw)[:4])
    assert [one.score for one in loss.facts] != pytest.approx([one.score for one in zlib.facts])


def test_the_gradient_is_that_of_the_answers_loss(forgetful: Forgetful) -> None:
    target, model = forgetful.target(), forgetful.model
    [outcome] = attacks["gradient_norm"].run(target)
    assert len(outcome.facts) == 4
    query = target.facts[1].request.query
    prompt, answer = encode(target.tokenizer, query.prompt), continuation(target.tokenizer, *query)
    ids = torch.tensor([prompt + answer])
    loss = model(input_ids=ids, labels=ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert module._steepness(target, [query]) == [pytest.approx(-float(norm), rel=1e-4)]


def test_the_gradient_needs_the_weights_at_hand(forgetful: Forgetful) -> None:
    with torch.device("meta"):
        empty = type(forgetful.model)(forgetful.model.config)
    with pytest.raises(AuditError, match="offloaded or quantised"):
        module._steepness(replace(forgetful.target(), model=empty), [])


def test_a_calibrated_score_has_no_share_in_how_easy_its_answer_is(forgetful: Forgetful) -> None:
    target = forgetful.target()
    scores = [5.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 6.0, *[0.0] * 12]
    found = target.calibrated(scores)
    assert found[:2] == [2.0, 0.0] and found[4:8] == pytest.approx([-8 / 3, -4 / 3, 0.0, 4.0])
    easier = [score + (i in (0, 4, 5, 6, 7)) for i, score in enumerate(scores)]
    assert target.calibrated(easier) == pytest.approx(found)
    single = replace(target, controls=tuple(each[:1] for each in target.controls))
    with pytest.raises(AuditError, match="needs 2 controls for each fact, and there are 1"):
        single.calibrated([0.0] * 8)
