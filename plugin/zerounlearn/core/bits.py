"""The exact difference of two weights that are nearly the same, as few bytes: that of their bit patterns, deflated."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def difference(before: Tensor, after: Tensor) -> Tensor:
    """What leads from one tensor to the other bit for bit, uint8 (bytes,), for `moved`.

    Equal elements cost next to nothing, and those that differ in their last bits a few bits each.
    """
    gap = _pattern(after) - _pattern(before)  # wraps around
    folded = (gap << 1) ^ (gap >> (8 * gap.element_size() - 1))  # small of either sign are small
    planes = folded.numpy().view(np.uint8).reshape(-1, gap.element_size()).T
    return torch.frombuffer(bytearray(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)), dtype=torch.uint8)


def moved(before: Tensor, stored: Tensor) -> Tensor:
    """The tensor that `difference` led to, on the device of the first.

    Raises:
        ValueError: the bytes are no difference of tensors of this size.
    """
    start = _pattern(before)
    size = start.element_size()
    inflate = zlib.decompressobj()
    try:
        planes = inflate.decompress(stored.cpu().numpy().tobytes(), start.numel() * size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(planes) != start.numel() * size or not inflate.eof:
        raise ValueError(f"the difference is not one of {start.numel()} numbers of {size} bytes, or cut short")
    bytes_ = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(size, -1).T)
    folded = torch.from_numpy(bytes_.reshape(-1)).view(_INTEGERS[size])
    ones = (1 << (8 * size - 1)) - 1
    gap = ((folded >> 1) & ones) ^ -(folded & 1)
    return (start + gap).view(before.dtype).reshape(before.shape).to(before.device)


def _pattern(X: Tensor) -> Tensor:
    return X.detach().cpu().contiguous().reshape(-1).view(_INTEGERS[X.element_size()])
