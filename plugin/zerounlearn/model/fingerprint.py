"""Fingerprints: of a model's weights in memory, and of a checkpoint that has not been loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from zerounlearn.errors import ConfigError
from zerounlearn.model.offload import slot_of

_BLOCK = 1 << 26
_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")


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


def read_config(name: str) -> PretrainedConfig:
    """A model's configuration, without its weights.

    Raises:
        ConfigError: there is none.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.name={name!r}: no configuration can be read there: {error}") from error
    return config


def checkpoint_digest(name: str) -> str:
    """A digest of a checkpoint: of a folder's files, every byte; of a model on the hub, its commit.

    Raises:
        ConfigError: there is no checkpoint.
    """
    folder = Path(name)
    config = read_config(name)
    seen = hashlib.blake2b(digest_size=16)
    if not folder.is_dir():
        seen.update(f"{name}@{getattr(config, '_commit_hash', None)}".encode())
        return seen.hexdigest()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES):
        seen.update(f"{file.name} {file.stat().st_size};".encode())
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                seen.update(block)
    return seen.hexdigest()
