"""Second moments: sums that do not depend on how the rows are cut up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from zerounlearn.core.moments import SecondMoment

DOUBLE = torch.float64


def rows(n: int, m: int = 6) -> torch.Tensor:
    return torch.randn(n, m, dtype=DOUBLE, generator=torch.Generator().manual_seed(n))


def of(X: torch.Tensor) -> SecondMoment:
    return SecondMoment.zeros(X.shape[1]).add(X, precision=DOUBLE)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_moments_of_parts_add_up_to_that_of_the_whole(sizes: list[int]) -> None:
    parts = [rows(n) for n in sizes]
    X = torch.cat([*parts, rows(3)])
    streamed, taken_in = of(rows(3)), of(rows(3))
    for part in parts:
        streamed.add(part, precision=DOUBLE)
        taken_in += of(part)
    for moment in (streamed, taken_in):
        assert moment.count == len(X)
        assert_close(moment.mean(), X.mT @ X / len(X), rtol=1e-10, atol=1e-12)


def test_taking_in_changes_one_and_makes_no_third() -> None:
    one, other = of(rows(5)), of(rows(7))
    place, before = one.total.data_ptr(), other.total.clone()
    one += other
    assert one.total.data_ptr() == place
    assert torch.equal(other.total, before)
    assert (one.count, other.count) == (12, 7)
    one.clear()
    assert one.total.data_ptr() == place
    assert (one.count, float(one.total.abs().sum())) == (0, 0.0)


def test_float32_products_are_summed_in_float64() -> None:
    big, small = torch.full((1, 2), 4096.0), torch.full((1, 2), 0.5)
    moment = SecondMoment.zeros(2).add(big)
    for _ in range(8):
        moment.add(small)
    assert torch.equal(moment.total, torch.full((2, 2), 4096.0**2 + 2.0, dtype=DOUBLE))
    single = SecondMoment.zeros(2, torch.float32).add(big)
    for _ in range(8):
        single.add(small)
    assert single.total.dtype == torch.float32
    assert float(single.total[0, 0]) == 4096.0**2, "in float32 the small rows are lost, one by one"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [(0, 0), (1023, 5), (1024, 3), (1099, 1099)])
def test_what_is_not_finite_is_found_in_every_block(value: float, at: tuple[int, int]) -> None:
    moment = SecondMoment.zeros(1100)
    assert moment.is_finite()
    moment.total[at] = value
    assert not moment.is_finite()


def test_no_rows_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no rows"):
        SecondMoment.zeros(3).mean()
