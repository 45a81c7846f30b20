"""Where jobs run: in this process, or on the workers of a Ray cluster. The records are the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from zerounlearn.errors import ConfigError, FrameworkError
from zerounlearn.study.cells import Job, Record, failed
from zerounlearn.study.spec import Study
from zerounlearn.study.worker import Bench

log = logging.getLogger(__name__)

_TRIES = 3
"""Workers that a job may cost before it counts as failed: one that kills its worker would kill every other, too."""


class Engine(Protocol):
    """Runs jobs and gives their records as they come."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Record]]:
        """Each job with its record, in the order in which they are done."""


class LocalEngine:
    """One job after another, in this process."""

    def __init__(self, study: Study) -> None:
        self._bench = Bench(study)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Record]]:
        """Each job with its record, in the jobs' order."""
        for job in jobs:
            yield job, self._bench.do(job)


@dataclass
class RayEngine:
    """As many jobs at a time as there are workers, each an actor with a model of its own.

    A worker that dies (out of memory, preempted, killed) is replaced, and its job is run again by another.

    Attributes:
        study: what the workers load.
        workers: how many.
        gpus: GPUs a worker, of which a fraction will do: at 0.5, two workers share one.
        cpus: CPU cores a worker; also the threads of its arithmetic.
        address: of a running cluster; None starts a local one, which ends with the engine.
    """

    study: Study
    workers: int = 2
    gpus: float = 0.0
    cpus: float = 1.0
    address: str | None = None
    _actors: list[Any] = field(default_factory=list, repr=False)
    _started: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.gpus >= 0 or not self.cpus > 0:
            raise ConfigError(
                f"workers={self.workers}, gpus={self.gpus}, cpus={self.cpus}: expected at least one worker, no "
                "negative share of GPUs, and some of a CPU"
            )

    def __enter__(self) -> RayEngine:
        ray = _ray()
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            sizes = {"num_cpus": max(1, round(self.workers * self.cpus))} if self.address is None else {}
            if self.address is None and self.gpus:
                import torch

                sizes["num_gpus"] = torch.cuda.device_count()
            ray.init(
                self.address,
                include_dashboard=None if self.address else False,
                logging_level="warning",
                log_to_driver=False,
                **sizes,
            )
            self._started = True
        have = ray.cluster_resources()
        for name, share in (("CPU", self.cpus), ("GPU", self.gpus)):
            fits = have.get(name, 0.0)
            if share * self.workers > fits + 1e-9:
                self.__exit__()
                raise ConfigError(
                    f"{self.workers} workers with {share:g} {name} each: the cluster has {fits:g}: ask for fewer "
                    "workers, or a smaller share"
                )
        self._actors = [self._actor() for _ in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        ray = _ray()
        for actor in self._actors:
            with suppress(Exception):  # it may be dead already
                ray.kill(actor)
        self._actors = []
        if self._started:
            ray.shutdown()
            self._started = False

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Record]]:
        """Each job with its record, as they are done."""
        ray = _ray()
        waiting = list(jobs)[::-1]
        tries: dict[int, int] = {}
        running: dict[Any, tuple[int, Job]] = {}  # place of the actor and its job, by the promise of its record
        idle = list(range(len(self._actors)))
        while waiting or running:
            while waiting and idle:
                place, job = idle.pop(), waiting.pop()
                tries[id(job)] = tries.get(id(job), 0) + 1
                running[self._actors[place].do.remote(job)] = (place, job)
            ready, _ = ray.wait(list(running), num_returns=1)
            place, job = running.pop(ready[0])
            try:
                record: Record = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                log.warning("worker %d was lost: %s", place, error)
                with suppress(Exception):
                    ray.kill(self._actors[place])
                self._actors[place] = self._actor()
                idle.append(place)
                if tries[id(job)] < _TRIES:
                    waiting.append(job)
                    continue
                yield job, failed(job, f"{type(error).__name__}: lost {_TRIES} workers to it, the last by: {error}")
                continue
            idle.append(place)
            yield job, record

    def _actor(self) -> Any:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        return _ray().remote(_Worker).options(**options).remote(self.study, str(Path.cwd()))


class _Worker:
    """A bench in a process of its own, in the folder that the study's relative paths are relative to."""

    def __init__(self, study: Study, folder: str) -> None:
        if Path(folder).is_dir():  # on another machine it may not be; paths must then be absolute or lie there alike
            os.chdir(folder)
        self._bench = Bench(study)

    def do(self, job: Job) -> Record:
        return self._bench.do(job)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise FrameworkError("--engine ray needs Ray: pip install 'zerounlearn[ray]'") from error
    return ray
