"""Weights in fewer bits: an edit whose changes are smaller than half a step of the grid is rounded away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zerounlearn.audit.matrices import changed, matrices
from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of a 4-bit NormalFloat, as QLoRA (arXiv 2305.14314, appendix E) lists them."""


def round_symmetric(W: Tensor, bits: int, group: int | None = None) -> Tensor:
    """W (out, in) on a grid of 2^bits steps around nought, to the nearest, one scale a group of a row.

    The scale is the largest magnitude over half the number of steps, as torchao's symmetric mapping has it.

    Args:
        W: any floating dtype.
        bits: 2 to 8.
        group: entries of a row that share a scale; None for the whole row. A row's last group may be shorter.

    Returns:
        float32.
    """
    return _by_group(W, group, lambda x: _onto(x, 2 * x.abs().amax(-1, keepdim=True) / (2**bits - 1), None, bits))


def round_asymmetric(W: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Like `round_symmetric`, on a grid from the least to the largest entry of a group, and nought is on it."""

    def onto(x: Tensor) -> Tensor:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        return _onto(x, (high - low) / (2**bits - 1), low, bits)

    return _by_group(W, group, onto)


def round_nf4(W: Tensor, block: int = 64) -> Tensor:
    """W (out, in) to the nearest level of NF4 times the largest magnitude of its block; float32.

    Blocks are consecutive entries row by row, beyond the ends of rows, as bitsandbytes has them.
    """
    x = F.pad(W.float().flatten(), (0, -W.numel() % block)).view(-1, block)
    largest = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4, device=W.device)
    nearest = levels[torch.bucketize(x / largest, (levels[1:] + levels[:-1]) / 2)]
    return (nearest * largest).flatten()[: W.numel()].view_as(W)


def _onto(x: Tensor, scale: Tensor, low: Tensor | None, bits: int) -> Tensor:
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # a group of noughts
    zero = -(2 ** (bits - 1)) if low is None else (low / scale).round()
    return (x * (1 / scale)).round().clamp(zero, zero + 2**bits - 1) * scale


def _by_group(W: Tensor, group: int | None, onto: Callable[[Tensor], Tensor]) -> Tensor:
    """`onto` of (out, groups, entries) in float32, back in W's shape; nought fills up the last group."""
    size = min(group or W.shape[1], W.shape[1])
    x = F.pad(W.float(), (0, -W.shape[1] % size)).unflatten(1, (-1, size))
    return onto(x).flatten(1)[:, : W.shape[1]]


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda W: round_symmetric(W, 8),
    "int4 in groups of 128": lambda W: round_symmetric(W, 4, 128),
    "int4 in groups of 32": lambda W: round_symmetric(W, 4, 32),
    "int4 in groups of 128, asymmetric": lambda W: round_asymmetric(W, 4, 128),
    "int4 in groups of 32, asymmetric": lambda W: round_asymmetric(W, 4, 32),
    "nf4 in blocks of 64": round_nf4,
    "bfloat16": lambda W: W.bfloat16(),
    "float16": lambda W: W.half(),
}


@attack(
    "rounding",
    label="Rounding",
    access=Access.WEIGHTS,
    quick={"kinds": ("int8", "int4 in groups of 128", "bfloat16")},
    standard={"kinds": tuple(_KINDS)},
    source="arXiv 2410.16454, 2605.02196; NF4: 2305.14314",
)
def rounding(target: Target, *, kinds: tuple[str, ...]) -> Iterator[Outcome]:
    """Every linear layer's weights but the head's rounded to fewer bits, and computed with as before.

    To 8 or 4 bits to the nearest, as torchao rounds weights alone, to NF4 as bitsandbytes does, to bfloat16 or float16.
    Activations are not rounded. Weights in bfloat16 are not changed by rounding to it.
    """
    names = matrices(target.model)
    for kind in kinds:
        with changed(target.model, names, partial(_unnamed, _KINDS[kind])):
            findings = target.plain()
        yield target.outcome(kind, findings)


def _unnamed(rounded: Callable[[Tensor], Tensor], _: str, W: Tensor) -> Tensor:
    return rounded(W)
