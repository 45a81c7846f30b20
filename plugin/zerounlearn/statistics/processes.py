"""Several processes that take one statistic together, none of which waits for one that has failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from torch import distributed

from zerounlearn.core.moments import SecondMoment
from zerounlearn.errors import StatisticsError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of one launch, counted from 0; `Processes()` is this one alone.

    `gather`, `share`, `add_up` and the end of `together` are met by all processes, in the same order. `device` is
    this process's own.
    """

    index: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    @contextmanager
    def launched(cls, device: str) -> Iterator[Processes]:
        """Those of `accelerate launch` or `torchrun`, in a group while the body runs; one alone without a launcher.

        Args:
            device: what the models are to run on; "cpu" makes the group talk over gloo, else accelerate picks.
        """
        state = PartialState(cpu=device.startswith(("cpu", "mps")))
        yield cls(state.process_index, state.num_processes, state.device)
        if state.num_processes > 1:
            # Until PyTorch 2.5 a group waits for its threads without letting them have Python's lock, which they need
            # to let go of the last exchange's tensors: in a barrier they have the time.
            with suppress(RuntimeError):
                distributed.barrier()
        state.destroy_process_group()  # not after a failure: others may have gone, and the end of the process does it

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends when every process has ended its own body, and raises on all of them if any body raised.

        Raises:
            StatisticsError: another process failed; its own error is raised there.
        """
        try:
            yield
        except BaseException as error:
            with suppress(StatisticsError):  # the group is gone; what went wrong here is what matters
                self.gather(f"{type(error).__name__}: {error}")
            raise
        for index, failure in enumerate(self.gather(None)):
            if failure is not None:
                raise StatisticsError(
                    f"process {index} of {self.count} failed ({failure}): mend that and launch again; what the "
                    "others had done is kept"
                )

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order.

        Raises:
            StatisticsError: the connection is lost.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _lost_connection_named():
            distributed.all_gather_object(values, value)
        return values

    def share(self, value: T | None) -> T:
        """The main process's value, on all.

        Raises:
            StatisticsError: the connection is lost.
        """
        return cast(T, self.gather(value)[0])

    def add_up(self, moment: SecondMoment) -> SecondMoment:
        """The moment of the rows of all processes, on all; uses up `moment`.

        Raises:
            StatisticsError: the connection is lost.
        """
        if self.count == 1:
            return moment
        device = torch.device("cpu") if distributed.get_backend() in ("gloo", "mpi") else self.device
        total, count = moment.total.to(device), torch.tensor(moment.count, device=device)
        with _lost_connection_named():
            distributed.all_reduce(total)
            distributed.all_reduce(count)
        return SecondMoment(int(count), total)


@contextmanager
def _lost_connection_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise StatisticsError(
            f"another process is gone ({error}): see what it wrote last, and launch again; what was done is kept"
        ) from error
