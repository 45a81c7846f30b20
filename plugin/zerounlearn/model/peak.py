"""How much memory a piece of work takes at its highest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

_INTERVAL = 0.02
"""Seconds between two looks at the process, where the device keeps no record of its own."""


@dataclass
class Peak:
    """`bytes` is valid when the body of `peak_memory` is through."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory used inside, the model included.

    It is what was allocated on a device that keeps a record of it (CUDA, XPU), and what was resident elsewhere.
    """
    peak = Peak()
    backend = getattr(torch, device.type)
    if hasattr(backend, "max_memory_allocated"):
        backend.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.bytes = int(backend.max_memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes, int(process.memory_info().rss))
            if done.wait(_INTERVAL):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, int(process.memory_info().rss))
