"""Where a decoder's parts are: what the structure says is what the families say, and what leaves a doubt is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.data.fact import Fact
from zerounlearn.errors import LayoutError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.families import NEEDED, families, templates_of
from zerounlearn.model.structure import name_of_blocks, name_of_head, name_of_norm, name_of_projection


def skeleton(kind: str, **changes: Any) -> Any:
    """A model of its own class without weights, with all its defaults but the sizes."""
    sizes = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(sizes | changes)))


def found(model: Any) -> tuple[str, str, str, str]:
    blocks = name_of_blocks(model)
    return blocks, name_of_projection(model, blocks, []), name_of_norm(model, blocks), name_of_head(model)


@pytest.mark.parametrize("kind", families)
def test_a_familys_row_is_what_the_structure_of_its_class_says(kind: str) -> None:
    model, row = tiny(kind, 99), families[kind]
    blocks, projection, norm, head = found(model)
    assert (row.layer_module_tmp, row.ln_f_module, row.lm_head_module) == (f"{blocks}.{{}}", norm, head)
    assert row.rewrite_module_tmp == f"{blocks}.{{}}.{projection}"
    assert templates_of(model, None) == {name: getattr(row, name) for name in NEEDED}
    for template in (row.mlp_module_tmp, row.attn_module_tmp):
        assert template is not None
        assert list(model.get_submodule(template.format(0)).parameters())
    assert row.mlp_module_tmp == row.rewrite_module_tmp.rpartition(".")[0]


UNNAMED = {
    "stablelm": ("model.layers", "mlp.down_proj", "model.norm", "lm_head"),
    "exaone4": ("model.layers", "mlp.down_proj", "model.norm", "lm_head"),
    "smollm3": ("model.layers", "mlp.down_proj", "model.norm", "lm_head"),
    "persimmon": ("model.layers", "mlp.dense_4h_to_h", "model.final_layernorm", "lm_head"),
    "bloom": ("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f", "lm_head"),
    "gpt_bigcode": ("transformer.h", "mlp.c_proj", "transformer.ln_f", "lm_head"),
    "codegen": ("transformer.h", "mlp.fc_out", "transformer.ln_f", "lm_head"),
    "opt": ("model.decoder.layers", "fc2", "model.decoder.final_layer_norm", "lm_head"),
    "biogpt": ("biogpt.layers", "fc2", "biogpt.layer_norm", "output_projection"),
}
"""Decoders that no row names; some have no module for the MLP, or an embedding's norm beside the final one."""


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_decoder_that_no_family_names_is_found_by_its_structure(kind: str) -> None:
    model = skeleton(kind, **({"word_embed_proj_dim": 64} if kind == "opt" else {"pad_token_id": 0}))
    assert kind not in families
    assert found(model) == UNNAMED[kind]
    layout = find_layout(model, ZeroUnlearn(layers=[1, 2]))
    assert len(layout.blocks) == 3
    assert layout.inputs(1) != 64


def test_a_model_that_also_reads_pictures_is_found_by_its_text() -> None:
    """Gemma 3's vision tower is the longer list, of another width."""
    text = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16}
    vision = {"hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision))
    assert len(model.model.vision_tower.vision_model.encoder.layers) == 5
    assert found(model) == ("model.language_model.layers", "mlp.down_proj", "model.language_model.norm", "lm_head")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_mixture_of_experts_is_refused_with_the_reason(kind: str) -> None:
    model = tiny(kind, 99)
    for given in ({}, {"rewrite_module_tmp": "model.layers.{}.mlp.down_proj"}):
        with pytest.raises(LayoutError, match=r"model\.layers\.1\.mlp\.experts .* is a mixture of experts: .*a dense"):
            find_layout(model, ZeroUnlearn(layers=[1], **given))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_gradient_method_without_layers_trains_a_mixture_and_is_undone(kind: str, small_tokenizer: Any) -> None:
    model = tiny(kind, len(small_tokenizer), dtype=torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    edit = zu.unlearn(model, small_tokenizer, [Fact(FACTS[0])], zu.GA(steps=1, lr=1e-3))
    experts = "model.layers.1.mlp.experts.down_proj"
    assert not torch.equal(model.get_parameter(experts), before[experts])
    edit.revert(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_layer_of_a_mixture_that_has_one_mlp_is_found() -> None:
    """DeepSeek's first layers are dense."""
    model = skeleton("deepseek_v3", first_k_dense_replace=2, n_routed_experts=4, n_group=1, topk_group=1)
    assert find_layout(model, ZeroUnlearn(layers=[0, 1])).weight_names[1] == "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(LayoutError, match=r"model\.layers\.2\.mlp\.experts"):
        find_layout(model, ZeroUnlearn(layers=[1, 2]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mamba", r"MambaBlock\) is not one attention and one MLP .*attention, found: none.*found: mixer\.out_proj"),
        ("falcon_h1", r"writes 64 numbers, found: feed_forward\.down_proj, mamba\.out_proj.*name it in the hyperpa"),
    ],
)
def test_what_leaves_a_doubt_is_refused_with_what_was_looked_for_and_what_is_there(kind: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        find_layout(skeleton(kind), ZeroUnlearn(layers=[1]))


def test_where_the_structure_leaves_a_doubt_the_names_given_count() -> None:
    named = {"rewrite_module_tmp": "model.layers.{}.feed_forward.down_proj"}
    layout = find_layout(skeleton("falcon_h1"), ZeroUnlearn(layers=[1], **named))
    assert layout.weight_names == {1: "model.layers.1.feed_forward.down_proj.weight"}
    named = {"rewrite_module_tmp": "model.layers.{}.mlp"}
    with pytest.raises(LayoutError, match=r"rewrite_module_tmp='model\.layers\.\{\}\.mlp' is no module of Fal.*found"):
        find_layout(skeleton("falcon_h1"), ZeroUnlearn(layers=[1], **named))


def test_parts_that_are_missing_are_named() -> None:
    model = tiny("llama", 99)
    beside = torch.nn.ModuleDict({"norm": model.model.norm, "second": torch.nn.LayerNorm(32)})
    model.config.model_type = "mine"
    del model.model.norm
    with pytest.raises(LayoutError, match=r"ln_f_module: no modules beside model\.layers.*rotary_emb"):
        find_layout(model, ZeroUnlearn(layers=[1]))
    model.model.update = None
    for name, module in beside.items():
        model.model.add_module(name, module)
    with pytest.raises(LayoutError, match="ln_f_module: 2 modules beside"):
        find_layout(model, ZeroUnlearn(layers=[1]))
    assert find_layout(model, ZeroUnlearn(layers=[1], ln_f_module="model.norm")).norm is beside["norm"]
    model.model.more = torch.nn.ModuleList(model.model.layers)
    with pytest.raises(LayoutError, match=r"layer_module_tmp: .* 2 lists .*model\.layers of 4, model\.more of 4"):
        templates_of(model, None)
    model.model.layers, model.model.more = torch.nn.ModuleList(), torch.nn.ModuleList()
    with pytest.raises(LayoutError, match="no lists of modules could be its blocks"):
        templates_of(model, None)


@pytest.mark.parametrize(
    ("field", "name", "right"),
    [
        ("rewrite_module_tmp", "model.layers.{}.mlp.up_proj", "mlp.down_proj"),
        ("rewrite_module_tmp", "model.layers.{}.self_attn.o_proj", "mlp.down_proj"),
        ("layer_module_tmp", "model.layers.{}.mlp", "model.layers.{}"),
        ("ln_f_module", "model.layers.3.input_layernorm", "model.norm"),
        ("lm_head_module", "model.embed_tokens", "lm_head"),
    ],
)
def test_a_name_that_is_given_must_be_what_the_structure_says(field: str, name: str, right: str) -> None:
    model = tiny("llama", 99)
    with pytest.raises(LayoutError) as refused:
        find_layout(model, ZeroUnlearn(layers=[1], **{field: name}))
    assert str(refused.value).startswith(f"{field}={name!r} is not what the structure of LlamaForCausalLM says")
    assert right in str(refused.value)


def test_a_tied_head_may_go_by_the_embeddings_name() -> None:
    model = tiny("gpt2", 99)
    assert find_layout(model, ZeroUnlearn(layers=[1], lm_head_module="transformer.wte")).head is model.transformer.wte


def test_names_alone_need_no_layers() -> None:
    assert templates_of(tiny("mixtral", 99), SimpleNamespace(), ["layer_module_tmp", "lm_head_module"]) == {
        "layer_module_tmp": "model.layers.{}",
        "lm_head_module": "lm_head",
    }
