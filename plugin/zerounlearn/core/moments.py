"""Raw second moments as values that can be added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class SecondMoment:
    """The sum of k kᵀ over `count` rows; uncentred, as MEMIT and the paper take it.

    `total` holds the sum, not the mean, so that moments of disjoint texts add exactly: batching, resuming
    and splitting the corpus over processes need no further code.
    """

    count: int
    total: Float[Tensor, "m m"]

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype = torch.float64) -> SecondMoment:
        """The moment of no rows, on the CPU."""
        return cls(0, torch.zeros(size, size, dtype=dtype))

    def add(self, rows: Float[Tensor, "n m"], *, precision: torch.dtype = torch.float32) -> SecondMoment:
        """Add rows in place and return self.

        Products are formed in `precision` on the device of the rows; sums are kept in the dtype of
        `total`, so that float32 products of a batch never meet a float32 running sum.
        """
        X = rows.to(precision)
        self.total += (X.mT @ X).to(device=self.total.device, dtype=self.total.dtype)
        self.count += rows.shape[0]
        return self

    def __add__(self, other: SecondMoment) -> SecondMoment:
        """The moment of the rows of both."""
        return SecondMoment(self.count + other.count, self.total + other.total)

    def mean(self) -> Float[Tensor, "m m"]:
        """C = E[k kᵀ], in the dtype of `total`."""
        if self.count == 0:
            raise ValueError("the second moment of no rows has no mean")
        return self.total / self.count
