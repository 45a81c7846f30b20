"""Thin factors: no wider than their product, added with the same bits in any order of blocks and threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.core import factors
from zerounlearn.core.factors import added, for_weights_of, moved_by, scaled_to_half, thinned

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), rank=st.integers(1, 6), copies=st.integers(1, 3))
def test_thinned_they_have_the_same_product_and_its_rank(dtype: torch.dtype, seed: int, rank: int, copies: int) -> None:
    """Of columns that depend on each other; the product is off by less than the weight's own rounding."""
    left, right = drawn(seed, 30, rank), drawn(seed + 1, rank, 40)
    mix = torch.linalg.qr(drawn(seed + 2, rank * copies, rank * copies)).Q
    wide = torch.cat([left] * copies, dim=1) @ mix, mix.mT @ torch.cat([right] * copies)
    thin = thinned(*wide, dtype)
    assert thin is not None
    first, second = thin
    assert first.shape == (30, rank) and second.shape == (rank, 40)
    off = torch.linalg.norm(first.double() @ second.double() - copies * left @ right)
    assert off <= max(torch.finfo(dtype).eps, 1e-12) * torch.linalg.norm(copies * left @ right)


def test_what_is_not_thinner_than_its_product_is_left_alone() -> None:
    assert thinned(drawn(0, 10, 10), drawn(1, 10, 20), torch.float32) is None
    assert thinned(drawn(0, 10, 7), drawn(1, 7, 20), torch.float32) is None  # 7 · 30 numbers for 200
    assert thinned(drawn(0, 10, 6), drawn(1, 6, 20), torch.float32) is not None
    zero = thinned(torch.zeros(10, 2), torch.zeros(2, 20), torch.float32)
    assert zero is not None and zero[0].shape == (10, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_does_not_depend_on_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the sum one column after the other; W itself is left alone."""
    W, left, right = drawn(0, 33, 65).to(dtype), drawn(1, 33, 9).float(), drawn(2, 9, 65).float()
    kept = W.clone()
    whole = added(W, left, right)
    expected = W.double()
    for j in range(9):
        expected = expected + left[:, j].double()[:, None] * right[j].double()
    assert whole.dtype == dtype and torch.equal(whole, expected.to(dtype)) and torch.equal(W, kept)
    monkeypatch.setattr(factors, "_BLOCK", {"cpu": 3 * 65})
    assert torch.equal(added(W, left, right), whole)
    assert torch.equal(added(W.mT.contiguous(), right.mT, left.mT).mT, whole), "as GPT-2 stores it"
    assert torch.equal(moved_by(W, torch.zeros(33, 65)), W)


@given(seed=st.integers(0, 2**32), scale=st.integers(-60, 60))
def test_in_half_and_back_nothing_more_is_lost(seed: int, scale: int) -> None:
    X = drawn(seed, 4, 50) * 2.0**scale * torch.tensor([1.0, 1e-3, 1e5, 0.0], dtype=torch.float64)[:, None]
    once = for_weights_of(torch.bfloat16, X)
    assert once.dtype == torch.float32
    assert ((once.double() - X).abs() <= 2.0**-11 * X.abs() + 2.0**-39 * X.abs().amax(dim=1, keepdim=True)).all()
    assert torch.equal(for_weights_of(torch.bfloat16, once), once)
    half, exponents = scaled_to_half(once)
    assert torch.isfinite(half).all()
    assert torch.equal(torch.ldexp(half.float(), exponents[:, None].int()), once)
    assert torch.equal(for_weights_of(torch.float16, X), X.float())
