"""Seconds and memory by stage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import psutil
import torch

from zerounlearn.model.peak import peak_memory

Run = dict[str, Any]


class Stopwatch:
    """Seconds and highest resident memory by stage, over repetitions; memory is less what the process began with."""

    def __init__(self) -> None:
        self.start = psutil.Process().memory_info().rss
        self.seconds: dict[str, list[float]] = {}
        self.peak: dict[str, int] = {}
        self.now: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with peak_memory(torch.device("cpu")) as peak:
            begin = time.perf_counter()
            yield
            took = time.perf_counter() - begin
        self.add(stage, took)
        self.peak[stage] = max(self.peak.get(stage, 0), peak.bytes - self.start)

    def add(self, stage: str, seconds: float) -> None:
        self.now[stage] = self.now.get(stage, 0.0) + seconds

    def next(self) -> None:
        """End a repetition."""
        for stage, seconds in self.now.items():
            self.seconds.setdefault(stage, []).append(seconds)
        self.now = {}

    def runs(
        self,
        implementation: str,
        n: int | None,
        *,
        measured_n: int | None = None,
        factors: Mapping[str, float] = MappingProxyType({}),
        **more: Any,
    ) -> list[Run]:
        """One entry a stage; with `measured_n` seconds are scaled up from so many requests, by n or by `factors`."""
        whole = 1.0 if measured_n is None or n is None else n / measured_n
        scaled = {} if whole == 1.0 else {"measured_n": measured_n}
        return [
            {
                "implementation": implementation,
                "n": n,
                "stage": stage,
                "seconds": statistics.median(each) * factors.get(stage, whole),
                "repetitions": len(each),
                "peak_bytes": self.peak.get(stage),
            }
            | scaled
            | more
            for stage, each in self.seconds.items()
        ]
