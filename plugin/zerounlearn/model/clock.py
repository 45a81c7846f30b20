"""Seconds by stage, of work that a device may still be at when the call that gave it returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

progress = logging.getLogger("zerounlearn.progress")
"""A line a stage, with its seconds."""


class Clock:
    """Adds up seconds by stage; a stage ends when the model's devices have done what it gave them."""

    def __init__(self, seconds: dict[str, float], model: nn.Module, *, told: float = 1.0) -> None:
        """Tells of each stage that took at least `told` seconds."""
        self.seconds, self.told = seconds, told
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
            if taken >= self.told:
                progress.info("%s: %.1f s", stage, taken)

    def _wait(self) -> None:
        for device in self._devices:
            if device.type == "mps":
                torch.mps.synchronize()
            elif device.type != "meta":  # of a weight that is offloaded
                getattr(torch, device.type).synchronize(device)
