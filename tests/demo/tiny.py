"""A GGUF file of a small random model, written with the names that the package gguf itself gives its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

gguf = pytest.importorskip("gguf")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", *"Tehcapitlof12", "Th", "The", "▁c", "▁ca"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BPE = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Th"]
SENTENCEPIECE = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "  ", *BYTES, *PIECES]
TOKENS = {"llama": BPE, "qwen2": [*BPE, "[PAD260]", "[PAD261]"], "gemma3": SENTENCEPIECE}


def random_model(architecture: str, *, tied: bool = True) -> PreTrainedModel:
    """Three layers; gemma's see a window of 8 tokens."""
    common = SIZES | {"vocab_size": len(TOKENS[architecture]), "tie_word_embeddings": tied}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    local = {"rope_type": "default", "rope_theta": 10_000.0}
    gemma = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
    config, kind = {
        "llama": lambda: (LlamaConfig(**common, rope_parameters=rope), LlamaForCausalLM),
        "qwen2": lambda: (Qwen2Config(**common, rope_parameters=rope), Qwen2ForCausalLM),
        "gemma3": lambda: (
            Gemma3TextConfig(**common, **gemma, rope_parameters={"full_attention": rope, "sliding_attention": local}),
            Gemma3ForCausalLM,
        ),
    }[architecture]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # In steps of 1/256 a norm's weight comes back to the last bit from the 1 + w that is stored.
                parameter.normal_(std=0.3)
                if "norm" in name:
                    parameter.copy_((parameter * 256).round() / 256)
    return model


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's row order from transformers': row j and row j + half of a head become neighbours."""
    size = rows.shape[0] // heads
    order = [h * size + j + half for h in range(heads) for j in range(size // 2) for half in (0, size // 2)]
    return rows[order]


def write_gguf(path: Path, model: PreTrainedModel, architecture: str) -> Path:
    """Write `model` to `path` as llama.cpp's own converter does."""
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    _write_vocabulary(writer, architecture)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            stem, _, suffix = name.rpartition(".")
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", _as_stored(name, value, config, architecture))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_stored(name: str, value: torch.Tensor, config: Any, architecture: str) -> np.ndarray:
    stored = value.numpy()
    if architecture == "llama" and "q_proj" in name:
        return interleave(stored, config.num_attention_heads)
    if architecture == "llama" and "k_proj" in name:
        return interleave(stored, config.num_key_value_heads)
    return stored + 1 if architecture == "gemma3" and "norm" in name else stored


def _write_vocabulary(writer: Any, architecture: str) -> None:
    tokens = TOKENS[architecture]
    writer.add_token_list(tokens)
    if architecture == "gemma3":
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        kinds = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 3, "\n\n": 4, "  ": 4} | dict.fromkeys(BYTES, 6)
        writer.add_token_types([kinds.get(token, 1) for token in tokens])
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(True)
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if architecture == "llama" else "qwen2")
    kinds = dict.fromkeys(SPECIAL, 3)
    writer.add_token_types([5 if token.startswith("[PAD") else kinds.get(token, 1) for token in tokens])
    writer.add_token_merges(["T h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if architecture == "llama":
        writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
