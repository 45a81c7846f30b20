"""Devices by the words that configurations have for them, and their generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def resolved(device: Any) -> Any:
    """'auto' as a device of this machine, by the name that EasyEdit reads; any other word as it is."""
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Run the body with torch's generators, of the CPU and of `device`, seeded; they are as before afterwards.

    That of MPS is neither seeded nor restored.
    """
    accelerator = device.type not in ("cpu", "mps")  # fork_rng cannot ask MPS for the state of a device
    with torch.random.fork_rng([device] if accelerator else [], device_type=device.type):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach accelerators that are not forked
        if accelerator:
            module = getattr(torch, device.type)
            with module.device(device):
                module.manual_seed(seed)
        yield
