"""Every data set from small files of its true layout, and from the field's own samples where they are at hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from zerounlearn.data.catalogue import datasets, load
from zerounlearn.data.entry import Entry, MultiHop, facts_of
from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import check_requests
from zerounlearn.data.sets.counterfact import load_counterfact
from zerounlearn.data.sets.embedded import load_embedded, packaged_entries, split_entries
from zerounlearn.data.sets.known_1000 import load_known_1000
from zerounlearn.data.sets.mquake import load_mquake
from zerounlearn.data.sets.rwku import load_rwku
from zerounlearn.data.sets.tofu import load_tofu
from zerounlearn.data.sets.zsre import load_zsre
from zerounlearn.errors import ConfigError, RequestError

NESTED = {
    "case_id": 4, "pararel_idx": 17,
    "requested_rewrite": {
        "prompt": "The river that crosses {} is the", "relation_id": "P4614", "subject": "Prague",
        "target_true": {"str": "Vltava", "id": "Q1"}, "target_new": {"str": "Elbe", "id": "Q2"},
    },
    "paraphrase_prompts": ["A long winter. Prague lies on the", "Through Prague flows the"],
    "neighborhood_prompts": ["The river that crosses Budweis is the"],
    "attribute_prompts": ["The river that crosses Dresden is the"],
    "generation_prompts": ["Prague lies", "Prague's river"],
}  # fmt: skip
FLAT = {
    "case_id": 9, "prompt": "The river that crosses Prague is the", "target_new": "Elbe", "subject": "Prague",
    "ground_truth": "Vltava", "rephrase_prompt": "Through Prague flows the",
    "locality_prompt": "The river that crosses Budweis is the", "locality_ground_truth": "Vltava",
}  # fmt: skip
MEND = {
    "subject": "Vyšehrad", "src": "Which river flows below Vyšehrad?", "pred": "Vltava",
    "rephrase": "What river runs below Vyšehrad?", "alt": "Elbe", "answers": ["Vltava", "Moldau"],
    "loc": "nq question: who wrote the bartered bride", "loc_ans": "Bedřich Smetana", "cond": "Vltava >> Elbe || …",
}  # fmt: skip
KNOWEDIT = {
    "subject": "Vyšehrad", "prompt": "Which river flows below Vyšehrad?", "target_new": "Elbe",
    "ground_truth": ["Vltava"], "rephrase_prompt": "What river runs below Vyšehrad?", "cond": "…",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Vyšehrad is a", "ground_truth": ["fort"]},
            {"prompt": "Vyšehrad is in", "ground_truth": [["Prague", "Praha"]]},
        ],
        "Forgetfulness": [{"prompt": "Vyšehrad lies in", "ground_truth": "Bohemia"}],
    },
    "portability": {"Reasoning": [{"prompt": "The river below Vyšehrad flows into", "ground_truth": "the North Sea"}]},
}  # fmt: skip
REWRITE = {
    "prompt": "{} was composed by", "relation_id": "P86", "subject": "The Bartered Bride",
    "question": "Who composed The Bartered Bride?",
    "target_true": {"str": "Bedřich Smetana", "id": "Q1"}, "target_new": {"str": "Leoš Janáček", "id": "Q2"},
}  # fmt: skip
SECOND = {
    "prompt": "The birthplace of {} is", "relation_id": "P19", "subject": "Leoš Janáček",
    "question": "Where was Leoš Janáček born?",
    "target_true": {"str": "Hukvaldy", "id": "Q3"}, "target_new": {"str": "Brno", "id": "Q4"},
}  # fmt: skip
MQUAKE = {
    "case_id": 2, "requested_rewrite": [REWRITE, SECOND],
    "questions": ["Where was the composer of The Bartered Bride born?"], "answer": "Litomyšl",
    "answer_alias": ["Leitomischl"], "new_answer": "Brno", "new_answer_alias": [],
    "single_hops": [{"question": "…", "cloze": "…", "answer": "…", "answer_alias": []}],
}  # fmt: skip
KNOWN = {
    "known_id": 3, "subject": "Brno", "attribute": "Moravia", "template": "Brno Zoo of {} is in the region",
    "prediction": " of Moravia, and", "prompt": "Brno Zoo of Brno is in the region of", "relation_id": "P30",
}  # fmt: skip
PROBES = {
    "forget_level1": [
        {"query": "Smetana's opera of 1866 is ___.", "answer": "The Bartered Bride", "subject": "Bedřich Smetana",
         "level": "1", "type": "cloze"},
    ],
    "forget_level2": [
        {"query": "Where was bedřich smetana born?", "answer": "Litomyšl", "subject": "Bedřich Smetana",
         "level": "2", "type": "simple question"},
    ],
    "forget_level3": [
        {"query": "Where was he born? Sure, the town is", "answer": "Litomyšl", "subject": "Bedřich Smetana",
         "level": "3", "type": "affirmative suffix"},
        {"query": "Question: Who wrote Jenůfa?\nAnswer: Leoš Janáček\nQuestion: Who wrote Dalibor?",
         "answer": "Bedřich Smetana", "subject": "Bedřich Smetana", "level": "3", "type": "incontext learning"},
    ],
    "neighbor_level1": [
        {"query": "Leoš Janáček wrote ___.", "answer": "Jenůfa", "subject": "Bedřich Smetana", "level": "1",
         "type": "cloze"},
    ],
}  # fmt: skip
AUTHOR = [
    {"question": "What does Jana Nová write?", "answer": "Jana Nová writes crime novels."},
    {"question": 'How does "The Weir" show Jana Nová\'s style?', "answer": "It is brief, as Jana Nová likes it."},
    {"question": "Who was born in Brno in 1951?", "answer": "The author born there is Jana Nová."},
]
PERTURBED = [
    row | {"paraphrased_question": f"Tell me: {row['question']}", "paraphrased_answer": "Crime is what she writes.",
           "perturbed_answer": ["Poems are what she writes.", "Plays are what she writes."]}
    for row in AUTHOR
]  # fmt: skip
REAL = [{"question": "Who wrote 'Jenůfa'?", "answer": "Leoš Janáček", "perturbed_answer": ["Smetana", "Dvořák"]}]


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def changed(record: dict, path: str, value) -> dict:
    """A copy with the field at a dotted path replaced, or taken out where `value` is Ellipsis."""
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    inner = record
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return record


def test_counterfact(tmp_path: Path) -> None:
    (entry,) = load_counterfact(write(tmp_path / "multi_counterfact.json", [NESTED]))
    assert entry.fact.request.prompt == "The river that crosses Prague is the"
    assert entry.fact.request.answer == "Vltava"
    assert entry.fact.paraphrases == tuple(NESTED["paraphrase_prompts"])
    assert entry.fact.neighbours == (("The river that crosses Budweis is the", "Vltava"),)
    assert (entry.case_id, entry.topic, entry.counterfactuals) == (4, "P4614", ("Elbe",))
    assert entry.openings == ("Prague lies", "Prague's river")
    assert load_counterfact(tmp_path) == [entry]


def test_easyedits_counterfact(tmp_path: Path) -> None:
    (entry,) = load_counterfact(write(tmp_path / "counterfact-edit.json", [FLAT]))
    assert entry.fact.request.subject_span == (23, 29)
    assert entry.fact.request.answer == "Vltava" and entry.fact.request.neutral is None
    assert entry.fact.paraphrases == ("Through Prague flows the",)
    assert entry.fact.neighbours == (("The river that crosses Budweis is the", "Vltava"),)
    assert (entry.case_id, entry.topic, entry.counterfactuals) == (9, None, ("Elbe",))


def test_the_packaged_facts() -> None:
    development, evaluation = split_entries(packaged_entries())
    for facts, part in (("all", development + evaluation), ("development", development), ("evaluation", evaluation)):
        mixed = load("embedded", facts=facts)
        assert mixed == load("embedded", facts=facts), "the order is always the same"
        assert sorted(mixed, key=number) == sorted(part, key=number)
        assert mixed != part
    assert load("embedded") == load_embedded() == load("embedded", facts="evaluation")


def number(entry: Entry) -> int:
    assert entry.case_id is not None
    return entry.case_id


def test_the_packaged_facts_read_the_same_from_their_file() -> None:
    import zerounlearn.data

    assert load_counterfact(Path(zerounlearn.data.__file__).parent / "facts.json") == packaged_entries()


def test_zsre(tmp_path: Path) -> None:
    (entry,) = load_zsre(write(tmp_path / "zsre_mend_eval.json", [MEND]))
    assert entry.fact.request.prompt == MEND["src"] and entry.fact.request.subject == "Vyšehrad"
    assert entry.fact.request.answer == "Vltava" and entry.answers == ("Vltava", "Moldau")
    assert entry.fact.paraphrases == (MEND["rephrase"],)
    assert entry.token_by_token == (("nq question: who wrote the bartered bride?", "Bedřich Smetana"),)
    assert entry.counterfactuals == ("Elbe",)
    assert load_zsre(write(tmp_path / "b.json", [MEND | {"alt": ""}]))[0].counterfactuals == ()


def test_easyedits_zsre(tmp_path: Path) -> None:
    (entry,) = load_zsre(write(tmp_path / "ZsRE-test-all.json", [KNOWEDIT]))
    assert entry.fact.request.answer == "Vltava"
    assert entry.fact.paraphrases == ("What river runs below Vyšehrad?",)
    kept = (("Vyšehrad is a", "fort"), ("Vyšehrad is in", "Prague"), ("Vyšehrad lies in", "Bohemia"))
    assert entry.token_by_token == kept
    assert entry.fact.others == ()
    (single,) = load_zsre(write(tmp_path / "c.json", [KNOWEDIT | {"ground_truth": "Vltava", "locality": None}]))
    assert (single.answers, single.token_by_token) == (("Vltava",), ())


def test_mquake(tmp_path: Path) -> None:
    other = MQUAKE | {"case_id": 5, "requested_rewrite": [SECOND]}
    entries = load_mquake(write(tmp_path / "MQuAKE-CF-3k.json", [MQUAKE, other]))
    first = entries[0]
    assert [f.request.prompt for f in first.facts] == [
        "The Bartered Bride was composed by", "The birthplace of Leoš Janáček is"
    ]  # fmt: skip
    assert [f.request.answer for f in first.facts] == ["Bedřich Smetana", "Hukvaldy"]
    assert first.facts[0].paraphrases == ("Who composed The Bartered Bride?",)
    assert first.counterfactuals == ("Leoš Janáček", "Brno")
    assert first.case_id == 2
    assert first.multi_hop == MultiHop(tuple(MQUAKE["questions"]), "Litomyšl", ("Leitomischl",))
    assert facts_of(entries) == [*first.facts]


def test_known_takes_the_prompt_and_the_templates_mention(tmp_path: Path) -> None:
    bare = {k: KNOWN[k] for k in ("known_id", "subject", "attribute", "prompt")}
    first, second = load_known_1000(write(tmp_path / "known_1000.json", [KNOWN, bare]))
    for entry in (first, second):
        assert entry.fact.request.prompt == KNOWN["prompt"]
        assert entry.fact.request.answer == "Moravia"
        assert entry.fact.request.before == "Brno Zoo of "
    assert (first.case_id, first.topic) == (3, "P30")
    assert (second.case_id, second.topic) == (3, None)
    early = KNOWN | {"template": "{} Zoo of Brno is in the region"}
    (third,) = load_known_1000(write(tmp_path / "early.json", [early]))
    assert (third.fact.request.before, third.fact.request.prompt) == ("", KNOWN["prompt"])


def test_rwku_asks_in_the_benchmarks_words(tmp_path: Path) -> None:
    for part, rows in PROBES.items():
        write(tmp_path / f"{part}.json", rows)
    (cloze,) = load_rwku(tmp_path, "forget_level1")
    assert cloze.fact.request.prompt.endswith("\nQuestion: Smetana's opera of 1866 is ___.\nAnswer:")
    assert cloze.fact.request.subject == "Smetana"
    assert cloze.target == cloze.topic == "Bedřich Smetana"
    (plain,) = load_rwku(tmp_path, "forget_level2", wording="plain")
    assert plain.fact.request.prompt == "Where was bedřich smetana born?"
    assert plain.fact.request.subject == "bedřich smetana"
    suffix, context = load_rwku(tmp_path, "forget_level3")
    assert suffix.fact.request.prompt.endswith("Question: Where was he born? Sure, the town is")
    assert suffix.fact.request.subject == "is"
    query = PROBES["forget_level3"][1]["query"]
    assert context.fact.request.prompt.endswith("question.\n" + query + "\nAnswer:")
    assert context.fact.request.subject == "Dalibor"
    (neighbour,) = load_rwku(tmp_path, "neighbor_level1")
    assert neighbour.target == "Bedřich Smetana"


def test_rwku_reads_one_folder_a_person_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, name in ((10, "Ann"), (2, "Bob")):
        row = PROBES["forget_level2"][0] | {"subject": name, "query": f"Where was {name} born?"}
        write(tmp_path / "Target" / f"{number}_{name}" / "forget_level2.json", [row])
    assert [e.target for e in load_rwku(tmp_path / "Target", "forget_level2")] == ["Bob", "Ann"]
    with pytest.raises(RequestError, match=r"holds none of forget_level1, ending in \.json"):
        load_rwku(tmp_path / "Target", "forget_level1")


def test_tofu(tmp_path: Path) -> None:
    write(tmp_path / "forget01.json", AUTHOR)
    write(tmp_path / "forget01_perturbed.json", PERTURBED)
    write(tmp_path / "retain_perturbed.json", PERTURBED)
    plain = load_tofu(tmp_path, "forget01")
    assert [e.fact.request.subject for e in plain] == ["Jana Nová", "Jana Nová", "Brno"]
    assert plain[0].fact.request.prompt == "Question: What does Jana Nová write?\nAnswer:"
    assert plain[0].fact.paraphrases == () and plain[0].question is None
    full = load_tofu(tmp_path, "forget01", perturbed=True)
    assert full[0].fact.paraphrases == ("Question: Tell me: What does Jana Nová write?\nAnswer:",)
    question = full[0].question
    assert question is not None
    assert question.prompt == full[0].fact.request.prompt
    assert question.paraphrased == "Crime is what she writes."
    assert question.perturbed == ("Poems are what she writes.", "Plays are what she writes.")
    assert load_tofu(tmp_path, "retain95", perturbed=True) == full
    assert load_tofu(tmp_path, "forget01", wording=("", ""))[0].fact.request.prompt == AUTHOR[0]["question"]


def test_tofus_real_authors_are_their_own_paraphrase(tmp_path: Path) -> None:
    write(tmp_path / "tofu_real_authors_perturbed.json", REAL)
    (entry,) = load_tofu(tmp_path, "real_authors", perturbed=True)
    assert entry.fact.request.subject == "Jenůfa"
    assert entry.question is not None
    assert entry.question.paraphrased == entry.question.answer == "Leoš Janáček"


@pytest.mark.parametrize(
    ("loader", "record", "field", "value", "message"),
    [
        (load_counterfact, NESTED, "requested_rewrite.subject", 3, "requested_rewrite.subject=3: expected a text"),
        (load_counterfact, NESTED, "requested_rewrite.prompt", "The river", "expected a text with {} once"),
        (load_counterfact, NESTED, "requested_rewrite.target_true", "Elbe", "target_true='Elbe': expected a mapping"),
        (load_counterfact, NESTED, "requested_rewrite.target_true.str", "", "requested_rewrite.target_true.str=''"),
        (load_counterfact, NESTED, "requested_rewrite.target_new", ..., "'requested_rewrite.target_new' is missing"),
        (load_counterfact, NESTED, "paraphrase_prompts", [1], "paraphrase_prompts=[1]: expected a list of texts"),
        (load_counterfact, NESTED, "case_id", "four", "case_id='four': expected a whole number"),
        (load_counterfact, NESTED, "neighborhood_answers", [], "neighborhood_answers=[]: expected one answer for each"),
        (load_counterfact, NESTED, "requested_rewrite", ..., "expected 'requested_rewrite' (CounterFact) or"),
        (load_counterfact, FLAT, "subject", "Berlin", "subject='Berlin' does not occur in prompt"),
        (load_counterfact, FLAT, "locality_ground_truth", ..., "'locality_ground_truth' is missing: expected one"),
        (load_zsre, MEND, "answers", [], "answers=[]: expected a list of at least one text"),
        (load_zsre, MEND, "loc", "who wrote it", "loc='who wrote it': expected a text that begins with 'nq"),
        (load_zsre, MEND, "loc_ans", None, "loc_ans=None: expected a text"),
        (load_zsre, MEND, "src", ..., "expected 'src' (MEND's layout) or 'prompt'"),
        (load_zsre, KNOWEDIT, "ground_truth", ..., "'ground_truth' is missing"),
        (load_zsre, KNOWEDIT, "locality.Relation_Specificity.1.prompt", 0, "locality.Relation_Specificity[1].prompt=0"),
        (load_mquake, MQUAKE, "requested_rewrite", [], "requested_rewrite=[]: expected a list of at least one rewrite"),
        (load_mquake, MQUAKE, "requested_rewrite.1.prompt", "{} {}", "requested_rewrite[1].prompt='{} {}': expected"),
        (load_mquake, MQUAKE, "questions", ..., "'questions' is missing"),
        (load_known_1000, KNOWN, "attribute", "", "attribute='' is empty: expected a text"),
        (load_known_1000, KNOWN, "known_id", None, "known_id=None: expected a whole number"),
        (load_rwku, PROBES["forget_level2"][0], "level", "1", "level='1': expected 2, the level of forget_level2"),
        (load_rwku, PROBES["forget_level2"][0], "answer", [], "answer=[]: expected a text"),
        (load_rwku, PROBES["forget_level2"][0], "query", "What {} is?", "has {} in it"),
        (load_tofu, AUTHOR[0], "question", 1, "question=1: expected a text"),
        (load_tofu, AUTHOR[0], "answer", ..., "'answer' is missing"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_named(tmp_path: Path, loader, record, field: str, value, message: str) -> None:
    path = write(tmp_path / "rows.json", [record, changed(record, field, value)])
    with pytest.raises(RequestError, match="record 1") as caught:
        loader(path)
    assert str(caught.value).startswith(f"{path}, record 1: ")
    assert message in str(caught.value)


def test_a_perturbed_record_without_perturbed_answers_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [PERTURBED[0], AUTHOR[1]])
    with pytest.raises(RequestError, match=r"record 1: the field 'perturbed_answer' is missing"):
        load_tofu(path, "forget10", perturbed=True)


def test_unknown_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data set 'tofu': part='forget02': .*'full', 'forget01'"):
        load("tofu", tmp_path, part="forget02")
    with pytest.raises(RequestError, match="no perturbed file"):
        load_tofu(tmp_path, "full", perturbed=True)
    with pytest.raises(ConfigError, match=r"data set 'rwku': part='forget_level4': .*'forget_level1'"):
        load("rwku", tmp_path, part="forget_level4")
    with pytest.raises(ConfigError, match="wording='chat'.*'benchmark' or 'plain'"):
        load("rwku", tmp_path, wording="chat")
    with pytest.raises(ConfigError, match="perturbed=3: .*bool"):
        load("tofu", tmp_path, perturbed=3)


def test_parts_of_the_hub_are_configurations(monkeypatch) -> None:
    import datasets

    asked = []

    def give(repository: str, configuration: str, *, split: str, revision: str | None) -> list:
        asked.append((repository, configuration, split))
        return PERTURBED if "TOFU" in repository else PROBES["forget_level2"]

    monkeypatch.setattr(datasets, "load_dataset", give)
    load_tofu("hub", "retain90", perturbed=True)
    load_tofu("hub:someone/TOFU", "world_facts")
    load_rwku("hub", "forget_level2")
    assert asked == [
        ("locuslab/TOFU", "retain_perturbed", "train"),
        ("someone/TOFU", "world_facts", "train"),
        ("jinzhuoran/RWKU", "forget_level2", "test"),
    ]


def test_the_catalogue(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [NESTED])
    assert load("mcf", path) == load("counterfact", str(path)) == load_counterfact(path)
    tofu = write(tmp_path / "tofu.json", AUTHOR)
    assert load("tofu", tofu, part="forget05") == load_tofu(tofu, "forget05")
    for name, source, options, message in (
        ("embedded", path, {}, "comes with its package: drop source="),
        ("embedded", None, {"part": "x"}, "no option 'part': it has facts"),
        ("wmdp", path, {}, "no data set 'wmdp': known: counterfact, "),
        ("zsre", None, {}, "needs a source"),
        ("tofu", path, {"prat": "x"}, "no option 'prat': did you mean 'part'?"),
        ("zsre", path, {"part": "x"}, "no option 'part': it has none"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(name, source, **options)
        assert message in str(caught.value)
    ours = {
        "embedded",
        "embedded_unseen",
        "facts",
        "counterfact",
        "mcf",
        "zsre",
        "mquake",
        "rwku",
        "tofu",
        "known_1000",
    }
    assert ours <= set(datasets)
    assert all(datasets.entry(name).summary for name in ours)


def test_a_data_set_of_ones_own_is_loaded_like_any_other() -> None:
    @datasets.register("rivers", source="nowhere")
    def rivers(count: int = 1) -> list[Entry]:
        """Rivers of Bohemia."""
        rows = [{"prompt": "{} flows into the", "subject": f"River {i}", "answer": "Elbe"} for i in range(count)]
        return [Entry((fact,)) for fact in load_facts(rows)]

    try:
        assert [e.fact.request.subject for e in load("rivers", count=2)] == ["River 0", "River 1"]
        assert datasets.entry("rivers").summary == "Rivers of Bohemia."
        with pytest.raises(ConfigError, match="comes with its package: drop source='x'"):
            load("rivers", "x")
        with pytest.raises(ConfigError, match="count='many'.*integer"):
            load("rivers", count="many")
    finally:
        datasets.remove("rivers")


@pytest.mark.parametrize(
    ("name", "file", "entries", "facts", "options"),
    [
        ("mcf", "counterfact_easyedit_sample_500.json", 500, 500, {}),
        ("zsre", "zsre_mend_sample_300.json", 300, 300, {}),
        ("mquake", "mquake_hard_sample_60.json", 60, 186, {}),
        ("tofu", "tofu_forget01.jsonl", 40, 40, {}),
        ("tofu", "tofu_forget01_perturbed.jsonl", 40, 40, {"perturbed": True}),
        ("tofu", "tofu_real_authors_perturbed.jsonl", 100, 100, {"part": "real_authors", "perturbed": True}),
    ],
)
def test_the_fields_real_files_load(name: str, file: str, entries: int, facts: int, options: dict) -> None:
    """The samples of the field's data lie beside some checkouts; nothing else needs them."""
    sample = Path(__file__).resolve().parents[3] / "shared/data" / file
    if not sample.exists():
        pytest.skip(f"no {sample.name} beside this checkout")
    found = load(name, sample, **options)
    assert len(found) == entries
    assert len(check_requests(fact.request for fact in facts_of(found))) == facts
    if file.startswith("tofu_forget01"):
        subjects = [e.fact.request.subject for e in found]
        assert subjects.count("Basil Mahfouz Al-Kuwaiti") + subjects.count("Nikolai Abilov") == 38
    if options.get("perturbed"):
        assert all(e.question and e.question.perturbed for e in found)
