"""The packaged facts, field by field, and the test of whether a model knows one."""

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

from zerounlearn.data.fact import load_forget_set
from zerounlearn.data.packaged import Fact, known, load_facts, split_facts
from zerounlearn.errors import RequestError

COUNTERFACT_KEYS = {
    *("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
    *("attribute_prompts", "generation_prompts"),
}
OUR_KEYS = {"relation", "neighborhood_answers", "other_prompts", "other_answers"}

FACTS = load_facts()
RECORDS: list[dict[str, Any]] = json.loads(
    resources.files("zerounlearn.data").joinpath("facts.json").read_text(encoding="utf-8")
)


def mentions(text: str, words: str) -> bool:
    """Whether `words` occur in `text` as whole words."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def items_of(fact: Fact) -> list[tuple[str, str]]:
    return [
        (fact.text, fact.answer),
        *((paraphrase, fact.answer) for paraphrase in fact.paraphrases),
        *fact.neighbours,
        *fact.others,
    ]


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


def check_fact(fact: Fact) -> None:
    assert fact.prompt.count("{}") == 1
    assert fact.subject in fact.text

    assert len(fact.paraphrases) == 2
    assert len({fact.text, *fact.paraphrases}) == 3
    assert all(fact.subject in paraphrase for paraphrase in fact.paraphrases)

    assert len(fact.neighbours) >= 4
    assert len(dict(fact.neighbours)) == len(fact.neighbours)
    assert not any(mentions(prompt, fact.subject) for prompt, _ in fact.neighbours)

    assert len(fact.others) >= 2
    assert len(dict(fact.others)) == len(fact.others)
    assert all(fact.subject in prompt for prompt, _ in fact.others)
    assert not {prompt for prompt, _ in fact.others} & {fact.text, *fact.paraphrases}

    for prompt, answer in items_of(fact):
        assert prompt == prompt.strip()
        assert answer == answer.strip() != ""
        assert not re.search(r"[{}\n]|  ", prompt)
        assert not mentions(prompt, answer)


@pytest.mark.parametrize("relation", sorted({fact.relation for fact in FACTS}))
def test_every_record_is_well_formed(relation: str) -> None:
    for record, fact in zip(RECORDS, FACTS, strict=True):
        if fact.relation == relation:
            check_record(record)
            check_fact(fact)


def test_no_fact_is_there_twice() -> None:
    assert [fact.case_id for fact in FACTS] == list(range(len(FACTS)))
    assert max(Counter(fact.text for fact in FACTS).values()) == 1
    assert max(Counter((fact.relation, fact.subject) for fact in FACTS).values()) == 1


def test_the_set_is_as_large_as_studies_need() -> None:
    sizes = Counter(fact.relation for fact in FACTS)
    assert len(FACTS) >= 240
    assert len(sizes) >= 10
    assert sizes["capital"] >= 50
    assert min(sizes.values()) >= 15


def test_no_prompt_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for fact in FACTS:
        for prompt, answer in items_of(fact):
            answers.setdefault(prompt, set()).add(answer)
    assert {prompt: found for prompt, found in answers.items() if len(found) > 1} == {}


def test_neighbours_are_facts_of_the_same_relation() -> None:
    texts = {(fact.relation, fact.text, fact.answer) for fact in FACTS}
    inside = [(fact.relation, *neighbour) in texts for fact in FACTS for neighbour in fact.neighbours]
    assert sum(inside) > len(inside) / 2


def test_inverse_relations_agree() -> None:
    country = {fact.subject: fact.answer for fact in load_facts(["capital_of"])}
    both = [fact for fact in load_facts(["capital"]) if fact.answer in country]
    assert len(both) >= 20
    assert all(country[fact.answer] == fact.subject for fact in both)


def test_load_picks_relations() -> None:
    some = load_facts(["currency", "symbol"])
    assert {fact.relation for fact in some} == {"currency", "symbol"}
    assert some == [fact for fact in FACTS if fact.relation in {"currency", "symbol"}]
    with pytest.raises(RequestError, match="no facts of relation \\['nonsense'\\].*capital"):
        load_facts(["capital", "nonsense"])


def test_facts_are_immutable_and_lists_are_fresh() -> None:
    with pytest.raises(FrozenInstanceError):
        FACTS[0].answer = "Lyon"  # type: ignore[misc]
    load_facts().clear()
    assert load_facts() == FACTS


def test_split_is_disjoint_complete_and_stratified() -> None:
    development, evaluation = split_facts(FACTS)
    assert sorted(fact.case_id for fact in development + evaluation) == list(range(len(FACTS)))
    total = Counter(fact.relation for fact in FACTS)
    part = Counter(fact.relation for fact in development)
    assert all(0.25 <= part[relation] / size <= 0.42 for relation, size in total.items())


def test_split_is_stable_and_depends_on_case_id_and_seed_only() -> None:
    development, evaluation = split_facts(FACTS)
    # Golden ids: hyperparameters chosen on this part stay comparable only while it stays the same.
    assert [fact.case_id for fact in development[:6]] == [1, 5, 6, 10, 12, 15]
    state = torch.get_rng_state()
    torch.manual_seed(7)
    assert split_facts(FACTS) == (development, evaluation)
    torch.set_rng_state(state)

    some = FACTS[::-5]
    ids = {fact.case_id for fact in development}
    assert split_facts(some) == (
        [fact for fact in some if fact.case_id in ids],
        [fact for fact in some if fact.case_id not in ids],
    )
    assert split_facts(FACTS, seed=1) != (development, evaluation)


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
    chosen = FACTS[:: len(FACTS) // 14]
    items = [(fact.text, fact.answer) for fact in chosen]
    items += [(fact.text, fact.counterfactual) for fact in chosen[:6]]
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


def test_a_fact_as_an_entry_of_a_forget_set() -> None:
    fact = FACTS[0]
    entry = fact.to_forget()
    assert (entry.request.prompt, entry.request.subject, entry.request.answer) == (fact.text, fact.subject, fact.answer)
    assert (entry.paraphrases, entry.neighbours, entry.others) == (fact.paraphrases, fact.neighbours, fact.others)
    assert load_forget_set(RECORDS[:1]) == [entry]


def test_smollm2_knows_enough_facts(smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    verdicts = known(*smollm2, [(fact.text, fact.answer) for fact in FACTS])
    by_relation = Counter(fact.relation for fact, verdict in zip(FACTS, verdicts, strict=True) if verdict)
    assert by_relation.total() >= 100
    assert by_relation["capital"] >= 30
    assert sum(count >= 8 for count in by_relation.values()) >= 7
    # A false answer of the right kind is not "known": the test can tell facts from plausible text.
    falsehoods = known(*smollm2, [(fact.text, fact.counterfactual) for fact in FACTS[::5]])
    assert sum(falsehoods) < 0.05 * len(falsehoods)
