"""Seconds by stage, of work that a device may still be at when the call that gave it returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import torch
from torch import nn

progress = logging.getLogger("zerounlearn.progress")
"""A line a stage, with its seconds."""

_SHORTEST_TOLD = 1.0


class Clock:
    """Adds up seconds by stage; a stage ends when the model's devices have done what it gave them."""

    def __init__(self, seconds: MutableMapping[str, float], model: nn.Module) -> None:
        self.seconds = seconds
        self._devices = {parameter.device for parameter in model.parameters()}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body, whether or not it raises."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
            self._wait()
        finally:
            taken = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken
            if taken >= _SHORTEST_TOLD:
                progress.info("%s: %.1f s", stage, taken)

    def _wait(self) -> None:
        for device in self._devices:
            if device.type == "mps":
                torch.mps.synchronize()
            elif device.type != "meta":  # of a weight that is offloaded
                getattr(torch, device.type).synchronize(device)
