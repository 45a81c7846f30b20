"""How much memory a device has left."""

from __future__ import annotations

import psutil
import torch


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
