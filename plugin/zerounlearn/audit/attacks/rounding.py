"""Weights in fewer bits: an edit whose changes are smaller than half a step of the grid is rounded away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zerounlearn.audit.matrices import changed, matrices
from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target

_SOURCE = "arXiv 2410.16454, 2605.02196"


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


def _onto(x: Tensor, scale: Tensor, low: Tensor | None, bits: int) -> Tensor:
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # a group of noughts
    zero = -(2 ** (bits - 1)) if low is None else (low / scale).round()
    return (x / scale).round().clamp(zero, zero + 2**bits - 1) * scale


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
    "bfloat16": lambda W: W.bfloat16(),
    "float16": lambda W: W.half(),
}


@attack(
    "rounding",
    label="Rounding",
    access=Access.WEIGHTS,
    quick={"kinds": ("int8", "int4 in groups of 128", "bfloat16")},
    standard={"kinds": tuple(_KINDS)},
    source=_SOURCE,
)
def rounding(target: Target, *, kinds: tuple[str, ...]) -> Iterator[Outcome]:
    """Every linear layer's weights but the head's rounded to 8 or 4 bits, bfloat16 or float16, and taken back.

    What is computed with stays in the model's own dtype. Weights in bfloat16 are not changed by rounding to it.
    """
    yield from _each(target, {kind: _KINDS[kind] for kind in kinds})


@attack(
    "nf4",
    label="Rounding by bitsandbytes",
    access=Access.WEIGHTS,
    standard={"kinds": ("nf4",)},
    thorough={"kinds": ("nf4", "fp4")},
    needs=["bitsandbytes"],
    source=f"{_SOURCE}; NF4: 2305.14314",
)
def nf4(target: Target, *, kinds: tuple[str, ...]) -> Iterator[Outcome]:
    """What `load_in_4bit` of transformers makes of the weights: 4-bit floats in blocks of 64, by bitsandbytes."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def rounded(kind: str, W: Tensor) -> Tensor:
        value: Tensor = dequantize_4bit(*quantize_4bit(W.contiguous(), blocksize=64, quant_type=kind))
        return value

    yield from _each(target, {kind: partial(rounded, kind) for kind in kinds})


def _each(target: Target, kinds: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[Outcome]:
    names = matrices(target.model)
    for kind, rounded in kinds.items():
        with changed(target.model, names, partial(_unnamed, rounded)):
            findings = target.plain()
        yield target.outcome(kind, findings)


def _unnamed(rounded: Callable[[Tensor], Tensor], _: str, W: Tensor) -> Tensor:
    return rounded(W)
