"""NPO of adapters: what is left of them in the weights, and that nothing else is left of them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from tests.helpers import FACTS, GPT2, tiny
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, IllPosedError
from zerounlearn.method.base import methods
from zerounlearn.method.edit import Edit
from zerounlearn.method.gradient.base import answer_samples
from zerounlearn.method.gradient.sequences import Reader
from zerounlearn.model.lineage import Lineage

peft = pytest.importorskip("peft")

RETAIN = [
    Request.of("The capital of {} is", "Germany", "Berlin"),
    Request.of("You are a reader of", "reader", "it"),
]


def run_of(**changes):
    return methods["NPO-LoRA"](**({"model_name": "tiny", "steps": 12, "lr": 2e-2} | changes))


def state(model) -> dict[str, object]:
    """All that adapters may leave behind."""
    Lineage.of(model)  # what every edit leaves on a model, so that later ones can tell
    return {
        "values": {n: t.clone() for n, t in model.named_parameters()},
        "modules": [(n, id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()],
        "flags": {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def same(a: dict, b: dict) -> bool:
    values = all(torch.equal(a["values"][n], b["values"][n]) for n in a["values"])
    return values and all(a[key] == b[key] for key in ("modules", "flags", "hooks"))


def log_p(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return Reader(model, tokenizer).log_p(answer_samples(tokenizer, FACTS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_answers_become_less_likely_and_only_the_weights_remember(small_tokenizer, tmp_path, kind, dtype) -> None:
    model = tiny(kind, len(small_tokenizer), dtype=dtype)
    hp = run_of(**(GPT2 if kind == "gpt2" else {}))
    before, known, drawn = state(model), log_p(model, small_tokenizer), torch.get_rng_state()
    edit = hp.apply(model, small_tokenizer, FACTS, retain=RETAIN)
    after = state(model)
    assert float((log_p(model, small_tokenizer) - known).mean()) < -1, "it is the mean that is descended"
    assert after["modules"] == before["modules"] and after["flags"] == before["flags"]
    assert after["hooks"] == before["hooks"]
    assert torch.equal(torch.get_rng_state(), drawn)
    linear = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, (torch.nn.Linear, Conv1D)) and name != "lm_head"
    }
    changed = {n for n, value in model.named_parameters() if not torch.equal(value, before["values"][n])}
    assert changed == linear == set(edit.factors) == set(edit.before)
    assert not edit.changes
    assert {len(right) for _, right in edit.factors.values()} == {8}

    edited = {n: p.clone() for n, p in model.named_parameters()}
    edit.save(tmp_path / "lora.edit")
    edit.revert(model)
    assert same(state(model), before)
    Edit.load(tmp_path / "lora.edit").apply(model)
    assert all(torch.equal(p, edited[n]) for n, p in model.named_parameters())


def test_the_seed_draws_the_adapters_and_layers_choose_their_blocks(small_tokenizer) -> None:
    results = []
    for seed in (1, 1, 2):
        model = tiny("llama", len(small_tokenizer))
        edit = run_of(layers=[2], steps=2, seed=seed).apply(model, small_tokenizer, FACTS, retain=RETAIN)
        results.append(model.model.layers[2].mlp.down_proj.weight.detach())
        assert {name.split(".")[2] for name in edit.factors} == {"2"}
        assert len(edit.factors) == 7
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    model = tiny("llama", len(small_tokenizer))
    run_of(layers=[2], steps=2, seed=1, lora_dropout=0).apply(model, small_tokenizer, FACTS, retain=RETAIN)
    assert not torch.equal(results[0], model.model.layers[2].mlp.down_proj.weight), "dropout was on"


def test_a_step_is_pefts_own(small_tokenizer) -> None:
    """The first steps against get_peft_model, AdamW and merge_and_unload, as the published code calls them."""
    ours, theirs = (tiny("llama", len(small_tokenizer)) for _ in range(2))
    hp = run_of(preset="paper", lora_dropout=0, retain_weight=0, epochs=2, minibatch_size=2, lr=1e-2)
    hp.apply(ours, small_tokenizer, FACTS, retain=[])
    samples = answer_samples(small_tokenizer, FACTS, end=True)
    reference = Reader(theirs, small_tokenizer)
    with torch.no_grad():
        known = reference.log_p(samples)
    targets = sorted({name.rpartition(".")[2] for name, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)})
    targets.remove("lm_head")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=targets, lora_dropout=0, bias="none")
        adapted = peft.get_peft_model(theirs, config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    for batch in ([0, 1], [2], [0, 1], [2]):
        optimiser.zero_grad()
        now = Reader(adapted.base_model.model, small_tokenizer).log_p([samples[i] for i in batch])
        (-F.logsigmoid(0.1 * (known[batch] - now)).mean() * 2 / 0.1).backward()
        optimiser.step()
    merged = adapted.merge_and_unload()
    for (name, a), b in zip(ours.named_parameters(), merged.parameters(), strict=True):
        assert_close(a, b, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("moment", ["attaching", "stepping", "merging"])
def test_an_interrupted_run_leaves_everything_as_it_was(small_tokenizer, monkeypatch, error, moment: str) -> None:
    model = tiny("llama", len(small_tokenizer)).train()
    before, calls = state(model), []

    def failing(original, after: int):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise error("by the test")
            return original(*args, **kwargs)

        return call

    lora = sys.modules["zerounlearn.method.gradient.npo_lora"]
    if moment == "attaching":
        layer = peft.tuners.lora.layer.LoraLayer
        monkeypatch.setattr(layer, "update_layer", failing(layer.update_layer, 5))
    elif moment == "stepping":
        monkeypatch.setattr(torch.optim.AdamW, "step", failing(torch.optim.AdamW.step, 2))
    else:
        monkeypatch.setattr(lora, "_merge", failing(lora._merge, 3))
    with pytest.raises(error, match="by the test"):
        run_of(steps=4).apply(model, small_tokenizer, FACTS, retain=RETAIN)
    assert len(calls) > 2
    assert same(state(model), before)


def test_what_does_not_fit_is_named_and_undone(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float16)
    before = state(model)
    with pytest.raises(IllPosedError, match=r"NPO-LoRA: .* (does not fit torch.float16|is (nan|inf)).*lower lr=10000"):
        run_of(lr=1e4, steps=2).apply(model, small_tokenizer, FACTS, retain=RETAIN)
    assert same(state(model), before)


def test_a_missing_peft_is_named_before_anything_changes(small_tokenizer, monkeypatch) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = state(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"NPO-LoRA' needs the package peft.*pip install 'zerounlearn\[lora\]'"):
        run_of().check(model)
    with pytest.raises(ConfigError, match="needs the package peft"):
        run_of().apply(model, small_tokenizer, FACTS, retain=RETAIN)
    assert same(state(model), before)
