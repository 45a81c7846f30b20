"""Raw second moments as values that can be added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import is_finite

# Matrix units cut what they add to a sum off instead of rounding it, so that its error grows with the number of rows:
# 16,384 rows at a time were 3e-5 (bfloat16) and 5e-5 (float16) off √(Cᵢᵢ Cⱼⱼ) on an H200.
_ROWS = 1024


@dataclass
class SecondMoment:
    """The sum of k kᵀ over `count` rows; uncentred, as MEMIT and the paper take it.

    `total` holds the sum, not the mean, so that moments of disjoint texts add exactly: batching, resuming
    and splitting the corpus over processes need no further code.
    """

    count: int
    total: Float[Tensor, "m m"]

    @classmethod
    def zeros(cls, size: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> SecondMoment:
        """The moment of no rows."""
        return cls(0, torch.zeros(size, size, dtype=dtype, device=device))

    def add(self, rows: Float[Tensor, "n m"], *, precision: torch.dtype = torch.float32) -> SecondMoment:
        """Add rows in place and return self.

        Products are formed in `precision` on the device of the rows; sums are kept in the dtype of
        `total`, so that float32 products of a batch never meet a float32 running sum. Half-precision rows are
        multiplied as they are where a device can add their products, which are exact in float32, up in float32.
        """
        if precision == torch.float32 and _widens(rows.device.type, rows.dtype):
            for block in rows.split(_ROWS):
                self.total += torch.mm(block.mT, block, out_dtype=precision).to(self.total.device)
        else:
            X = rows.to(precision)
            self.total += (X.mT @ X).to(self.total.device)
        self.count += rows.shape[0]
        return self

    def __iadd__(self, other: SecondMoment) -> SecondMoment:
        """Take in the rows of another, in place: no third matrix of their size is made."""
        self.total += other.total
        self.count += other.count
        return self

    def clear(self) -> SecondMoment:
        """Forget all rows, in place, and return self."""
        self.total.zero_()
        self.count = 0
        return self

    def is_finite(self) -> bool:
        """Whether no entry is NaN or Inf."""
        return is_finite(self.total)

    def mean(self) -> Float[Tensor, "m m"]:
        """C = E[k kᵀ], in the dtype of `total`."""
        if self.count == 0:
            raise ValueError("the second moment of no rows has no mean")
        return self.total / self.count


@cache
def _widens(device: str, dtype: torch.dtype) -> bool:
    """Whether products of half-precision matrices can be had in float32, as CUDA's can since PyTorch 2.8."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    X = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        return bool((torch.mm(X.mT, X, out_dtype=torch.float32) == 16).all())
    except (TypeError, RuntimeError):
        return False
