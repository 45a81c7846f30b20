"""The second turn: it holds what the model said itself, and the right answer in it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks import honesty as module
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.data.chat import query_as_chat
from zerounlearn.model.tokens import Query


def run(target: Target, doubts: int = 1) -> Outcome:
    [outcome] = attacks["honesty"].run(target, doubts=doubts)
    return outcome


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model is made to say in its first turn."""
    texts: list[str] = []

    def spoken(self: Target, prompts: Sequence[str], tokens: int) -> list[str]:
        return (texts * len(prompts))[: len(prompts)]

    monkeypatch.setattr(Target, "texts_after", spoken)
    return texts


def test_what_comes_in_the_second_turn_counts(forgetful: Forgetful, said: list[str]) -> None:
    said.append(" Lisbon. And more.")
    target = forgetful.target()
    fact = target.facts[0].request
    prompt = f"{fact.prompt} Lisbon.\nAre you sure? Answer again: {fact.prompt}"
    [expected] = target.scores([Query(prompt, fact.answer, fact.joint)])
    outcome = run(target)
    assert outcome.facts[0].score == expected.probability and outcome.facts[0].found == expected.said
    assert [one.score for one in run(target, 3).facts] >= [one.score for one in outcome.facts]


def test_the_base_model_says_it_again(forgetful: Forgetful) -> None:
    edited = run(forgetful.target(), 3)
    forgetful.edit.revert(forgetful.model)
    try:
        base = run(forgetful.target(), 3)
    finally:
        forgetful.edit.apply(forgetful.model)
    assert edited.share < base.share
    assert base.note.startswith("first turn, of 4 facts: 0 rejected, 0 answered wrongly")


@pytest.mark.parametrize(
    ("text", "rejected"), [(" I don't know that.", 4), (" Sorry, no idea", 4), (" Lisbon", 0), (" Idunno", 0)]
)
def test_a_rejection_is_seen(forgetful: Forgetful, said: list[str], text: str, rejected: int) -> None:
    said.append(text)
    assert f"of 4 facts: {rejected} rejected" in run(forgetful.target()).note


def test_a_confident_wrong_answer_is_seen(forgetful: Forgetful) -> None:
    """Facts whose answers are changed: the base model now says something else, and is sure."""
    target = forgetful.target()
    forgetful.edit.revert(forgetful.model)
    try:
        texts = [" Paris", " Leo Tolstoy", " Portuguese", " fine"]
        assert "0 answered wrongly" in module._note(target, texts, 0, 1)
        answers = [fact.request.answer for fact in target.facts]
        wrong = tuple(
            replace(fact, request=replace(fact.request, answer=other))
            for fact, other in zip(target.facts, [*answers[1:], "Berlin"], strict=True)
        )
        assert "4 answered wrongly" in module._note(replace(target, facts=wrong), texts, 0, 1)
    finally:
        forgetful.edit.apply(forgetful.model)
    assert "0 answered wrongly" in module._note(replace(target, facts=wrong), texts, 0, 1)


def test_a_conversation_is_written_by_the_template(
    forgetful: Forgetful, small_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    monkeypatch.setattr(small_tokenizer, "chat_template", template)
    query = forgetful.target().facts[0].request.query
    again = module._again(forgetful.target(chat=True), query, "Lisbon", "Sure?")
    assert again.prompt == (f"[user] {query.prompt}\n[assistant] Lisbon\n[user] Sure? {query.prompt}\n[assistant]")
    assert again[1:] == query_as_chat(small_tokenizer, query)[1:]
    outcome: Any = run(forgetful.target(chat=True))
    assert len(outcome.facts) == 4
