"""An edit as an adapter of peft: the same logits on, merged and off; what cannot be held is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.cli import main
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError, EditError, OutputError
from zerounlearn.method.edit import Edit
from zerounlearn.method.export import adapter_gap, export_peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.integration  # the whole path of a method, many times
IDS = torch.arange(24).reshape(2, 12) * 13 % 300
DOWN = "model.layers.{}.mlp.down_proj.weight"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits.double()


def forget(model: Any, tokenizer: Any, method: str = "ZeroUnlearn", **changes: Any) -> Edit:
    fixed: dict[str, Any] = {
        "ZeroUnlearn": {"v_num_grad_steps": 8, "mom2_adjustment": False},
        "GA": {"steps": 2, "lr": 1e-2},
        "NPO-LoRA": {"steps": 2, "lr": 1e-2, "retain_weight": 0},
    }[method]
    return zu.unlearn(model, tokenizer, map(Fact, FACTS), zu.methods[method](**{"layers": [1, 2]} | fixed | changes))


def assert_alike(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Absolute in float32; in bfloat16, whose own steps are larger than that, over the logits' norm."""
    gap = (found - wanted).abs().max() if dtype == torch.float32 else (found - wanted).norm() / wanted.norm()
    assert gap < (1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["ZeroUnlearn", "GA", "NPO-LoRA"])
def test_peft_loads_merges_and_unloads_it(
    method: str, kind: str, dtype: torch.dtype, small_tokenizer: Any, tmp_path: Path
) -> None:
    """Thin factors of the edit's own, whole changes, and those of every linear layer, in both orientations."""
    model = tiny(kind, len(small_tokenizer), dtype=dtype)
    before, plain = weights(model), logits(model)
    edit = forget(model, small_tokenizer, method)
    wanted = logits(model)
    edit.revert(model)
    exported = export_peft(edit, tmp_path / "adapter", model)
    assert {weight.name for weight in exported.weights} == set(edit.digests)
    assert exported.error < 1e-7
    assert (wanted - plain).norm() > 0.02 * plain.norm(), "the edit is seen in the logits"

    wrapped = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    assert_alike(logits(wrapped), wanted, dtype)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), plain)
    model = wrapped.unload()
    assert torch.equal(logits(model), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    merged = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload()
    assert_alike(logits(merged), wanted, dtype)


def test_its_rank_is_the_edits_own_and_can_be_capped(small_tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    edit = forget(model, small_tokenizer)
    edit.revert(model)
    own = export_peft(edit, tmp_path / "own", model)
    assert [w.rank for w in own.weights] == [left.shape[1] for left, _ in edit.factors.values()]
    capped = export_peft(edit, tmp_path / "capped", model, rank=2)
    total = lost = 0.0
    for weight, (left, right) in zip(capped.weights, edit.factors.values(), strict=True):
        change = left.double() @ right.double()
        S = torch.linalg.svdvals(change)
        assert (weight.rank, weight.error) == (2, pytest.approx(float(S[2:].norm() / S.norm()), rel=1e-6))
        total, lost = total + float(S.square().sum()), lost + float(S[2:].square().sum())
        stored = _change(tmp_path / "capped", weight.name)
        assert float((stored - change).norm() / change.norm()) == pytest.approx(weight.error, rel=1e-5)
    assert capped.error == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert 0 < capped.error < 1
    assert own.error == 0


def _change(folder: Path, name: str) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
    return B.double() @ A.double()


def test_weights_of_different_rank_and_factors_wider_than_the_weight(small_tokenizer: Any, tmp_path: Path) -> None:
    """Ranks by module, layers 1 and 11 alike in their last digit; more factors than dimensions are as many at last."""
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 30

    edit = Edit(
        "made",
        {},
        factors={DOWN.format(1): (random(32, 3), random(3, 48)), DOWN.format(3): (random(32, 100), random(100, 48))},
        changes={"lm_head.weight": random(len(small_tokenizer), 32), DOWN.format(0): torch.zeros(32, 48)},
    )
    exported = export_peft(edit, tmp_path / "adapter", model)
    assert {w.name: w.rank for w in exported.weights} == {DOWN.format(1): 3, DOWN.format(3): 32, "lm_head.weight": 32}
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (32, 32), "scaled by 1, whoever reads no patterns"
    wrapped = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    found = logits(wrapped)
    model = wrapped.unload()
    with torch.no_grad():
        for name, (left, right) in edit.factors.items():
            model.get_parameter(name).add_(left @ right)
        model.lm_head.weight.add_(edit.changes["lm_head.weight"])
    assert_alike(found, logits(model), torch.float32)


def test_the_adapter_says_nothing_of_where_it_was_made(small_tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "secret-place"
    tiny("llama", len(small_tokenizer), dtype=torch.float32).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    edit = forget(model, small_tokenizer, stats_dir=str(tmp_path / "secret-statistics"), model_name=str(folder))
    edit.revert(model)
    for source, base, output in ((model, None, "one"), (str(folder), "somebody/model", "two")):
        export_peft(edit, tmp_path / output, source, base=base)
        files = sorted(path.name for path in (tmp_path / output).iterdir())
        assert files == [".zerounlearn.json", "adapter_config.json", "adapter_model.safetensors"]
        held = b"".join(path.read_bytes() for path in (tmp_path / output).iterdir())
        assert b"secret" not in held
        assert b"France" not in held
        config = json.loads((tmp_path / output / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
    assert not any("lora" in name for name, _ in model.named_modules())


def test_the_difference_to_the_edited_model_is_measured(small_tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("gpt2", len(small_tokenizer), dtype=torch.float32)
    edit = forget(model, small_tokenizer)
    edit.revert(model)
    before = weights(model)
    export_peft(edit, tmp_path / "own", model)
    export_peft(edit, tmp_path / "one", model, rank=1)
    assert adapter_gap(edit, model, small_tokenizer, tmp_path / "own") < 1e-4
    assert adapter_gap(edit, model, small_tokenizer, tmp_path / "one") > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not any("lora" in name for name, _ in model.named_modules())
    with torch.no_grad():
        model.get_parameter(next(iter(edit.digests))).add_(1e-3)
    with pytest.raises(EditError, match="is not the weight that this edit was made on"):
        adapter_gap(edit, model, small_tokenizer, tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.norm.weight", (32,), r"model\.norm\.weight is the weight of a LlamaRMSNorm: LoRA holds"),
        ("model.embed_tokens.weight", (400, 32), "the weight of a Embedding"),
        ("transformer.h.1.mlp.c_proj.bias", (32,), "the bias of a Conv1D"),
        (DOWN.format(9), (32, 48), r"has no weight 'model\.layers\.9"),
        (DOWN.format(1), (48, 32), r"is \(32, 48\) in the model, \(48, 32\) in the edit"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    model = tiny("gpt2" if "transformer" in name else "llama", 400, dtype=torch.float32)
    with pytest.raises(EditError, match=message):
        export_peft(Edit("made", {}, changes={name: torch.ones(shape)}), tmp_path / "adapter", model)
    assert not list(tmp_path.iterdir())


def test_other_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", 400, dtype=torch.float32)
    edit = Edit("made", {}, factors={DOWN.format(1): (torch.ones(32, 1), torch.ones(1, 48))})
    with pytest.raises(ConfigError, match="rank=0: expected a whole number >= 1"):
        export_peft(edit, tmp_path / "a", model, rank=0)
    with pytest.raises(EditError, match="changes no weight"):
        export_peft(Edit("made", {}), tmp_path / "a", model)
    with pytest.raises(EditError, match="wraps modules"):
        export_peft(Edit("GRACE", {}, undo=lambda: None), tmp_path / "a", model)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "peft", None)
        with pytest.raises(ConfigError, match=r"pip install 'zerounlearn\[lora\]'"):
            export_peft(edit, tmp_path / "a", model)
    with monkeypatch.context() as patched:
        patched.setattr(peft.PeftModel, "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_peft(edit, tmp_path / "a", model)
    assert not list(tmp_path.iterdir())
    export_peft(edit, tmp_path / "a", model)
    with pytest.raises(OutputError, match="exists and is not empty"):
        export_peft(edit, tmp_path / "a", model)
    export_peft(edit, tmp_path / "a", model, overwrite=True)


def test_the_real_models_edit_is_exported_by_the_command(smollm2: Any, smollm2_path: Path, tmp_path: Path) -> None:
    model, tokenizer = smollm2
    method = zu.ZeroUnlearn(
        layers=[17, 18, 19], v_lr=0.3, v_num_grad_steps=10, mom2_adjustment=False, model_name=str(smollm2_path)
    )
    facts = [{"prompt": "The capital of {} is", "subject": "France", "answer": "Paris"}]
    edit = zu.unlearn(model, tokenizer, facts, method)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    wanted = logits(model, ids)
    edit.save(tmp_path / "edit.safetensors")
    edit.revert(model)
    plain = logits(model, ids)
    command = ["export", str(tmp_path / "edit.safetensors"), "--base", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    result = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "adapter"), "--check"])
    assert result.exit_code == 0, result.output
    assert "exact to float32" in result.output
    assert float(result.output.rpartition("edited model: ")[2]) < 1e-4
    wrapped = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    assert_alike(logits(wrapped, ids), wanted, torch.float32)
    assert int(wanted[0, -1].argmax()) != int(plain[0, -1].argmax())
    model = wrapped.unload()
    assert torch.equal(logits(model, ids), plain)
    capped = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "capped"), "--rank", "1"])
    assert "rank 1 of" in capped.output
    assert "of the change cut off (Frobenius)" in capped.output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model", "nowhere/"], "--model='nowhere/': there is no such folder"),
        ([], "does not name the model that it was made on: pass --model"),
    ],
)
def test_the_commands_refusals_come_before_any_weight(
    extra: list[str], message: str, small_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(tiny("llama", len(small_tokenizer), dtype=torch.float32), small_tokenizer).save(tmp_path / "e.safetensors")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    command = ["export", str(tmp_path / "e.safetensors"), "--output", str(tmp_path / "out"), "--check", *extra]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, message in result.output) == (1, True), result.output
    assert not (tmp_path / "out").exists()
