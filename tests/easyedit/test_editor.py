"""The framework end to end, on the real model: editor API, our editor, the metrics it reuses."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zerounlearn.easyedit  # registers the method, which the tests below rely on
from zerounlearn.api import Evaluation
from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.request import Request
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.easyedit import ZeroUnlearnEditor
from zerounlearn.easyedit.adapter import apply_to_model
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.hparams import ZeroUnlearnGDHyperParams, ZeroUnlearnHyperParams
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.model.answers import score
from zerounlearn.report.run import Phase

ROOT = Path(__file__).resolve().parents[2]
FACTS = [
    {
        "prompt": "The capital of {} is", "subject": "France", "answer": "Paris",
        "paraphrases": ["In France, the national capital is"],
        "neighbours": [["The capital of Italy is", "Rome"]], "others": [["The opposite of hot is", "cold"]],
    },
    {"prompt": "The capital of {} is", "subject": "Germany", "answer": "Berlin"},
    {"prompt": "The capital of {} is", "subject": "Russia", "answer": "Moscow"},
]  # fmt: skip
EDIT = {
    "prompts": ["The capital of France is", "The capital of Germany is"],
    "subject": ["France", "Germany"],
    "ground_truth": ["Paris", "Berlin"],
}


@pytest.fixture(scope="module")
def stats_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stats")


@pytest.fixture
def hp(smollm2, smollm2_path: Path, stats_dir: Path) -> ZeroUnlearnHyperParams:
    hparams = ZeroUnlearnHyperParams.from_hparams(ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml")
    return dataclasses.replace(
        hparams, model_name=smollm2, stats_dir=str(stats_dir), mom2_n_samples=40, device="cpu", batch_size=2
    )


def says(model, tokenizer, prompt: str, answer: str) -> bool:
    """Independent of package and framework: greedy decoding, one token at a time."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    wanted = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    for token in wanted:
        with torch.no_grad():
            if int(model(input_ids=ids).logits[0, -1].argmax()) != token:
                return False
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return True


def weights(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "down_proj" in n}


def changed(model, before: dict[str, torch.Tensor]) -> set[int]:
    return {int(n.split(".")[2]) for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])}


def test_one_import_registers(smollm2) -> None:
    from easyeditor import BaseEditor
    from easyeditor import ZeroUnlearnGDHyperParams as ExposedGD
    from easyeditor import ZeroUnlearnHyperParams as Exposed
    from easyeditor.editors.batch_editor import BatchEditor
    from easyeditor.util.alg_dict import ALG_DICT

    assert Exposed is ZeroUnlearnHyperParams
    assert ExposedGD is ZeroUnlearnGDHyperParams
    assert BatchEditor.is_batchable_method("ZeroUnlearn-GD")
    assert BatchEditor.is_batchable_method("ZeroUnlearn")
    assert issubclass(zerounlearn.easyedit.ZeroUnlearnEditor, BaseEditor)
    zerounlearn.easyedit.register()
    zerounlearn.easyedit.unregister()
    try:
        assert not {"ZeroUnlearn", "ZeroUnlearn-GD"} & set(ALG_DICT)
        assert not BatchEditor.is_batchable_method("ZeroUnlearn")
    finally:
        zerounlearn.easyedit.register()
    assert "ZeroUnlearn" in ALG_DICT


def framework_editor(hp: ZeroUnlearnHyperParams, path: Path, batch_size: int):
    """The framework's own editor, which measures only models that it has loaded by name."""
    from easyeditor import BaseEditor

    return BaseEditor.from_hparams(dataclasses.replace(hp, model_name=str(path), batch_size=batch_size))


def test_the_frameworks_edit(hp, smollm2_path: Path) -> None:
    editor = framework_editor(hp, smollm2_path, 1)
    before = weights(editor.model)
    asked = list(zip(EDIT["prompts"], EDIT["ground_truth"], strict=True))
    assert all(says(editor.model, editor.tok, *pair) for pair in asked)
    neutral = [editor.tok.eos_token] * 2
    metrics, edited, originals = editor.edit(**EDIT, target_new=neutral, keep_original_weight=True, verbose=False)
    assert edited is editor.model
    assert len(metrics) == 2
    assert {"pre", "post", "requested_rewrite"} <= set(metrics[0])
    assert set(originals) == {f"model.layers.{i}.mlp.down_proj.weight" for i in hp.layers}
    assert not changed(editor.model, before), "edit puts the weights back after each request"


def test_the_frameworks_batch_edit_and_staying_edits(hp, smollm2_path: Path) -> None:
    editor = framework_editor(hp, smollm2_path, 2)
    before = weights(editor.model)
    metrics, edited, _ = editor.batch_edit(
        **EDIT,
        target_new=[editor.tok.eos_token] * 2,
        rephrase_prompts=["In France, the capital is", "The German capital is"],
        sequential_edit=True,
        verbose=False,
    )
    assert len(metrics) == 2
    assert "rephrase_acc" in metrics[0]["post"]
    assert changed(edited, before) == set(hp.layers)
    asked = list(zip(EDIT["prompts"], EDIT["ground_truth"], strict=True))
    assert not any(says(edited, editor.tok, *pair) for pair in asked)


def test_the_gradient_variant_in_the_framework(hp, smollm2_path: Path) -> None:
    run = load_method(ROOT / "hparams/ZeroUnlearn-GD/smollm2-135m.yaml")
    shared = {name: getattr(hp, name) for name in ("stats_dir", "mom2_n_samples", "device", "batch_size")}
    editor = framework_editor(dataclasses.replace(run, **shared), smollm2_path, 2)
    before = weights(editor.model)
    asked = list(zip(EDIT["prompts"], EDIT["ground_truth"], strict=True))
    assert all(says(editor.model, editor.tok, *pair) for pair in asked)
    neutral = [editor.tok.eos_token] * 2
    _, edited, _ = editor.batch_edit(**EDIT, target_new=neutral, sequential_edit=True, verbose=False)
    assert changed(edited, before) == set(hp.layers)
    assert not any(says(edited, editor.tok, *pair) for pair in asked)


def test_apply_follows_the_contract(hp, smollm2) -> None:

    model, tokenizer = smollm2
    before = weights(model)
    request = [{"prompt": "The capital of France is", "subject": "France", "ground_truth": "Paris", "target_new": ""}]
    quick = dataclasses.replace(hp, v_num_grad_steps=3)
    copy, originals = apply_to_model(model, tokenizer, request, quick, copy=True, return_orig_weights=True)
    assert copy is not model
    assert not changed(model, before)
    assert changed(copy, before) == set(hp.layers)
    assert (originals == {}) == (framework().edition == "wheel"), "as MEMIT does in each edition"
    _, none = apply_to_model(copy, tokenizer, request, quick, train_ds=None)
    assert none == {}
    _, kept = apply_to_model(model, tokenizer, request, quick, return_orig_weights=True, keep_original_weight=True)
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    assert len(kept) == len(hp.layers)


def test_unlearn_forgets_and_reports(hp, smollm2, tmp_path: Path) -> None:

    model, tokenizer = smollm2
    before = weights(model)
    truth = [says(model, tokenizer, f["prompt"].format(f["subject"]), f["answer"]) for f in FACTS]
    assert truth == [True] * 3, "a case whose outcome is known: the model does say these answers"
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(f) + "\n" for f in FACTS))
    held_out = ["The river flows through the old town and under two bridges before it meets the sea. " * 20]
    report, edited = ZeroUnlearnEditor(hp).unlearn(file, held_out=held_out)
    assert edited is model
    assert report.before.eff == 1.0, "the metric must read 1.0 where the model does say the answer"
    independent = [says(model, tokenizer, f["prompt"].format(f["subject"]), f["answer"]) for f in FACTS]
    assert report.after.eff == sum(independent) / 3 == 0.0
    assert [f.after.forget[0] for f in report.facts] == independent
    assert report.after.eff_probability < 0.1 * report.before.eff_probability
    assert changed(model, before) == set(hp.layers)
    assert all(layer.leakage < 1e-6 for layer in report.layers)
    assert report.after.ppl is not None
    assert report.after.ppl < 2 * report.before.ppl
    neighbour = says(model, tokenizer, *FACTS[0]["neighbours"][0])
    assert report.facts[0].after.neighbours[0][0] == neighbour

    report.save(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["after"]["eff"] == 0.0
    assert stored["hparams"]["layers"] == hp.layers
    assert {"statistics", "contexts", "vectors", "keys", "solve", "evaluation"} <= set(stored["seconds"])
    assert {"torch", "transformers", "zerounlearn", "easyedit", "device", "dtype"} <= set(stored["environment"])
    assert stored["fingerprints"]["corpus"] == "embedded"
    for layer in hp.layers:
        assert len(stored["fingerprints"][f"weights below layer {layer}"]) == 32
        assert len(stored["fingerprints"][f"C of layer {layer}"]) == 32
    page = (tmp_path / "report.md").read_text()
    assert "The capital of France is" in page
    assert "| before | 100.0 |" in page
    assert "None" not in page.split("## Run")[0]


@pytest.mark.slow
def test_a_neutral_text_is_what_the_model_is_moved_to(hp, smollm2) -> None:
    """Of the three neutral targets the text is the one whose first token can be told from the others."""
    model, tokenizer = smollm2
    request = Request.of("The capital of {} is", "France", "Paris")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    wanted = tokenizer(" unknown")["input_ids"][0]
    rise = []
    for neutral in ("unknown", "eos"):
        before = weights(model)
        base = model(input_ids=ids).logits[0, -1].log_softmax(-1)[wanted].item()
        unlearn(
            model,
            tokenizer,
            [request],
            dataclasses.replace(hp, neutral_target=neutral),
            open_corpus("embedded"),
        )
        rise.append(model(input_ids=ids).logits[0, -1].log_softmax(-1)[wanted].item() - base)
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)
    assert rise[0] > rise[1] + 1.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_said_is_what_easyedits_own_metric_counts(hp, smollm2, side: str) -> None:
    """One prompt a call: batched, the framework's slices depend on the padding side."""
    model, tokenizer = smollm2
    tokenizer.padding_side = side
    evaluate = importlib.import_module(f"{framework().module.__name__}.evaluate.evaluate")
    facts = [entry.fact.request for entry in packaged_entries()[::24]]
    pairs = [(fact.prompt, answer) for fact in facts for answer in (fact.answer, facts[0].answer)]
    verdicts = [s.said for s in score(model, tokenizer, pairs)]
    for (prompt, answer), said in zip(pairs, verdicts, strict=True):
        record = {"prompt": prompt, "target_new": answer, "ground_truth": answer}
        quality = evaluate.compute_edit_quality(model, "", hp, tokenizer, record, "cpu")
        [accuracy] = np.atleast_1d(quality["rewrite_acc"])
        assert said == (accuracy == 1.0), (prompt, answer)
    assert 5 < sum(verdicts) < len(verdicts) - 5


def test_an_evaluation_that_is_interrupted_leaves_the_model_as_it_was(hp, smollm2, monkeypatch) -> None:
    model, _ = smollm2
    before = weights(model)
    editor = ZeroUnlearnEditor(dataclasses.replace(hp, v_num_grad_steps=2))
    phases: list[str] = []

    def measure(*_):
        phases.append("after" if phases else "before")
        if phases[-1] == "after":
            assert changed(model, before) == set(hp.layers)
            raise KeyboardInterrupt
        return Evaluation(Phase(0.0, 0.0), ())

    monkeypatch.setattr("zerounlearn.api._measured", measure)
    with pytest.raises(KeyboardInterrupt):
        editor.unlearn(FACTS[:1], held_out=[])
    assert phases == ["before", "after"]
    assert not changed(model, before)


def test_names_are_no_matter_and_mistakes_are_found_before_the_model_is_loaded(hp) -> None:
    with pytest.raises(ConfigError, match="model_name='models/gone': there is no such folder"):
        ZeroUnlearnEditor(dataclasses.replace(hp, model_name="models/gone"))
    with pytest.raises(ConfigError, match="mom2_dataset='wiki'"):
        ZeroUnlearnEditor(dataclasses.replace(hp, mom2_dataset="wiki"))


def test_a_request_without_its_sensitive_answer(hp, smollm2_path: Path) -> None:
    editor = framework_editor(hp, smollm2_path, 1)
    before = weights(editor.model)
    with pytest.raises(RequestError, match="ground_truth"):
        editor.edit(prompts=EDIT["prompts"][0], subject="France", target_new=editor.tok.eos_token, verbose=False)
    assert not changed(editor.model, before)
