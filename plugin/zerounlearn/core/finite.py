"""Refusing numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zerounlearn.errors import IllPosedError

_BLOCK = 256

RELOAD = "reload the checkpoint, or take the statistics again"
"""What to do about a weight or a statistic."""


def is_finite(X: Tensor) -> bool:
    """Whether no entry is NaN or Inf, looked at in blocks of rows: nothing of the size of X is made."""
    return all(bool(torch.isfinite(block).all()) for block in X.split(_BLOCK))


def check_finite(where: str, named: Mapping[str, Tensor | None], remedy: str = "") -> None:
    """Refuse NaN and Inf in any of the values that are there.

    Raises:
        IllPosedError: says where, which, and what may be done about it.
    """
    for name, value in named.items():
        if value is not None and not is_finite(value):
            raise IllPosedError(f"{where}: NaN or Inf in the {name}" + (f"; {remedy}" if remedy else ""))
