"""Soft prompts: each prompt has its own, what was said is not read again, and controls are optimised alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks import soft_prompt as module
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.model.answers import score
from zerounlearn.model.tokens import continuation, encode

FEW = {"vectors": 2, "steps": 3, "rate": 0.3}


def run(target: Target, **changes: Any) -> Outcome:
    [outcome] = attacks["soft_prompt"].run(target, **FEW | changes)
    return outcome


def test_what_a_model_knows_is_said_sooner_than_of_made_up_subjects(forgetful: Forgetful) -> None:
    forgetful.edit.revert(forgetful.model)
    try:
        base = run(forgetful.target(), steps=20)
    finally:
        forgetful.edit.apply(forgetful.model)
    edited = run(forgetful.target(), steps=20)
    assert max(point.facts for point in edited.curve) < max(point.facts for point in base.curve) == 1
    said = [point.facts for point in base.curve]
    assert said == sorted(said) and [point.x for point in base.curve] == list(range(21))
    scores = [one.score for one in base.facts]
    assert sum(scores) > 0 and base.share > base.alarms
    assert max(point.controls for point in base.curve) > 0  # with enough steps anything is said


def test_the_pass_is_that_of_the_embeddings_in_front_of_the_prompt(forgetful: Forgetful) -> None:
    target, model = forgetful.target(), forgetful.model
    rows = []
    for fact in target.facts[:2]:
        query = fact.request.query
        rows.append((encode(target.tokenizer, query.prompt), continuation(target.tokenizer, *query)))
    soft = torch.randn(2, 3, 32, generator=target.generator())
    losses, said = module._read(target, rows, soft)
    for (prompt, answer), given, loss, hit in zip(rows, soft, losses, said, strict=True):
        embedded = model.get_input_embeddings()(torch.tensor(prompt + answer)).detach()
        logits = model(inputs_embeds=torch.cat([given, embedded])[None]).logits[0, -len(answer) - 1 : -1]
        wanted = torch.tensor(answer)
        expected = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
        assert bool(hit) == bool((logits.argmax(-1) == wanted).all())


def test_each_prompt_is_optimised_alone(forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    target = forgetful.target()
    together = run(target)
    monkeypatch.setattr(module, "_ROWS", 3)
    apart = run(target)
    for one, other in zip(together.facts, apart.facts, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-2)


def test_no_step_is_the_plain_question_behind_random_tokens(forgetful: Forgetful) -> None:
    target = forgetful.target()
    outcome = run(target, steps=0, vectors=3)
    drawn = torch.randint(
        forgetful.model.get_input_embeddings().num_embeddings, (3,), generator=target.generator()
    ).tolist()
    before = target.tokenizer.decode(drawn)
    if encode(target.tokenizer, before) == drawn:
        queries = [fact.request.query._replace(prompt=before + fact.request.prompt) for fact in target.facts]
        said = [one.said for one in score(target.model, target.tokenizer, queries)]
        assert [one.how == "0 steps" for one in outcome.facts] == said
    assert len(outcome.curve) == 1


def test_the_seed_decides(forgetful: Forgetful) -> None:
    first, second, other = (run(forgetful.target(seed=seed)) for seed in (0, 0, 1))
    assert first == second != other


def test_an_interruption_leaves_the_model_as_it_was(forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "logits_at", stop)
    with pytest.raises(KeyboardInterrupt):
        run(forgetful.target())
