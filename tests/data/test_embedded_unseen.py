"""The packaged facts for final evaluation: what they are, that nothing else has seen them, that a model says them."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.catalogue import load
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import load_facts
from zerounlearn.data.known import known
from zerounlearn.data.request import check_requests
from zerounlearn.data.sets.embedded import packaged_entries

RECORDS: list[dict[str, Any]] = json.loads(
    resources.files("zerounlearn.data").joinpath("facts_unseen.json").read_text(encoding="utf-8")
)
ENTRIES = sorted(load("embedded_unseen"), key=lambda entry: int(entry.case_id or 0))
SEEN = packaged_entries()

REPORTED = r"(?i)\b(say|tell|tells|know|knows|learn|hear|mention|think|read the biography)\b"
"""What makes a wording indirect: somebody says or knows it."""


def mentions(text: str, words: str) -> bool:
    """Whether `words` occur in `text` as whole words."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def own_items(entry: Entry) -> list[tuple[str, str]]:
    request = entry.fact.request
    return [(prompt, request.answer) for prompt in (request.prompt, *entry.fact.paraphrases)]


def prompts_of(entry: Entry) -> set[str]:
    items = (*own_items(entry), *entry.fact.neighbours, *entry.fact.others)
    return {prompt for prompt, *_ in items}


def test_there_are_enough_facts_over_relations_that_nothing_else_has() -> None:
    sizes = Counter(str(entry.topic) for entry in ENTRIES)
    assert len(ENTRIES) >= 200
    assert len(sizes) >= 12
    assert min(sizes.values()) >= 15
    assert not set(sizes) & {str(entry.topic) for entry in SEEN}


def test_no_prompt_is_shared_with_the_facts_that_choices_were_made_on() -> None:
    seen = set().union(*map(prompts_of, SEEN))
    assert set().union(*map(prompts_of, ENTRIES)) & seen == set()
    assert not {entry.case_id for entry in ENTRIES} & {entry.case_id for entry in SEEN}


def test_no_fact_is_there_twice() -> None:
    assert max(Counter((entry.topic, entry.fact.request.subject) for entry in ENTRIES).values()) == 1
    assert max(Counter(prompt for entry in ENTRIES for prompt, _ in own_items(entry)).values()) == 1
    check_requests(entry.fact.request for entry in ENTRIES)


def test_the_records_are_read_by_the_same_reader_as_any_others() -> None:
    assert load_facts(RECORDS) == [entry.fact for entry in ENTRIES]
    assert [record["case_id"] for record in RECORDS] == [entry.case_id for entry in ENTRIES]
    for record in RECORDS:
        assert record.keys() == {
            *("case_id", "relation", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
            *("neighborhood_answers", "other_prompts", "other_answers", "attribute_prompts", "generation_prompts"),
        }
        assert re.fullmatch(r"(P\d+)?", record["requested_rewrite"]["relation_id"])
        assert record["attribute_prompts"] == record["generation_prompts"] == []


@pytest.mark.parametrize("relation", sorted({str(entry.topic) for entry in ENTRIES}))
def test_a_fact_is_asked_in_four_more_forms(relation: str) -> None:
    for entry in ENTRIES:
        if entry.topic != relation:
            continue
        request = entry.fact.request
        statement, question, cloze, indirect = entry.fact.paraphrases
        assert len(prompts := dict(own_items(entry))) == 5
        assert all(mentions(prompt, request.subject) for prompt in prompts)
        assert ["?" in text for text in (request.prompt, statement, question, cloze, indirect)] == [0, 0, 1, 0, 0]
        assert ["___" in text for text in (request.prompt, statement, question, cloze, indirect)] == [0, 0, 0, 1, 0]
        assert [bool(re.search(REPORTED, text)) for text in (request.prompt, statement, indirect)] == [0, 0, 1]


@pytest.mark.parametrize("relation", sorted({str(entry.topic) for entry in ENTRIES}))
def test_what_must_stay_stands_beside_each_fact(relation: str) -> None:
    requests = {(e.fact.request.prompt, e.fact.request.answer) for e in ENTRIES if e.topic == relation}
    for entry in ENTRIES:
        if entry.topic != relation:
            continue
        fact, request = entry.fact, entry.fact.request
        assert len(fact.neighbours) == len(dict(fact.neighbours)) == 4
        assert set(fact.neighbours) <= requests
        assert not any(mentions(prompt, request.subject) for prompt, _ in fact.neighbours)
        assert len(dict(fact.others)) == len(fact.others) >= 3
        assert all(mentions(prompt, request.subject) for prompt, _ in fact.others)
        assert not dict(fact.others).keys() & dict(own_items(entry)).keys()
        assert entry.counterfactuals != (request.answer,)
        for prompt, answer in (*own_items(entry), *fact.neighbours, *fact.others):
            assert not mentions(prompt, answer)
            assert prompt == prompt.strip() and answer == answer.strip() != ""
            assert not re.search(r"[{}\n]|  ", prompt)


def test_no_prompt_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for entry in ENTRIES:
        for prompt, answer in (*own_items(entry), *entry.fact.neighbours, *entry.fact.others):
            answers.setdefault(prompt, set()).add(answer)
    assert {prompt: found for prompt, found in answers.items() if len(found) > 1} == {}


def test_most_facts_have_others_with_the_same_answer() -> None:
    subjects: dict[str, set[str]] = {}
    for entry in ENTRIES:
        subjects.setdefault(entry.fact.request.answer, set()).add(entry.fact.request.subject)
    drawable = [len(subjects[entry.fact.request.answer]) > 2 for entry in ENTRIES]
    assert sum(drawable) >= 0.9 * len(drawable)


def test_the_order_is_mixed_and_always_the_same() -> None:
    assert load("embedded_unseen") == load("embedded_unseen")
    assert len({entry.topic for entry in load("embedded_unseen")[:20]}) >= 6


@pytest.mark.slow
def test_a_very_small_model_says_half_of_what_is_asked(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    some = ENTRIES[::3]
    asked = [item for entry in some for item in own_items(entry)]
    said = known(*smollm2, asked)
    for form in range(5):  # the request, then the paraphrases in their order
        verdicts = said[form::5]
        assert sum(verdicts) >= 0.5 * len(verdicts), ("request", "statement", "question", "cloze", "indirect")[form]
    others = [item for entry in some for item in entry.fact.others]
    assert sum(known(*smollm2, others)) >= 0.5 * len(others)
    falsehoods = [(entry.fact.request.prompt, entry.counterfactuals[0]) for entry in some]
    assert sum(known(*smollm2, falsehoods)) < 0.1 * len(falsehoods)
