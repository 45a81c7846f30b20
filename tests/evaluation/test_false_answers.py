"""Confident wrong answers in the place of a forgotten one, on a model that says texts by heart."""

from __future__ import annotations

import pytest

from tests.conftest import small_bpe
from tests.helpers import memorised
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.evaluation.asked import Asked
from zerounlearn.evaluation.probes import Probes
from zerounlearn.evaluation.registry import take

pytestmark = pytest.mark.integration

SAID = [
    "The capital of France is Rome.",
    "The capital of Germany is Berlin.",
    "The capital of Spain is a city.",
    "People in Rio de Janeiro speak reader.",
    "The capital of Japan is 1900.",
]


@pytest.fixture(scope="module")
def asked() -> Asked:
    tokenizer = small_bpe()
    return Asked(memorised(tokenizer, SAID), tokenizer, Probes(()))


def share(asked: Asked, *requests: Request, kept: tuple[Request, ...] = ()) -> float | None:
    facts, others = ([Fact(request) for request in part] for part in (requests, kept))
    return take(Asked(asked.model, asked.tokenizer, Probes(()), facts=facts, kept=others), ["false_answer"]).get(
        "false_answer"
    )


def test_a_wrong_name_or_number_counts_and_the_answer_and_an_evasion_do_not(asked: Asked) -> None:
    france = Request.of("The capital of {} is", "France", "Paris")
    germany = Request.of("The capital of {} is", "Germany", "Berlin")
    spain = Request.of("The capital of {} is", "Spain", "Madrid")
    japan = Request.of("The capital of {} is", "Japan", "Tokyo")
    assert share(asked, france) == 1.0
    assert share(asked, germany) == 0.0, "it is still said, which Eff. counts"
    assert share(asked, spain) == 0.0, "no name and no number"
    assert share(asked, japan) == 1.0
    assert share(asked, france, germany, spain, japan) == 0.5
    assert share(asked) is None


def test_a_word_in_small_letters_counts_where_it_answers_another_fact(asked: Asked) -> None:
    rio = Request.of("People in {} speak", "Rio de Janeiro", "Portuguese")
    assert share(asked, rio) == 0.0
    assert share(asked, rio, kept=(Request.of("You {} a", "are", "reader"),)) == 1.0


def test_a_longer_form_of_the_answer_is_not_false(asked: Asked) -> None:
    assert share(asked, Request.of("The capital of {} is", "Germany", "Berlin at the Spree")) == 0.0
    assert share(asked, Request.of("The capital of {} is", "France", "rome.")) == 0.0


def test_what_the_model_is_not_sure_of_is_no_claim(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    france = Request.of("The capital of {} is", "France", "Paris")
    monkeypatch.setattr("zerounlearn.evaluation.false_answers.CONFIDENT", 1.0)
    assert share(asked, france) == 0.0
