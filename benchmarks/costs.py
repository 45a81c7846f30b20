"""What the arithmetic costs: floating-point operations of each stage from shapes, and the machine's own rate.

A product of (a, b) by (b, c) counts 2abc. Norms, activations and softmaxes are left out: they are what keeps a stage
below the rate of matrix products. `docs/scaling.md` derives the formulas.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """A decoder: hidden size d, intermediate size m, blocks, heads, key-value heads, head size, vocabulary."""

    d: int
    m: int
    blocks: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @classmethod
    def of(cls, config) -> Shape:
        """From a Llama-like configuration."""
        heads = config.num_attention_heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
        )

    @property
    def block(self) -> float:
        """One token through one block's matrices: queries and outputs, keys and values, the gated MLP's three."""
        return 2.0 * self.d * (2 * self.heads * self.head + 2 * self.kv_heads * self.head + 3 * self.m)

    def attention(self, keys: float) -> float:
        """One token's scores and mixtures over `keys` positions, in one block."""
        return 4.0 * self.heads * self.head * keys

    @property
    def project(self) -> float:
        """One hidden state to the vocabulary."""
        return 2.0 * self.d * self.vocabulary


@dataclass(frozen=True)
class Replayed:
    """A row of the optimisation: tokens from the subject on and in all, reads, blocks above, passes of each kind."""

    suffix: int
    length: int
    reads: int
    blocks: int
    forward: int
    backward: int


def optimisation(shape: Shape, rows: Iterable[Replayed]) -> float:
    """z* and V_u: each step's suffix through the blocks above and its reads to the vocabulary, and back.

    Going back costs as much as going forward: gradients of hidden states alone are needed, none of weights.
    """
    return sum(
        (r.forward + r.backward)
        * (r.suffix * r.blocks * (shape.block + shape.attention(r.length)) + r.reads * shape.project)
        for r in rows
    )


def recording(shape: Shape, lengths: Iterable[int]) -> float:
    """The one whole forward pass that the optimisation replays from."""
    return sum(n * shape.blocks * (shape.block + shape.attention(n / 2)) for n in lengths)


def statistics(shape: Shape, lengths: Iterable[int], layers: Sequence[int]) -> float:
    """Every text up to the last edited layer, and its keys' second moment at each."""
    return sum(
        n * ((max(layers) + 1) * (shape.block + shape.attention(n / 2)) + len(layers) * 2.0 * shape.m**2)
        for n in lengths
    )


def keys(shape: Shape, lengths: Sequence[int], layers: Sequence[int]) -> float:
    """Every context once up to the last edited layer, the edited layers twice more: for keys, and to move on."""
    passes = max(layers) + 1 + 2 * len(layers)
    return sum(n * passes * shape.block for n in lengths)


def solve(shape: Shape, n: int, rank: int) -> float:
    """One layer, B₀'s factor at hand: M and G are n x d x m, the triangular solves n d², the update (n + r) d m."""
    return 2.0 * (2 * n + rank) * shape.d * shape.m + 2.0 * n * shape.d**2 + 2.0 * (n + rank) * shape.d * shape.m


def factor(shape: Shape) -> float:
    """B₀ = W (λw C + λr I) Wᵀ and its Cholesky factor."""
    return 2.0 * shape.d * shape.m**2 + 4.0 * shape.d**2 * shape.m + shape.d**3 / 3


def matmul_rate(seconds: float = 2.0) -> float:
    """FLOP/s of float32 matrix products on this machine: the best of 2048³ and of shapes that replays meet."""
    best = 0.0
    for a, b, c in ((2048, 2048, 2048), (1024, 576, 1536), (1024, 1536, 576)):
        X, Y = torch.randn(a, b), torch.randn(c, b)
        X @ Y.mT
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(4):
                X @ Y.mT
            best = max(best, 4 * 2.0 * a * b * c / (time.perf_counter() - start))
    return best
