"""RECT and PRUNE by what they promise: which entries stay, which singular values move, and what stays as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from zerounlearn.core.restraint import damped, largest_relative

W_BY_HAND = torch.tensor([[1.0, -10.0, 2.0, 0.0, 5.0]], dtype=torch.float64)
D_BY_HAND = torch.tensor([[0.3, 1.0, -1.0, 0.001, 0.0]], dtype=torch.float64)


@st.composite
def pairs(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a change, larger or smaller than it, of any orientation."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    d, m = draw(st.sampled_from([(5, 8), (8, 5), (6, 6)]))
    W, D = (torch.randn(d, m, generator=generator, dtype=torch.float64) for _ in range(2))
    return W, D * draw(st.sampled_from([1e-3, 0.5, 3.0, 100.0]))


def singular(X: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(X)


def test_rect_by_hand() -> None:
    """Ratios 0.3, 0.1, 0.5, 10^5 and 0: of five entries the third from below is the cut at 40 percent."""
    kept = largest_relative(W_BY_HAND, D_BY_HAND, 40.0)
    assert kept.tolist() == [[True, False, True, True, False]]
    assert largest_relative(W_BY_HAND, D_BY_HAND, 20.0).tolist() == [[False, False, True, True, False]]
    assert largest_relative(W_BY_HAND, D_BY_HAND, 100.0).all()


@given(pairs(), st.sampled_from([1.0, 40.0, 75.0]))
def test_rect_keeps_the_share_and_no_entry_below_one_that_goes(drawn, percent: float) -> None:
    W, D = drawn
    kept, ratio = largest_relative(W, D, percent), (D / W).abs()
    dropped = int(D.numel() * (100 - percent) / 100)
    assert int(kept.sum()) == D.numel() - dropped + (dropped > 0)
    assert ratio[kept].min() >= ratio[~kept].max()
    assert torch.equal(largest_relative(3 * W, 3 * D, percent, eps=3e-8), kept), (
        "the unit of the weights does not matter"
    )
    assert torch.equal(largest_relative(W, 7 * D, percent), kept), "nor how large the change is as a whole"


def test_prune_by_hand() -> None:
    W = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    D = torch.diag(torch.tensor([1.5, 2 * math.e], dtype=torch.float64))
    assert_close(damped(W, D), torch.diag(torch.tensor([1.5, 3.0], dtype=torch.float64)))


@given(pairs())
def test_prune_lowers_the_large_singular_values_and_turns_nothing(drawn) -> None:
    W, D = drawn
    most, before = singular(W)[0], singular(D)
    after = damped(W, D)
    expected = torch.where(before > most, before.log() - most.log() + most, before)
    assert_close(singular(after), expected.sort(descending=True).values, rtol=1e-9, atol=1e-9)
    assert_close(D.mT @ after, after.mT @ D, rtol=1e-9, atol=1e-9 * float(before[0]) ** 2)
    assert_close(D @ after.mT, after @ D.mT, rtol=1e-9, atol=1e-9 * float(before[0]) ** 2)
    if before[0] <= most:
        assert torch.equal(after, D), "bit for bit what the edit was"
    else:
        assert torch.linalg.matrix_norm(after) < torch.linalg.matrix_norm(D)


@pytest.mark.parametrize("factor", [1 - 1e-9, 1 + 1e-9])
def test_prune_is_continuous_where_it_begins(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    W, D = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    D = D / singular(D)[0] * singular(W)[0] * factor
    assert_close(damped(W, D), D, rtol=1e-8, atol=1e-8)
