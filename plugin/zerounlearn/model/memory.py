"""How much memory a device has left, and how much work at a time suits it."""

from __future__ import annotations

import psutil
import torch

# Tokens that go through a model at a time: enough to saturate a device, on a CPU few enough for its caches. Measured
# on two cores: statistics with 4096 take 1.45 times as long as with 512, with 1024 1.03 times.
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 16384
# Logits at a time. Blocks of 32 MiB or more the C library gives back to the system when they are freed, and to have
# them mapped anew costs more than what is done with them: the softmax of 300 rows of 49,152 takes 18 ms, of 150 2.5 ms.
_CPU_LOGITS, _DEVICE_LOGITS = 7_800_000, 2**27


def good_tokens(device: torch.device) -> int:
    """How many tokens should go through a model at a time."""
    return _CPU_TOKENS if device.type == "cpu" else _DEVICE_TOKENS


def good_positions(device: torch.device, vocabulary: int) -> int:
    """At how many positions logits should be made at a time."""
    return max(1, (_CPU_LOGITS if device.type == "cpu" else _DEVICE_LOGITS) // vocabulary)


def most_positions(device: torch.device, vocabulary: int) -> int:
    """At how many positions a model may be asked for logits in one pass: they are half a gigabyte at most, or two."""
    return max(1, (2**27 if device.type == "cpu" else 2**29) // vocabulary)


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors on `device` may take: what the system has free, and what torch holds but does not use.

    Memory that several processes share is reported whole to each of them.
    """
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    backend = getattr(torch, device.type)
    free, _ = backend.mem_get_info(device)
    return int(free + backend.memory_reserved(device) - backend.memory_allocated(device))
