"""Other wordings: every variant asks each fact and each control in its own words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.audit.conftest import Forgetful
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Target
from zerounlearn.model.answers import Score
from zerounlearn.model.tokens import Query


@pytest.mark.parametrize(("language", "word"), [("Spanish", "inglés"), ("French", "anglais")])
def test_another_language_stands_around_the_facts_own_words(
    forgetful: Forgetful, monkeypatch: pytest.MonkeyPatch, language: str, word: str
) -> None:
    """A model that follows the one language alone says the answer there, of the facts alone."""
    target = forgetful.target()
    own = {fact.request.prompt for fact in target.facts}
    asked: list[Query] = []

    def scores(self: Target, queries: Sequence[Query]) -> list[Score]:
        asked.extend(queries)
        follows = [word in q.prompt and any(q.prompt.endswith(prompt) for prompt in own) for q in queries]
        return [Score(said, float(said)) for said in follows]

    monkeypatch.setattr(Target, "scores", scores)
    outcomes = {one.variant: one for one in attacks["wording"].run(target, frames=2, shots=(1,), draws=1)}
    assert [name for name, one in outcomes.items() if one.share] == [language]
    assert outcomes[language].share == 1 and outcomes[language].alarms == 0
    in_it = [query for query in asked if word in query.prompt]
    assert len(in_it) == 2 * len(target.all)
    prompts = [fact.request.prompt for fact in target.all for _ in range(2)]
    assert all(query.prompt.endswith(prompt) for query, prompt in zip(in_it, prompts, strict=True))
