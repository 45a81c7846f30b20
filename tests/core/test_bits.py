"""Differences of bit patterns: exact, small where there is little to tell, and refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.core.bits import difference, moved

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), near=st.booleans())
def test_it_leads_from_one_to_the_other(dtype: torch.dtype, seed: int, near: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    before = torch.randn(7, 11, generator=draw).to(dtype)
    after = torch.nextafter(before, -before) if near and dtype.itemsize > 2 else -before.flip(0) * 3
    after[0, :4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")], dtype=dtype)
    found = moved(before, difference(before, after))
    assert found.shape == after.shape and found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), after.contiguous().view(torch.uint8))


def test_what_is_nearly_the_same_is_small() -> None:
    W = torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    assert len(difference(W, W)) < 0.002 * W.numel() * 4
    last_bits = torch.where(torch.rand(W.shape, generator=torch.Generator().manual_seed(1)) < 0.3, W.nextafter(-W), W)
    assert 8 * len(difference(last_bits, W)) < 2 * W.numel()


@pytest.mark.parametrize("cut", [lambda x: x[:-3], lambda x: x[3:], lambda x: x[:0]])
def test_what_is_no_difference_of_this_tensor_is_refused(cut) -> None:
    W = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    stored = difference(W, -W)
    with pytest.raises(ValueError, match="not one of 100 numbers of 4 bytes|incorrect header|invalid"):
        moved(W, cut(stored))
    with pytest.raises(ValueError, match="not one of 80 numbers"):
        moved(W[:, :4], stored)
    with pytest.raises(ValueError, match="not one of 200 numbers"):
        moved(torch.cat([W, W]), stored)
