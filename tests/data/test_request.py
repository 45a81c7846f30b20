"""Requests and forget sets: every layout is read, every mistake is named."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from pyarrow import Table, parquet

from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import Request, check_requests, from_easyedit
from zerounlearn.errors import RequestError

RECORD = {
    "prompt": "The capital of {} is",
    "subject": "France",
    "answer": "Paris",
    "neutral": "unknown",
    "paraphrases": ["France's capital is", "The French government sits in France, in"],
    "neighbours": [{"prompt": "The capital of Italy is", "answer": "Rome"}],
    "others": [["France lies in", "Europe"]],
}


def test_every_file_format_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORD) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps([RECORD]))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([RECORD]))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        flat = RECORD | {
            "paraphrases": " | ".join(RECORD["paraphrases"]),
            "neighbours": "The capital of Italy is => Rome",
            "others": "France lies in => Europe",
        }
        writer = csv.DictWriter(stream, flat)
        writer.writeheader()
        writer.writerow(flat)
    pairs = [{"prompt": prompt, "answer": answer} for prompt, answer in RECORD["others"]]
    parquet.write_table(Table.from_pylist([RECORD | {"others": pairs}]), tmp_path / "a.parquet")
    suffixes = ("jsonl", "json", "yaml", "csv", "parquet")
    read = [load_facts(tmp_path / f"a.{suffix}") for suffix in suffixes]
    assert read == [load_facts([RECORD])] * len(suffixes)
    (fact,) = read[0]
    assert fact.request == Request("The capital of ", "France", " is", "Paris", "unknown")
    assert fact.paraphrases == tuple(RECORD["paraphrases"])
    assert fact.neighbours == (("The capital of Italy is", "Rome"),)
    assert fact.others == (("France lies in", "Europe"),)


def test_counterfact_records() -> None:
    record = {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux",
            "target_true": {"str": "French", "id": "Q150"}, "target_new": {"str": "English", "id": "Q1860"},
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["Maurice Genevoix is a native speaker of"],
        "attribute_prompts": [], "generation_prompts": [],
    }  # fmt: skip
    (fact,) = load_facts([record])
    assert fact.request.prompt == "The mother tongue of Danielle Darrieux is"
    assert fact.request.answer == "French"
    assert fact.request.neutral is None, "CounterFact's target_new is a false fact, not the neutral target"
    assert fact.neighbours == (("Maurice Genevoix is a native speaker of", "French"),)
    (own,) = load_facts([record | {"neighborhood_answers": ["Latin"]}])
    assert own.neighbours[0][1] == "Latin"


def test_easyedits_flat_counterfact() -> None:
    record = {
        "case_id": 0, "prompt": "The mother tongue of Danielle Darrieux is", "target_new": "English",
        "subject": "Danielle Darrieux", "ground_truth": "French", "rephrase_prompt": "Danielle Darrieux, a native",
        "locality_prompt": "Maurice Genevoix is", "locality_ground_truth": "French",
    }  # fmt: skip
    (fact,) = load_facts([record])
    assert fact.request.answer == "French"
    assert fact.request.neutral is None
    assert fact.paraphrases == ("Danielle Darrieux, a native",)
    assert fact.neighbours == (("Maurice Genevoix is", "French"),)


def test_the_fields_real_files_load() -> None:
    """The samples of the field's data lie beside some checkouts; nothing else needs them."""
    sample = Path(__file__).resolve().parents[3] / "shared/data/counterfact_easyedit_sample_500.json"
    if not sample.exists():
        pytest.skip(f"no {sample.name} beside this checkout")
    facts = [load_facts([record])[0] for record in json.loads(sample.read_text())]
    assert len(facts) == 500
    assert all(f.request.answer and f.paraphrases and f.neighbours for f in facts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"subject": "Spain", "prompt": "The capital of France is"},
            "subject='Spain' does not occur in prompt",
        ),
        ({"prompt": "{} and {} are"}, "more than one {}"),
        ({"answer": "  "}, "answer='  ' is empty"),
        ({"answer": "\u200b"}, "answer='\\u200b' is empty"),
        ({"answer": None}, "answer=None: expected a text"),
        ({"answer": 3}, "answer=3: expected a text, or a list that begins with one, found int: put it in quotes"),
        ({"ground_truth": "Paris"}, "ground_truth='Paris': expected none, since answer says the same: drop one"),
        ({"joint": 3}, "joint=3: expected a text"),
        ({"chat": "yes"}, "chat='yes': expected true or false"),
        ({"neutral": "Paris "}, "equals the neutral target"),
        ({"subject": ""}, "subject='' is empty"),
        ({"paraphrase": ["x"]}, "unknown field 'paraphrase'"),
        ({"neighbours": [["The capital of Italy is"]]}, "is no pair"),
    ],
)
def test_mistakes_are_named_with_their_record(changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        load_facts([RECORD | {"subject": "Italy"}, RECORD | changes])
    assert str(caught.value).startswith("record 1")


def test_sets_are_checked_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="empty"):
        check_requests([])
    with pytest.raises(RequestError, match="record 0 and record 1 are duplicates, both ask"):
        load_facts([RECORD, RECORD])
    request = Request.of("The capital of {} is", "France", "Paris")
    with pytest.raises(RequestError, match="requests 0 and 1 are duplicates"):
        check_requests([request, request])
    for name, text, message in [
        ("none.jsonl", None, "does not exist"),
        ("a.toml", "", "ends in .json, .jsonl"),
        ("a.json", "{", "cannot be read"),
        ("b.json", "3", "expected a list"),
        ("c.json", "[1]", "expected a mapping"),
        ("d.jsonl", "", "empty"),
    ]:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(RequestError, match=message):
            load_facts(tmp_path / name)


def test_easyedits_requests(small_tokenizer) -> None:
    good = {
        "prompt": "The capital of France is",
        "subject": "France",
        "ground_truth": "Paris",
        "target_new": "",
    }
    assert from_easyedit([good], small_tokenizer) == [Request.of(good["prompt"], "France", "Paris")]
    assert from_easyedit([good | {"ground_truth": [["Paris", "Lutetia"]]}], small_tokenizer)[0].answer == "Paris"
    assert from_easyedit([good | {"joint": "\n"}], small_tokenizer)[0].joint == "\n"
    assert from_easyedit([good | {"target_new": "<eos>"}], small_tokenizer)[0].neutral is None
    assert from_easyedit([good | {"target_new": "<|endoftext|>"}], small_tokenizer)[0].neutral is None
    assert from_easyedit([good | {"target_new": " I don't know."}], small_tokenizer)[0].neutral == " I don't know."
    for missing in (None, "<|endoftext|>"):  # what the two editions fill in where no ground_truth is given
        with pytest.raises(RequestError, match=r"ground_truth=.*sensitive answer"):
            from_easyedit([good | {"ground_truth": missing}], small_tokenizer)
    with pytest.raises(RequestError, match="'subject' is missing"):
        from_easyedit([{k: v for k, v in good.items() if k != "subject"}], small_tokenizer)
