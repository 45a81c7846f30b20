"""Orthogonality on the forget keys alone, with keys to keep: stated as theorems, in float64, on random instances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.core.test_solve import Problem, draw
from zerounlearn.core.on_keys import factor_keys, solve_on_keys
from zerounlearn.core.solve import LowRankUpdate
from zerounlearn.core.subspace import project_out
from zerounlearn.errors import IllPosedError

problems = st.builds(draw, st.integers(0, 2**32 - 1), n=st.integers(1, 6), d=st.integers(8, 20), m=st.integers(24, 48))
KEPT = 9
KEEP_WEIGHT = 7.0


def kept_keys(p: Problem) -> Tensor:
    g = torch.Generator().manual_seed(p.K.shape[1])
    return torch.randn(KEPT, p.K.shape[1], generator=g, dtype=torch.float64) + 0.5 * p.K[:1]


def solved(p: Problem, keep: Tensor | None = None, **changes: object) -> LowRankUpdate:
    factor_args = {"keep": keep, "keep_weight": KEEP_WEIGHT}
    factor_args |= {k: changes.pop(k) for k in ("keep_weight", "exactly") if k in changes}
    factor = factor_keys(p.W, p.C, corpus_weight=p.corpus, ridge=p.ridge, **factor_args)
    args = {"K": p.K, "R": p.R, "Q": p.Q, "forget_weight": p.forget} | changes
    return solve_on_keys(p.W, factor, **args)


def delta(update: LowRankUpdate) -> Tensor:
    return update.left @ update.right


def metric(p: Problem, keep: Tensor, weight: float = KEEP_WEIGHT) -> Tensor:
    return p.corpus * p.C + weight * keep.mT @ keep + p.ridge * torch.eye(p.C.shape[0], dtype=torch.float64)


def objective(p: Problem, keep: Tensor, change: Tensor) -> Tensor:
    return (
        p.corpus * torch.trace(change @ p.C @ change.mT)
        + KEEP_WEIGHT * (keep @ change.mT).square().sum()
        + p.ridge * change.square().sum()
        + p.forget * (p.K @ change.mT - p.R).square().sum()
    )


def feasible(p: Problem, seed: int) -> Tensor:
    """A random direction E with Qᵀ E Kᵀ = 0."""
    g = torch.Generator().manual_seed(seed)
    E = torch.randn(p.W.shape, generator=g, dtype=torch.float64)
    along = p.Q @ (p.Q.mT @ E)
    return E - along @ torch.linalg.pinv(p.K) @ p.K


@given(problems)
def test_the_sensitive_part_is_gone_on_the_forget_keys(p: Problem) -> None:
    left = p.Q.mT @ (p.W + delta(solved(p, kept_keys(p)))) @ p.K.mT
    assert left.abs().max() < 1e-9 * (p.Q.mT @ p.W @ p.K.mT).abs().max()


@given(problems)
def test_it_stays_elsewhere(p: Problem) -> None:
    """The published form takes Qᵀ W from every input; this one must not."""
    edited = p.W + delta(solved(p, kept_keys(p)))
    assert torch.linalg.norm(p.Q.mT @ edited) > 1e-2 * torch.linalg.norm(p.Q.mT @ p.W)


@given(problems, st.integers(0, 2**32 - 1))
def test_no_feasible_change_is_better(p: Problem, seed: int) -> None:
    keep = kept_keys(p)
    best = delta(solved(p, keep))
    E = feasible(p, seed)
    E *= torch.linalg.norm(best) / torch.linalg.norm(E)
    at = objective(p, keep, best)
    for step in (1e-3, -1e-3, 1.0, -1.0):
        assert objective(p, keep, best + step * E) > at
    slope = (objective(p, keep, best + 1e-3 * E) - objective(p, keep, best - 1e-3 * E)) / 2e-3
    assert slope.abs() < 1e-6 * at


@given(problems)
def test_it_equals_the_dense_solution(p: Problem) -> None:
    """Off Q: (λf RᵀK) (A + λf KᵀK)⁻¹. Along Q: the least A-norm solution of the equality, by its own formula."""
    keep = kept_keys(p)
    A = metric(p, keep)
    off = project_out(p.Q, p.forget * p.R.mT @ p.K) @ torch.linalg.inv(A + p.forget * p.K.mT @ p.K)
    root = torch.linalg.cholesky(A)
    white = torch.linalg.solve_triangular(root, p.K.mT, upper=False)
    along = p.Q @ -(p.Q.mT @ p.W @ p.K.mT) @ torch.linalg.pinv(white) @ torch.linalg.inv(root)
    expected = off + along
    assert torch.linalg.norm(delta(solved(p, keep)) - expected) < 1e-8 * torch.linalg.norm(expected)


@given(problems)
def test_the_rank_is_at_most_that_of_the_forget_set(p: Problem) -> None:
    update = solved(p, kept_keys(p))
    assert update.left.shape[1] == len(p.K)
    assert torch.linalg.matrix_rank(delta(update), rtol=1e-9) <= len(p.K)


@given(problems)
def test_a_heavier_retain_set_is_kept_better(p: Problem) -> None:
    keep = kept_keys(p)
    moved = [torch.linalg.norm(keep @ delta(solved(p, keep, keep_weight=w)).mT) for w in (0.0, 1.0, 1e2, 1e4)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.5 * moved[0]


@given(problems)
def test_kept_exactly_is_the_limit_of_kept_by_weight(p: Problem) -> None:
    keep = kept_keys(p)
    exact = delta(solved(p, keep, exactly=True))
    assert torch.linalg.norm(keep @ exact.mT) < 1e-9 * torch.linalg.norm(keep) * torch.linalg.norm(exact)
    near = delta(solved(p, keep, keep_weight=1e9))
    assert torch.linalg.norm(near - exact) < 1e-5 * torch.linalg.norm(exact)
    assert (p.Q.mT @ (p.W + exact) @ p.K.mT).abs().max() < 1e-8 * (p.Q.mT @ p.W @ p.K.mT).abs().max()


def test_dependent_retain_keys_can_be_kept_exactly() -> None:
    p = draw(3)
    keep = kept_keys(p)
    doubled = torch.cat([keep, keep, keep.sum(dim=0, keepdim=True)])
    once, twice = delta(solved(p, keep, exactly=True)), delta(solved(p, doubled, exactly=True))
    assert torch.linalg.norm(once - twice) < 1e-9 * torch.linalg.norm(once)


def test_without_a_sensitive_subspace_it_is_ridge_regression() -> None:
    p = draw(4)
    keep = kept_keys(p)
    A = metric(p, keep) + p.forget * p.K.mT @ p.K
    expected = p.forget * p.R.mT @ p.K @ torch.linalg.inv(A)
    found = delta(solved(p, keep, Q=p.Q[:, :0]))
    assert torch.linalg.norm(found - expected) < 1e-9 * torch.linalg.norm(expected)


def test_without_remapping_only_the_sensitive_part_moves() -> None:
    p = draw(5)
    change = delta(solved(p, kept_keys(p), forget_weight=0.0))
    assert torch.linalg.norm(project_out(p.Q, change)) < 1e-9 * torch.linalg.norm(change)
    assert (p.Q.mT @ (p.W + change) @ p.K.mT).abs().max() < 1e-9


def test_equal_forget_keys_are_no_obstacle() -> None:
    p = draw(6)
    p.K = torch.cat([p.K, p.K[:1]])
    p.R = torch.cat([p.R, p.R[:1]])
    edited = p.W + delta(solved(p, kept_keys(p)))
    assert (p.Q.mT @ edited @ p.K.mT).abs().max() < 1e-7


def test_the_corpus_may_be_left_out() -> None:
    p = draw(7)
    factor = factor_keys(p.W, None, corpus_weight=p.corpus, ridge=2.0)
    change = delta(solve_on_keys(p.W, factor, p.K, p.R, p.Q[:, :0], forget_weight=1e12))
    expected = p.R.mT @ torch.linalg.pinv(p.K.mT)  # the least-norm interpolation
    assert torch.linalg.norm(change - expected) < 1e-6 * torch.linalg.norm(expected)


def test_a_forget_key_among_what_is_kept_exactly_is_refused() -> None:
    p = draw(8)
    keep = torch.cat([kept_keys(p), p.K[2:3]])
    with pytest.raises(IllPosedError, match=r"requests \[2\] lie in the span of the retain set.*drop"):
        solved(p, keep, exactly=True)
    solved(p, keep)  # by weight it can be done


@pytest.mark.parametrize("name", ["C", "keep", "K", "R"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    p, keep = draw(9), kept_keys(draw(9))
    bad = keep if name == "keep" else getattr(p, name)
    bad[0, 0] = float("nan")
    with pytest.raises(IllPosedError, match="NaN or Inf"):
        solved(p, keep)


def test_a_singular_metric_is_refused() -> None:
    p = draw(10)
    with pytest.raises(IllPosedError, match="raise regularization_lam"):
        factor_keys(p.W, torch.zeros_like(p.C), corpus_weight=1.0, ridge=0.0)
