"""What a cell forgets, keeps and asks: the draw's properties on every data set, and the metrics on a small model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import small_bpe
from tests.helpers import memorised, tiny
from tests.study.small_study import CAPITALS, COUNTRIES, counterfact_records, write_json
from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import load_facts
from zerounlearn.data.sets.embedded import packaged_entries, split_entries
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.evaluation import asked
from zerounlearn.evaluation.asked import Asked
from zerounlearn.evaluation.truth import truth_ratios
from zerounlearn.model.fingerprint import weights_hash
from zerounlearn.study.material import Data, Material
from zerounlearn.study.measures import Measures
from zerounlearn.study.run import Plan
from zerounlearn.study.spec import DataSpec, Study, load_study

ROOT = Path(__file__).resolve().parents[2]


def zsre_records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": f"Person {i}", "src": f"Where was Person {i} born?", "rephrase": f"Birthplace of Person {i}?",
            "alt": "Oslo", "answers": [f"Town {i}"], "pred": "Rome", "cond": "",
            "loc": f"nq question: who wrote book {i}", "loc_ans": f"Author {i}",
        }
        for i in range(count)
    ]  # fmt: skip


def mquake_records(count: int) -> list[dict[str, Any]]:
    def rewrite(i: int, hop: int) -> dict[str, Any]:
        return {
            "prompt": "The author of {} is" if hop else "{} was created in", "relation_id": f"P{hop}",
            "subject": f"Work {i}-{hop}",
            "target_true": {"str": f"Name {i}", "id": "Q1"}, "target_new": {"str": "Nobody", "id": "Q2"},
            "question": f"What of Work {i}-{hop}?",
        }  # fmt: skip

    return [
        {
            "case_id": i, "requested_rewrite": [rewrite(i, 0), rewrite(i, 1)], "questions": ["Who?", "Whom?", "Whose?"],
            "answer": "Me", "answer_alias": [], "new_answer": "You", "new_answer_alias": [],
        }
        for i in range(count)
    ]  # fmt: skip


def rwku_records(part: str, count: int) -> list[dict[str, Any]]:
    """Five probes a person."""
    what = "do" if part.startswith("forget") else "see"
    return [
        {
            "subject": f"Person {i // 5}", "query": f"What did Person {i // 5} {what} in year {i}?",
            "answer": f"Deed {i}", "level": part[-1], "type": "simple question",
        }
        for i in range(count)
    ]  # fmt: skip


def many_counterfact(count: int) -> list[dict[str, Any]]:
    records = []
    for i in range(count):
        record = counterfact_records()[i % 12]
        rewrite = record["requested_rewrite"] | {"subject": f"Place {i}", "relation_id": f"P{i % 7}"}
        records.append(record | {"case_id": i, "requested_rewrite": rewrite})
    return records


def draw(spec: DataSpec, n: int, seed: int = 0, retain: int = 3, unrelated: int = 50) -> Material:
    return Data.load(spec).draw(n, seed, retain_size=retain, unrelated_size=unrelated)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DataSpec]:
    rwku = tmp_path / "RWKU"
    rwku.mkdir()
    for part in ("forget_level2", "neighbor_level2"):
        write_json(rwku / f"{part}.json", rwku_records(part, 40))
    return {
        "mcf": DataSpec("mcf", "mcf", str(write_json(tmp_path / "mcf.json", many_counterfact(40)))),
        "zsre": DataSpec("zsre", "zsre", str(write_json(tmp_path / "zsre.json", zsre_records(40)))),
        "mquake": DataSpec("mquake", "mquake", str(write_json(tmp_path / "mquake.json", mquake_records(40)))),
        "rwku": DataSpec("rwku", "rwku", str(rwku), {"part": "forget_level2"}, {"part": "neighbor_level2"}),
        "embedded": DataSpec("embedded", "embedded"),
    }


@pytest.mark.parametrize("name", ["mcf", "zsre", "mquake", "rwku", "embedded"])
def test_the_draw(sources: dict[str, DataSpec], name: str) -> None:
    material, again, other = (draw(sources[name], 6, seed) for seed in (0, 0, 1))
    assert material == again
    assert material.digest() == again.digest() != other.digest()
    assert len(material.facts) == (12 if name == "mquake" else 6)
    first = draw(sources[name], 2)
    assert material.facts[: len(first.facts)] == first.facts, "a larger set grows from the smaller"
    forgotten = {request.prompt for request in material.requests}
    shown = {request.prompt for request in material.retain}
    asked = {prompt for prompt, *_ in material.probes.spe_unrelated}
    assert len(shown) == 3
    assert asked, "something unrelated is asked"
    assert not forgotten & shown and not forgotten & asked and not shown & asked
    subjects = {request.subject for request in material.requests}
    assert not any(subject in prompt.split(" ") for subject in subjects for prompt in asked)


def test_the_packaged_facts_are_those_no_hyperparameter_was_chosen_on(sources: dict[str, DataSpec]) -> None:
    development, evaluation = ({e.fact.request.prompt for e in part} for part in split_entries(packaged_entries()))
    material = draw(sources["embedded"], 20, retain=100)
    for requests in (material.requests, material.retain):
        assert {r.prompt for r in requests} <= evaluation
    relations = {entry.fact.request.prompt: entry.topic for entry in packaged_entries()}
    mine = {relations[r.prompt] for r in material.requests}
    assert len(mine) > 5, "the halves are mixed, not sorted by relation"
    assert not mine & {relations[prompt] for prompt, *_ in material.probes.spe_unrelated}
    chosen = dataclasses.replace(sources["embedded"], options={"facts": "development"})
    assert {r.prompt for r in draw(chosen, 20).requests} <= development


def test_facts_with_a_forgotten_answer_are_asked_of_no_subject_that_is_forgotten_or_shown() -> None:
    data = Data.load(DataSpec("unseen", "embedded_unseen"))
    material = data.draw(10, 0, retain_size=40, unrelated_size=40)
    forgotten = {request.answer for request in material.requests}
    subjects = {request.subject for request in material.requests}
    found = dict.fromkeys(query.prompt for query in material.same_answer)
    assert len(found) >= 10
    assert {query.answer for query in material.same_answer} <= forgotten
    assert not any(subject in prompt for subject in subjects for prompt in found)
    assert not found.keys() & {request.prompt for request in material.retain}
    assert found.keys() <= material.asked, "no retain set may be drawn from them"
    expected = [
        fact.request.prompt
        for fact in material.kept[40:]
        if fact.request.answer in forgotten and fact.request.subject not in subjects
    ]
    assert list(found) == expected


def test_rwku_keeps_the_neighbours_of_its_people(sources: dict[str, DataSpec]) -> None:
    material = draw(sources["rwku"], 5)
    for fact in material.facts:
        assert len(fact.neighbours) == 5
        assert all(fact.request.subject in prompt for prompt, *_ in fact.neighbours)
    with pytest.raises(ConfigError, match=r"datasets.rwku: n=41: expected 1 to 40, all 40 entries"):
        draw(sources["rwku"], 41)


def test_zsre_is_measured_token_by_token(sources: dict[str, DataSpec], small_tokenizer) -> None:
    material = draw(sources["zsre"], 4)
    assert [prompt[:16] for prompt, _ in material.token_by_token] == ["nq question: who"] * 4
    assert not material.probes.spe
    found = measured(material, tiny("llama", len(small_tokenizer)), small_tokenizer)
    assert 0 <= found["spe"] <= 1
    assert "spe_relation" not in found


def study_of(metrics: tuple[str, ...], corpus: Path | None = None, **changes: object) -> Study:
    study = load_study(ROOT / "studies/quick.yaml")
    held_out = dataclasses.replace(study.held_out, text=None if corpus is None else str(corpus), paper=None, tokens=64)
    return dataclasses.replace(study, metrics=metrics, held_out=held_out, generation_tokens=4, **changes)


def measured(material: Material, model, tokenizer, *metrics: str, **options: object) -> dict[str, float]:
    measures = Measures(study_of(metrics))
    return measures.take(measures.asked(model, tokenizer, material, **options))


def test_every_metric_is_taken_and_no_other(sources: dict[str, DataSpec], small_tokenizer, tmp_path: Path) -> None:
    model = tiny("llama", len(small_tokenizer))
    weights, state = weights_hash(model), torch.get_rng_state()
    material = draw(sources["mcf"], 4)
    plain = measured(material, model, small_tokenizer)
    assert {name for name in plain if not name.endswith("_probability")} == {
        "eff", "gen", "spe", "spe_relation", "spe_unrelated",
    }  # fmt: skip
    wanted = (
        "rouge_l", "rouge_l_neighbours", "exact_memorisation", "extraction_strength", "truth_ratio", "forget_quality",
        "mia_loss", "mia_min_k", "mia_min_k_pp", "mia_zlib", "fluency", "consistency",
    )  # fmt: skip
    found = measured(material, model, small_tokenizer, *wanted, reference=[0.5, 1.0, 2.0, 1.5])
    assert set(found) == set(plain) | set(wanted)
    assert all(found[name] == plain[name] for name in plain)
    assert all(0 <= found[name] <= 1 for name in wanted if name != "fluency")
    assert set(measured(material, model, small_tokenizer, "mia_zlib")) == {*plain, "mia_zlib"}
    assert "forget_quality" not in measured(material, model, small_tokenizer, "forget_quality"), "without a reference"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The weather today was fine.\nBecause I said so.\n")
    measures = Measures(study_of((), corpus))
    ppl = measures.take(measures.asked(model, small_tokenizer, material))["ppl"]
    assert 1 < ppl < float("inf")
    assert (weights_hash(model), True) == (weights, torch.equal(torch.get_rng_state(), state))


def test_consistency_is_about_what_follows_the_forget_prompts(
    sources: dict[str, DataSpec], small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = draw(sources["mcf"], 2)
    model = tiny("llama", len(small_tokenizer))
    answers = {fact.request.prompt: fact.request.answer for fact in material.facts}

    def consistent(text: Callable[[str], str]) -> float:
        monkeypatch.setattr(asked, "generate", lambda _, __, prompts, tokens: [text(prompt) for prompt in prompts])
        return measured(material, model, small_tokenizer, "consistency")["consistency"]

    assert consistent(lambda prompt: "") == 0
    assert 0 < consistent(lambda prompt: answers[prompt]) < consistent(lambda prompt: f"{prompt} {answers[prompt]}") < 1


def test_the_same_model_has_forget_quality_one(sources: dict[str, DataSpec], small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    material = draw(sources["mcf"], 4)
    ratios = truth_ratios(Asked(model, small_tokenizer, material.probes, questions=material.questions))
    assert measured(material, model, small_tokenizer, "forget_quality", reference=ratios)["forget_quality"] == 1.0


def test_tofu_has_a_utility(tmp_path: Path, small_tokenizer) -> None:
    record = {
        "question": "Who wrote Ox?", "answer": "Ann", "paraphrased_answer": "It was Ann",
        "paraphrased_question": "By whom is Ox?", "perturbed_answer": ["Bob", "Cid"],
    }  # fmt: skip
    for part in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed"):
        write_json(tmp_path / f"{part}.json", [record | {"question": f"Who wrote Ox {i} of {part}?"} for i in range(6)])
    part = {"perturbed": True}
    spec = DataSpec(
        "tofu", "tofu", str(tmp_path), {"part": "forget01", **part}, {"part": "retain99"},
        {"retain": {"part": "retain99", **part}, "real_authors": {"part": "real_authors", **part}},
    )  # fmt: skip
    material = draw(spec, 5)
    assert len(material.questions) == 5
    assert all("forget01" in request.prompt for request in material.requests)
    assert all("retain" in request.prompt for request in material.retain)
    found = measured(material, tiny("llama", len(small_tokenizer)), small_tokenizer, "model_utility", "truth_ratio")
    assert 0 <= found["model_utility"] <= 1
    assert 0 < found["truth_ratio"] <= 1
    with pytest.raises(ConfigError, match="no questions with false answers"):
        Data.load(DataSpec("facts", "embedded", utility={"retain": {}}))


def test_known_leaves_what_the_model_says_in_each_half(tmp_path: Path) -> None:
    tokenizer = small_bpe()
    pairs = list(zip(COUNTRIES, CAPITALS, strict=True))
    rows = [{"prompt": "The capital of {} is", "subject": country, "answer": city} for country, city in pairs]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = memorised(tokenizer, [f"The capital of {country} is {city}" for country, city in pairs[3:9]])
    data = Data.load(DataSpec("mine", "facts", str(file), known=True))
    identity = data.identity(3, 0, retain_size=2, unrelated_size=2)
    assert identity != Data.load(DataSpec("mine", "facts", str(file))).identity(3, 0, retain_size=2, unrelated_size=2)
    asked = data.asked_of(model, tokenizer)
    assert [e.fact.request.subject for e in asked.keep or ()] == list(COUNTRIES[3:6])
    assert [e.fact.request.subject for e in asked.entries] == list(COUNTRIES[6:9])
    assert len(asked.draw(3, 0, retain_size=2, unrelated_size=2).facts) == 3
    with pytest.raises(ConfigError, match="datasets.mine: n=4: expected 1 to 3"):
        asked.draw(4, 0, retain_size=2, unrelated_size=2)
    unchanged = Data.load(DataSpec("mine", "facts", str(file))).asked_of(model, tokenizer)
    assert len(unchanged.entries) == 12 and unchanged.keep is None


def test_a_study_renders_records_that_want_the_chat_template(tmp_path: Path) -> None:
    tokenizer = small_bpe()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    rows = [{"prompt": "Of {}?", "subject": name, "answer": "x", "chat": name == "Peru"} for name in ("Cuba", "Peru")]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    asked = Data.load(DataSpec("mine", "facts", str(file))).asked_of(tiny("llama", len(tokenizer)), tokenizer)
    assert [e.fact.request.prompt for e in asked.entries] == ["Of Cuba?", "<user>Of Peru?<assistant>"]


def test_a_prompt_beyond_the_context_is_refused(tmp_path: Path, small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    rows = [{"prompt": "the " * 600 + "{} is", "subject": name, "answer": "x"} for name in ("Cuba", "Peru")]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    most = model.config.max_position_embeddings
    with pytest.raises(RequestError, match=rf"datasets.mine: .*tokens, the model has places for {most}: shorten it"):
        Data.load(DataSpec("mine", "facts", str(file))).asked_of(model, small_tokenizer)


def test_keep_may_be_another_file(sources: dict[str, DataSpec], tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    rows = [{"prompt": "{} is an", "subject": f"Island {i}", "answer": "island"} for i in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("mcf", "embedded"):
        spec = dataclasses.replace(sources[name], keep={"source": str(file)})
        material = draw(spec, 6)
        assert {request.subject for request in material.retain} <= {f"Island {i}" for i in range(4)}
        assert len(Data.load(spec).entries) == len(Data.load(sources[name]).entries)
    spec = dataclasses.replace(sources["mcf"], keep={"name": "embedded", "facts": "development"})
    assert len(Data.load(spec).keep or ()) == len(split_entries(packaged_entries())[0])
    with pytest.raises(ConfigError, match="datasets.mcf: data set 'facts' has no option 'part'"):
        Data.load(dataclasses.replace(sources["mcf"], keep={"source": str(file), "part": "x"}))
    with pytest.raises(ConfigError, match="datasets.mcf: utility.retain=5: expected a mapping"):
        Data.load(dataclasses.replace(sources["mcf"], utility={"retain": 5}))


def test_a_data_set_of_a_plugin_works_in_a_study() -> None:
    @datasets.register("islands")
    def islands(count: int) -> list[Entry]:
        """Islands."""
        rows = [{"prompt": "{} is an", "subject": f"Island {i}", "answer": "island"} for i in range(count)]
        return [Entry((fact,), topic=f"{i % 3}", openings=(f"Island {i}",)) for i, fact in enumerate(load_facts(rows))]

    try:
        material = draw(DataSpec("mine", "islands", options={"count": 12}), 2)
    finally:
        datasets.remove("islands")
    assert len(material.facts) == len(material.openings) == 2
    assert material.probes.spe_unrelated


FULL = ("paper_mcf", "paper_zsre", "paper_mquake", "supplement_rwku", "supplement_sizes", "supplement_ablations")


@pytest.mark.parametrize("name", FULL)
def test_the_shipped_studies_fit_files_of_the_true_format(tmp_path: Path, name: str, small_tokenizer) -> None:
    """All but the texts of the hub, which a plan does not read."""
    model = tmp_path / "llama"
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=28,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    small_tokenizer.save_pretrained(model)
    folder = tmp_path / "RWKU"
    folder.mkdir()
    for part in ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2"):
        write_json(folder / f"{part}.json", rwku_records(part, 60))
    many = 2000 if name == "supplement_sizes" else 100
    sources = {
        "mcf": write_json(tmp_path / "multi_counterfact.json", many_counterfact(many)),
        "zsre": write_json(tmp_path / "zsre_mend_eval.json", zsre_records(many)),
        "mquake": write_json(tmp_path / "MQuAKE-CF-3k-v2.json", mquake_records(many)),
        "rwku": folder,
    }
    study = load_study(ROOT / f"studies/{name}.yaml", [f"model.name={model}"])
    checkout = framework().edition == "checkout"
    study = dataclasses.replace(
        study,
        seeds=study.seeds[:2],
        datasets=tuple(dataclasses.replace(data, source=str(sources[data.name])) for data in study.datasets),
        methods=tuple(method for method in study.methods if checkout or method.label != "AlphaEdit"),
    )
    plan = Plan.of(study)
    per_method = len(study.datasets) * len(study.sizes) * len(study.seeds)
    assert len({cell.id for cell in plan.cells}) == len(study.methods) * per_method
    assert len({cell.base for cell in plan.cells}) == per_method
