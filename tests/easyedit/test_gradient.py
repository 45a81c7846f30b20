"""The baselines in the framework: its tables, its contract, its own editor on a small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zerounlearn.easyedit
from tests.helpers import tiny
from zerounlearn.data.request import Request
from zerounlearn.easyedit.adapter import apply_to_model
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import ConfigError
from zerounlearn.method.gradient.base import GradientMethod

METHODS = {n: m.hparams for n, m in zerounlearn.easyedit.METHODS.items() if issubclass(m.hparams, GradientMethod)}
RECORD = {"prompt": "The capital of France is", "subject": "France", "ground_truth": "Paris", "target_new": ""}
KEPT = {"prompt": "The capital of {} is", "subject": "Germany", "answer": "Berlin"}


@pytest.fixture
def retain_path(tmp_path: Path) -> str:
    file = tmp_path / "retain.jsonl"
    file.write_text(json.dumps(KEPT) + "\n")
    return str(file)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def test_every_method_is_registered_and_batchable() -> None:
    import easyeditor
    from easyeditor.editors.batch_editor import BatchEditor
    from easyeditor.util.alg_dict import ALG_DICT

    zerounlearn.easyedit.register()
    for name, hparams in METHODS.items():
        assert ALG_DICT[name] is apply_to_model
        assert BatchEditor.is_batchable_method(name)
        assert getattr(easyeditor, hparams.__name__) is hparams
    assert not BatchEditor.is_batchable_method("ROME")


def test_apply_follows_the_contract(small_tokenizer, retain_path: str) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = weights(model)
    hp = METHODS["NPO"].from_mapping(
        {"model_name": "tiny", "layers": [1, 2], "steps": 2, "retain_path": retain_path, "lr": 1e-2}
    )
    names = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    copy, originals = apply_to_model(model, small_tokenizer, [RECORD], hp, copy=True, return_orig_weights=True)
    assert not changed(model, before)
    assert changed(copy, before) == names
    assert (originals == {}) == (framework().edition == "wheel"), "as MEMIT does in each edition"
    same, kept = apply_to_model(
        model, small_tokenizer, [RECORD], hp, return_orig_weights=True, keep_original_weight=True, train_ds=None
    )
    assert same is model
    assert set(kept) == names
    assert all(torch.equal(kept[name], before[name]) for name in names)
    given = [Request.of("The capital of {} is", "Germany", "Berlin")]
    other = tiny("llama", len(small_tokenizer))
    apply_to_model(other, small_tokenizer, [RECORD], hp, retain=given)
    assert not changed(other, weights(model)), "the file's facts, given directly"
    with pytest.raises(ConfigError, match="NPO needs a retain set"):
        apply_to_model(model, small_tokenizer, [RECORD], hp, retain=())


@pytest.mark.parametrize("name", METHODS)
def test_the_frameworks_batch_edit(small_tokenizer, tmp_path_factory, retain_path: str, name: str) -> None:
    from easyeditor import BaseEditor

    # EasyEdit picks its loader by the path: a "t5" anywhere in it, as tmp_path may have, means T5.
    folder = tmp_path_factory.mktemp("checkpoints") / "llama-tiny"
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    values = {"model_name": str(folder), "layers": [1, 2], "steps": 2, "batch_size": 2, "device": "cpu", "lr": 1e-2}
    values |= {} if name == "GA" else {"retain_path": retain_path}
    editor = BaseEditor.from_hparams(METHODS[name].from_mapping(values))
    before = weights(editor.model)
    metrics, edited, _ = editor.batch_edit(
        prompts=["The capital of France is", "People in Rio de Janeiro speak"],
        subject=["France", "Rio de Janeiro"],
        ground_truth=["Paris", "Portuguese"],
        target_new=[editor.tok.eos_token] * 2,
        sequential_edit=True,
        verbose=False,
    )
    assert len(metrics) == 2
    down = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    linear = {n for n in before if n.startswith(("model.layers.1.", "model.layers.2.")) and "proj" in n}
    assert changed(edited, before) == (linear if name == "NPO-LoRA" else down)
