"""The packaged facts, field by field, and whether a model knows one."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import FrozenInstanceError
from importlib import resources
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.catalogue import load
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import load_facts
from zerounlearn.data.known import known, known_entries
from zerounlearn.data.sets.embedded import load_embedded, packaged_entries, split_entries
from zerounlearn.errors import ConfigError, RequestError

COUNTERFACT_KEYS = {
    *("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
    *("attribute_prompts", "generation_prompts"),
}
OUR_KEYS = {"relation", "neighborhood_answers", "other_prompts", "other_answers"}

ENTRIES = packaged_entries()
RECORDS: list[dict[str, Any]] = json.loads(
    resources.files("zerounlearn.data").joinpath("facts.json").read_text(encoding="utf-8")
)


def mentions(text: str, words: str) -> bool:
    """Whether `words` occur in `text` as whole words."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def items_of(entry: Entry) -> list[tuple[str, str]]:
    fact, answer = entry.fact, entry.fact.request.answer
    own = [(prompt, answer) for prompt in (fact.request.prompt, *fact.paraphrases)]
    return [*own, *fact.neighbours, *fact.others]


def check_record(record: dict[str, Any]) -> None:
    assert record.keys() == COUNTERFACT_KEYS | OUR_KEYS
    rewrite = record["requested_rewrite"]
    assert rewrite.keys() == {"prompt", "relation_id", "subject", "target_true", "target_new"}
    assert re.fullmatch(r"(P\d+)?", rewrite["relation_id"])
    for target in (rewrite["target_true"], rewrite["target_new"]):
        assert target.keys() == {"str", "id"}
        assert target["str"] == target["str"].strip() != ""
    assert rewrite["target_true"]["str"] != rewrite["target_new"]["str"]
    assert len(record["neighborhood_prompts"]) == len(record["neighborhood_answers"])
    assert len(record["other_prompts"]) == len(record["other_answers"])
    assert record["attribute_prompts"] == record["generation_prompts"] == []


def check_entry(entry: Entry) -> None:
    fact, request = entry.fact, entry.fact.request
    assert request.subject in request.prompt
    assert entry.counterfactuals != (request.answer,)

    assert len(fact.paraphrases) == 2
    assert len({request.prompt, *fact.paraphrases}) == 3
    assert all(request.subject in paraphrase for paraphrase in fact.paraphrases)

    assert len(fact.neighbours) >= 4
    assert len(dict(fact.neighbours)) == len(fact.neighbours)
    assert not any(mentions(prompt, request.subject) for prompt, _ in fact.neighbours)

    assert len(fact.others) >= 2
    assert len(dict(fact.others)) == len(fact.others)
    assert all(request.subject in prompt for prompt, _ in fact.others)
    assert not {prompt for prompt, _ in fact.others} & {request.prompt, *fact.paraphrases}

    for prompt, answer in items_of(entry):
        assert prompt == prompt.strip()
        assert answer == answer.strip() != ""
        assert not re.search(r"[{}\n]|  ", prompt)
        assert not mentions(prompt, answer)


@pytest.mark.parametrize("relation", sorted({str(entry.topic) for entry in ENTRIES}))
def test_every_record_is_well_formed(relation: str) -> None:
    for record, entry in zip(RECORDS, ENTRIES, strict=True):
        if entry.topic == relation:
            check_record(record)
            check_entry(entry)


def test_the_packaged_facts_are_records_as_any_others() -> None:
    assert load_facts(RECORDS) == [entry.fact for entry in ENTRIES]


def test_no_fact_is_there_twice() -> None:
    assert [entry.case_id for entry in ENTRIES] == list(range(len(ENTRIES)))
    assert max(Counter(entry.fact.request.prompt for entry in ENTRIES).values()) == 1
    assert max(Counter((entry.topic, entry.fact.request.subject) for entry in ENTRIES).values()) == 1


def test_the_set_is_as_large_as_studies_need() -> None:
    sizes = Counter(entry.topic for entry in ENTRIES)
    assert len(ENTRIES) >= 240
    assert len(sizes) >= 10
    assert sizes["capital"] >= 50
    assert min(sizes.values()) >= 15


def test_no_prompt_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for entry in ENTRIES:
        for prompt, answer in items_of(entry):
            answers.setdefault(prompt, set()).add(answer)
    assert {prompt: found for prompt, found in answers.items() if len(found) > 1} == {}


def test_neighbours_are_facts_of_the_same_relation() -> None:
    texts = {(entry.topic, entry.fact.request.prompt, entry.fact.request.answer) for entry in ENTRIES}
    inside = [(entry.topic, *neighbour) in texts for entry in ENTRIES for neighbour in entry.fact.neighbours]
    assert sum(inside) > len(inside) / 2


def test_inverse_relations_agree() -> None:
    requests = {r: [entry.fact.request for entry in packaged_entries([r])] for r in ("capital", "capital_of")}
    country = {request.subject: request.answer for request in requests["capital_of"]}
    both = [request for request in requests["capital"] if request.answer in country]
    assert len(both) >= 20
    assert all(country[request.answer] == request.subject for request in both)


def test_load_picks_relations() -> None:
    some = packaged_entries(["currency", "symbol"])
    assert {entry.topic for entry in some} == {"currency", "symbol"}
    assert some == [entry for entry in ENTRIES if entry.topic in {"currency", "symbol"}]
    with pytest.raises(RequestError, match="no facts of relation \\['nonsense'\\].*capital"):
        packaged_entries(["capital", "nonsense"])


def test_entries_are_immutable_and_lists_are_fresh() -> None:
    with pytest.raises(FrozenInstanceError):
        ENTRIES[0].topic = "Lyon"  # type: ignore[misc]
    packaged_entries().clear()
    assert packaged_entries() == ENTRIES


def test_split_is_disjoint_complete_and_stratified() -> None:
    development, evaluation = split_entries(ENTRIES)
    assert sorted(int(entry.case_id or 0) for entry in development + evaluation) == list(range(len(ENTRIES)))
    total = Counter(entry.topic for entry in ENTRIES)
    part = Counter(entry.topic for entry in development)
    assert all(0.25 <= part[relation] / size <= 0.42 for relation, size in total.items())
    with pytest.raises(RequestError, match="no case id: the packaged facts alone have a split"):
        split_entries([Entry(ENTRIES[0].facts)])


def test_split_is_stable_and_depends_on_case_id_and_seed_only() -> None:
    development, evaluation = split_entries(ENTRIES)
    # Golden ids: hyperparameters chosen on this part stay comparable only while it stays the same.
    assert [entry.case_id for entry in development[:6]] == [1, 5, 6, 10, 12, 15]
    state = torch.get_rng_state()
    torch.manual_seed(7)
    assert split_entries(ENTRIES) == (development, evaluation)
    torch.set_rng_state(state)

    some = ENTRIES[::-5]
    ids = {entry.case_id for entry in development}
    assert split_entries(some) == (
        [entry for entry in some if entry.case_id in ids],
        [entry for entry in some if entry.case_id not in ids],
    )
    assert split_entries(ENTRIES, seed=1) != (development, evaluation)


def one_at_a_time(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> bool:
    """Grow the prompt by one true token after another; no batch, no padding, no mask."""
    text = tokenizer(prompt, return_tensors="pt")["input_ids"]
    for token in tokenizer(" " + answer)["input_ids"]:
        with torch.no_grad():
            if int(model(text).logits[0, -1].argmax()) != token:
                return False
        text = torch.cat([text, torch.tensor([[token]])], dim=1)
    return True


@pytest.mark.parametrize("side", ["left", "right"])
def test_known_agrees_with_one_at_a_time(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase], side: str) -> None:
    model, tokenizer = smollm2
    tokenizer.padding_side = side
    chosen = ENTRIES[:: len(ENTRIES) // 14]
    items = [(e.fact.request.prompt, e.fact.request.answer) for e in chosen]
    items += [(e.fact.request.prompt, e.counterfactuals[0]) for e in chosen[:6]]
    expected = [one_at_a_time(model, tokenizer, *item) for item in items]
    assert len(items) >= 20
    assert 5 <= sum(expected) <= len(items) - 5
    assert not any(expected[-6:])
    assert known(model, tokenizer, items) == expected


def test_known_wants_every_token_of_the_answer(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = smollm2
    prompt = "The capital and seat of government of Sweden is the city of"
    # " Stockholm" is right; what follows is not, and then what precedes it is not.
    items = [(prompt, "Stockholm"), (prompt, "Stockholm banana"), (prompt, "banana Stockholm")]
    assert known(model, tokenizer, items) == [True, False, False]


def test_known_leaves_the_model_as_it_was(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = smollm2
    modes: list[bool] = []
    spy = model.base_model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.train()
    try:
        known(model, tokenizer, [("The capital of France is", "Paris")])
        assert modes == [False]  # dropout must not blur a verdict
        assert model.training
    finally:
        spy.remove()
        model.eval()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_known_of_nothing_is_nothing(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    assert known(*smollm2, []) == []


@pytest.mark.parametrize("answer", ["", " "])
def test_empty_answer_is_refused(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase], answer: str) -> None:
    with pytest.raises(RequestError, match="has no tokens"):
        known(*smollm2, [("The capital of France is", answer)])


@pytest.mark.slow
def test_smollm2_knows_enough_facts(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    by_relation = Counter(entry.topic for entry in known_entries(*smollm2, ENTRIES))
    assert by_relation.total() >= 100
    assert by_relation["capital"] >= 30
    assert sum(count >= 8 for count in by_relation.values()) >= 7
    # A false answer of the right kind is not "known": the test can tell facts from plausible text.
    falsehoods = known(*smollm2, [(e.fact.request.prompt, e.counterfactuals[0]) for e in ENTRIES[::5]])
    assert sum(falsehoods) < 0.05 * len(falsehoods)


def test_an_entry_is_known_if_all_its_facts_are(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    known_one, other = known_entries(*smollm2, ENTRIES[:40])[:2]
    unknown = load_facts([{"prompt": "The capital of {} is", "subject": "France", "answer": "Lima"}])[0]
    mixed = Entry((known_one.fact, unknown))
    both = Entry((known_one.fact, other.fact))
    assert known_entries(*smollm2, [mixed, both, Entry((unknown,))]) == [both]


@pytest.mark.parametrize(
    ("wording", "prompt"),
    [
        (
            "cloze",
            "Please complete the blank in the following question.\n"
            "Question: The main language spoken in Italy is ___.\nAnswer:",
        ),
        (
            "question",
            "Please briefly answer the following question.\n"
            "Question: What is the main language spoken in Italy?\nAnswer:",
        ),
        (
            "attack",
            "Please briefly answer the following question.\nQuestion: The main language spoken in Italy is",
        ),
    ],
)
def test_every_fact_is_asked_as_rwku_asks(wording: str, prompt: str) -> None:
    """The same facts in the same order, each naming its own subject."""
    plain, entries = load_embedded("all"), load_embedded("all", wording=wording)
    assert [e.case_id for e in entries] == [e.case_id for e in plain]
    for entry, said in zip(entries, plain, strict=True):
        request = entry.fact.request
        assert request.answer == said.fact.request.answer
        assert request.subject.casefold() == said.fact.request.subject.casefold() == entry.target.casefold()
        assert request.subject.casefold() not in request.after.casefold().split()
        assert "{" not in request.prompt
    italy = next(e for e in entries if e.topic == "language" and e.target == "Italy")
    assert italy.fact.request.prompt == prompt
    with pytest.raises(ConfigError, match="wording='riddle'"):
        load("embedded", wording="riddle")
