"""Devices by the words that configurations have for them."""

from __future__ import annotations

from typing import Any

import torch


def resolved(device: Any) -> Any:
    """'auto' as a device of this machine, by the name that EasyEdit reads; any other word as it is."""
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"
