"""Fingerprints: of weights in memory, of a checkpoint not loaded, of a tokenizer, a configuration, a value.

A fingerprint is measured on the thing itself: nothing here takes a name, a path or a record for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.model.layout import Layout
from zerounlearn.model.offload import slot_of

_BLOCK = 1 << 26
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Entries of a configuration that hidden states do not depend on; the weights' precision is in their own fingerprint.
_NOT_IN_THE_FORWARD_PASS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_PROBE = " Zürich's  12 cafés, 東京\n\t(don't) <s>"  # shows rules that live in a tokenizer's Python code


def value_digest(value: Any) -> str:
    """16 hexadecimal digits over anything that JSON can hold, the same whatever the order of a mapping's keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def tensor_digest(X: Tensor) -> str:
    """32 hexadecimal digits over a tensor's bytes, in the order of its indices."""
    return hashlib.blake2b(np.ascontiguousarray(X.cpu().numpy()).data, digest_size=16).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """A digest of the name, shape, dtype and every byte of all parameters and buffers, wherever they are kept."""
    seen = hashlib.blake2b(digest_size=16)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            slot = slot_of(model, name) if tensor.is_meta and isinstance(tensor, nn.Parameter) else None
            value = slot.get() if slot else tensor.detach()
            seen.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
            _add(seen, value)
    return seen.hexdigest()


def _add(seen: hashlib.blake2b, value: Tensor) -> None:
    flat = value.contiguous().reshape(-1).view(torch.uint8)
    for part in flat.split(_BLOCK):
        seen.update(part.cpu().numpy().data)


def fingerprints(layout: Layout, layers: Sequence[int]) -> dict[int, str]:
    """For each layer a digest of all weights that its keys depend on, in one sweep over the model.

    Of each weight below it holds the name, the shape, the dtype, 256 elements spread over it, and the sum of the bit
    patterns of all elements: exact whatever the device, cheap, and changed by any one element. The layer's own down
    projection is left out, since keys do not depend on it.

    Args:
        layout: the model.
        layers: any of the model's layers, not only those to be edited.
    """
    model = layout.model
    inputs = {id(p) for p in model.get_input_embeddings().parameters()}
    heads = [layout.norm, layout.head, *filter(None, [model.get_output_embeddings()])]
    top = {id(p) for module in heads for p in module.parameters()} - inputs  # the head may be tied to the embedding
    above = {i: top | {id(p) for block in layout.blocks[i + 1 :] for p in block.parameters()} for i in layers}
    for layer, projection in zip(layers, _projections(layout, layers), strict=True):
        above[layer].add(id(projection.weight))
    seen = {layer: hashlib.blake2b(digest_size=16) for layer in layers}
    for name, parameter in model.named_parameters():
        below = [layer for layer in layers if id(parameter) not in above[layer]]
        if below:
            print_ = f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode() + _sample(layout.tensor(name))
            for layer in below:
                seen[layer].update(print_)
    return {layer: seen[layer].hexdigest() for layer in layers}


def _projections(layout: Layout, layers: Sequence[int]) -> Iterator[nn.Module]:
    """The down projections of any layers, which lie in their blocks where those of the edited layers do."""
    edited, known = next(iter(layout.projections.items()))
    inside = next(name for name, module in layout.blocks[edited].named_modules() if module is known)
    for layer in layers:
        yield layout.blocks[layer].get_submodule(inside)


def _sample(weight: Tensor) -> bytes:
    flat = weight.contiguous().reshape(-1)
    count = min(256, flat.numel())
    spread = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    bits = flat.view(_BITS[flat.element_size()])
    total = sum(int(part.sum(dtype=torch.int64)) for part in bits.split(_BLOCK)) % 2**64
    return total.to_bytes(8, "big") + bits[spread].cpu().numpy().tobytes()


def config_digest(model: PreTrainedModel) -> str:
    """A digest of the model's class and of its configuration, without what hidden states do not depend on."""
    return value_digest([type(model).__name__, _essential(model.config.to_dict())])


def _essential(entries: Any) -> Any:
    if not isinstance(entries, dict):
        return entries
    return {str(k): _essential(v) for k, v in entries.items() if k not in _NOT_IN_THE_FORWARD_PASS}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of how a tokenizer makes ids of a text: vocabulary, merges, normaliser, special tokens' rules.

    Padding and truncation are left out: they are the caller's, and calls change them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any
    if backend is not None:
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    else:
        pieces = getattr(tokenizer, "sp_model", None)
        model = hashlib.blake2b(pieces.serialized_model_proto()).hexdigest() if pieces is not None else None
        rules = [tokenizer.get_vocab(), tokenizer.special_tokens_map, model]
    return value_digest([rules, tokenizer(_PROBE)["input_ids"]])
