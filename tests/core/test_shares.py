"""The share of an update that other keys receive, against the update itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from zerounlearn.core.on_keys import factor_keys, solve_on_keys
from zerounlearn.core.shares import auc, shares
from zerounlearn.errors import IllPosedError

WEIGHTS = {"corpus_weight": 40.0, "ridge": 0.7, "forget_weight": 9.0}


def drawn(seed: int, n: int = 4, m: int = 12, p: int = 30, q: int = 7, d: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n, m), (q, m), (p, m), (d, m), (n, d))
    return tuple(torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)


@given(st.integers(0, 2**20))
def test_shares_times_steps_are_what_the_update_writes(seed: int) -> None:
    K, probes, text, W, R = drawn(seed)
    factor = factor_keys(W, text.mT @ text / len(text), corpus_weight=40.0, ridge=0.7)
    update = solve_on_keys(W, factor, K, R, W.new_zeros(len(W), 0), forget_weight=9.0)
    written = probes @ (update.apply(W) - W).mT
    assert_close(shares(K, probes, text, **WEIGHTS) @ R, written, rtol=1e-9, atol=1e-10)


def test_a_forget_key_gets_nearly_all_of_its_own_step_and_a_stranger_nothing() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    text = torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * (torch.arange(8) > 3)
    found = shares(eye[:2], eye[:4], text, corpus_weight=1.0, ridge=1e-3, forget_weight=1e3)
    assert_close(found, eye[:4, :2], rtol=0, atol=1e-5)


def test_keys_that_are_not_finite_are_refused() -> None:
    K, probes, text, *_ = drawn(0)
    K[0, 0] = float("nan")
    with pytest.raises(IllPosedError, match="layer 3: .*forget keys"):
        shares(K, probes, text, **WEIGHTS, where="layer 3")


def test_auc_counts_pairs() -> None:
    above, below = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    assert auc(above, below) == pytest.approx((3 + 1.5) / 6)
    assert auc(above, above) == 0.5
    assert auc(above, below[:0]) != auc(above, below[:0])  # NaN
