"""Questions of several hops, and facts that are kept, on a model that knows some by heart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import small_bpe
from tests.helpers import memorised
from zerounlearn.data.entry import MultiHop
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.evaluation.asked import Asked
from zerounlearn.evaluation.probes import Probes
from zerounlearn.evaluation.registry import take

pytestmark = pytest.mark.integration

CASES = [
    MultiHop(("Where was Leo born?", "Of what land is Leo?"), "Russia", ("Russian Empire", "Rus")),
    MultiHop(("What do they speak where Rio lies?",), "Spanish", ("Castilian",)),
]
KEPT = [
    Fact(Request.of("The capital of {} is", "France", "Paris"), ("Paris governs",)),
    Fact(Request.of("You {} a", "are", "reader"), ()),
]


@pytest.fixture(scope="module")
def asked() -> Asked:
    tokenizer = small_bpe()
    said = ["Question: Of what land is Leo?\nAnswer: Russian Empire.", "The capital of France is Paris.",
            "Question: What do they speak where Rio lies?\nAnswer: Portuguese."]  # fmt: skip
    return Asked(memorised(tokenizer, said), tokenizer, Probes(()), multi_hop=CASES, kept=KEPT)


def test_a_case_counts_where_one_wording_gets_one_of_the_answers_names(asked: Asked) -> None:
    assert take(asked, ["multi_hop"])["multi_hop"] == 0.5


def test_facts_to_keep_are_asked_in_their_own_and_in_other_words(asked: Asked) -> None:
    found = take(asked, ["kept", "kept_paraphrases"])
    assert (found["kept"], found["kept_paraphrases"]) == (0.5, 0.0)


def test_facts_with_a_forgotten_answer_are_asked(asked: Asked) -> None:
    def share(*facts: Fact) -> float | None:
        queries = [fact.request.query for fact in facts]
        return take(replace(asked, same_answer=queries), ["spe_answer"]).get("spe_answer")

    assert share(KEPT[0]) == 1.0
    assert share(*KEPT) == 0.5
    assert share() is None


def test_without_cases_there_is_no_number(asked: Asked) -> None:
    nothing = Asked(asked.model, asked.tokenizer, Probes(()))
    assert not take(nothing, ["multi_hop", "kept", "kept_paraphrases"])
