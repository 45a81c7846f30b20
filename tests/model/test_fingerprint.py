"""Fingerprints of weights, and peaks of memory."""

from __future__ import annotations

import copy
import mmap
import time
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload

from tests.helpers import tiny
from tests.study.small_study import checkpoint
from zerounlearn.errors import ConfigError
from zerounlearn.model.fingerprint import weights_hash
from zerounlearn.model.loading import checkpoint_digest
from zerounlearn.model.peak import peak_memory

MIB = 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_bit_changes_the_hash(dtype: torch.dtype) -> None:
    model = tiny("llama", 64, dtype=dtype)
    before = weights_hash(model)
    assert weights_hash(copy.deepcopy(model)) == before
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight").data
    bits = weight.view(torch.int32 if dtype == torch.float32 else torch.int16)
    bits[5, 7] ^= 1
    assert weights_hash(model) != before
    bits[5, 7] ^= 1
    assert weights_hash(model) == before
    weight[0, 0] = 0.0
    zero = weights_hash(model)
    weight[0, 0] = -0.0
    assert weights_hash(model) != zero, "bit for bit, not number for number"


def test_buffers_names_and_precision_count() -> None:
    model = tiny("llama", 64, dtype=torch.float32)
    before = weights_hash(model)
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    with_buffer = weights_hash(model)
    assert with_buffer != before
    model.mask[1] = False
    assert weights_hash(model) not in (before, with_buffer)
    del model.mask
    assert weights_hash(model) == before
    assert weights_hash(model.double()) != before


def test_offloaded_weights_are_read_where_they_are() -> None:
    model = tiny("llama", 64, dtype=torch.float32)
    before = weights_hash(model)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert offloaded.get_parameter("model.layers.2.mlp.down_proj.weight").is_meta
    assert weights_hash(offloaded) == before


def test_a_checkpoints_digest_is_that_of_its_files(tmp_path: Path, small_tokenizer) -> None:
    folder = checkpoint(tmp_path / "llama", small_tokenizer)
    before = checkpoint_digest(str(folder))
    (folder / "notes.md").write_text("not of the model")
    assert checkpoint_digest(str(folder)) == before
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint_digest(str(folder)) != before
    with pytest.raises(ConfigError, match="there is no such folder"):
        checkpoint_digest(str(tmp_path / "gone" / "away"))


def test_the_peak_counts_what_is_gone_again() -> None:
    cpu = torch.device("cpu")
    with peak_memory(cpu) as little:
        torch.ones(8)
    # Not a tensor, which might be given memory that the process has already.
    with peak_memory(cpu) as much, mmap.mmap(-1, 96 * MIB) as block:
        block.write(b"x" * (96 * MIB))
        time.sleep(0.2)  # for the watcher to have looked
    assert much.bytes - little.bytes > 80 * MIB
    with pytest.raises(RuntimeError, match="inside"), peak_memory(cpu) as failed:
        raise RuntimeError("inside")
    assert failed.bytes > 0
