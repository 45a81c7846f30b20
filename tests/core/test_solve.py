"""The closed form: stated as theorems, in float64, on random instances."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from zerounlearn.core.moments import SecondMoment
from zerounlearn.core.solve import factor_base, leakage, relative_change, solve_update
from zerounlearn.core.subspace import orthonormal_basis, project_out
from zerounlearn.errors import IllPosedError


@dataclass
class Problem:
    W: Tensor
    C: Tensor
    K: Tensor
    R: Tensor
    V: Tensor
    corpus: float
    forget: float
    ridge: float

    @property
    def Q(self) -> Tensor:
        return orthonormal_basis(self.V)

    def edited(self, **changes: object) -> Tensor:
        base = factor_base(self.W, self.C, corpus_weight=self.corpus, ridge=self.ridge)
        args = {"K": self.K, "R": self.R, "Q": self.Q, "forget_weight": self.forget} | changes
        return solve_update(self.W, base, **args).apply(self.W)


def draw(seed: int, n: int = 4, d: int = 16, m: int = 40) -> Problem:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    X = normal(4 * m, m) * (0.2 + torch.rand(m, generator=g, dtype=torch.float64))
    return Problem(
        W=normal(d, m),
        C=SecondMoment.zeros(m).add(X, precision=torch.float64).mean(),
        K=normal(n, m),
        R=normal(n, d),
        V=normal(n, d),
        corpus=float(10 ** (4 * torch.rand(1, generator=g) - 1)),
        forget=float(10 ** (3 * torch.rand(1, generator=g) - 1)),
        ridge=float(10 ** (2 * torch.rand(1, generator=g) - 1)),
    )


problems = st.builds(draw, st.integers(0, 2**32 - 1), n=st.integers(1, 7), d=st.integers(8, 20), m=st.integers(24, 48))


def dense_solution(p: Problem, eps: float = 0.0) -> Tensor:
    """The paper's formula as printed: dense, and with V Kᵀ and M Kᵀ spelled out."""
    W, I = p.W, torch.eye(p.C.shape[0], dtype=torch.float64)  # noqa: E741
    P = (1 + eps) * torch.eye(W.shape[0], dtype=torch.float64) - p.Q @ p.Q.mT
    M = W @ p.K.mT
    KK = p.corpus * p.C + p.forget * p.K.mT @ p.K + p.ridge * I
    VK = p.corpus * W @ p.C + p.forget * (M + p.R.mT) @ p.K + p.ridge * W
    B = W @ KK @ W.mT
    return torch.linalg.solve(B.mT, (P @ VK @ W.mT).mT).mT @ W


def objective(p: Problem, D: Tensor) -> Tensor:
    """The stated objective, with ‖X K_w‖² written as tr(X C Xᵀ)."""
    change = D @ p.W - p.W
    M = p.W @ p.K.mT
    return (
        p.corpus * torch.trace(change @ p.C @ change.mT)
        + p.forget * (D @ M - (M + p.R.mT)).square().sum()
        + p.ridge * change.square().sum()
    )


@given(problems)
def test_the_low_rank_form_equals_the_dense_one(p: Problem) -> None:
    for eps in (0.0, 0.01):
        expected = dense_solution(p, eps)
        error = torch.linalg.norm(p.edited(eps=eps) - expected) / torch.linalg.norm(expected)
        assert error < 1e-9


@given(problems)
def test_the_edited_weight_has_no_sensitive_component(p: Problem) -> None:
    before = torch.linalg.norm(p.Q.mT @ p.W)
    assert before > 1e-3 * torch.linalg.norm(p.W)
    assert torch.linalg.norm(p.Q.mT @ p.edited()) < 1e-12 * before
    assert leakage(p.Q, p.W, p.edited(), p.K) < 1e-12


@given(problems)
def test_the_published_projector_leaves_exactly_its_epsilon(p: Problem) -> None:
    free = p.edited(Q=p.Q[:, :0])
    assert_close(p.Q.mT @ p.edited(eps=0.01), 0.01 * p.Q.mT @ free)


@given(problems)
def test_nothing_asked_is_nothing_done(p: Problem) -> None:
    assert_close(p.edited(R=torch.zeros_like(p.R), Q=p.Q[:, :0]), p.W, rtol=1e-12, atol=1e-12)
    assert relative_change(p.W, p.edited()) > 1e-3


@given(problems, st.integers(0, 2**32 - 1))
def test_no_feasible_perturbation_is_better(p: Problem, seed: int) -> None:
    """D is found from D W by W's right inverse: W has full row rank."""
    D = p.edited() @ torch.linalg.pinv(p.W)
    best = objective(p, D)
    g = torch.Generator().manual_seed(seed)
    for size in (1e-4, 1e-2, 1.0):
        step = project_out(p.Q, torch.randn(D.shape, generator=g, dtype=torch.float64))
        assert torch.linalg.norm(p.Q.mT @ (D + size * step)) < 1e-9 * size + 1e-9
        assert objective(p, D + size * step) > best


@given(problems)
def test_the_gradient_vanishes_on_the_feasible_set(p: Problem) -> None:
    D = (p.edited() @ torch.linalg.pinv(p.W)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(p, D), D)
    size = torch.linalg.norm(p.W) ** 2 * (p.corpus * torch.linalg.norm(p.C) + p.ridge)
    size = size + p.forget * torch.linalg.norm(p.K @ p.W.mT) ** 2
    assert torch.linalg.norm(project_out(p.Q, gradient)) < 1e-9 * size


@given(problems, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_without_a_term_it_is_the_best_without_that_term(p: Problem, orthogonal: bool, corpus: bool, seed: int) -> None:
    """The supplement's ablations: P = I without the constraint, no C without ordinary text; the ridge stays."""
    p = dataclasses.replace(p, V=p.V if orthogonal else p.V[:0], corpus=p.corpus if corpus else 0.0)
    base = factor_base(p.W, p.C if corpus else None, corpus_weight=1.0 if not corpus else p.corpus, ridge=p.ridge)
    edited = solve_update(p.W, base, p.K, p.R, p.Q, forget_weight=p.forget).apply(p.W)
    expected = dense_solution(p)
    assert torch.linalg.norm(edited - expected) < 1e-9 * torch.linalg.norm(expected)
    D = edited @ torch.linalg.pinv(p.W)
    g = torch.Generator().manual_seed(seed)
    for size in (1e-3, 1.0):
        step = project_out(p.Q, torch.randn(D.shape, generator=g, dtype=torch.float64))
        assert objective(p, D + size * step) > objective(p, D)


@given(problems)
def test_without_ridge_and_corpus_there_is_no_one_solution(p: Problem) -> None:
    with pytest.raises(IllPosedError, match="regularization_lam"):
        factor_base(p.W, None, corpus_weight=p.corpus, ridge=0.0, keep=p.K, keep_weight=p.forget)


@given(problems)
def test_the_change_has_rank_at_most_two_n(p: Problem) -> None:
    n = p.K.shape[0]
    assert torch.linalg.matrix_rank(p.edited() - p.W, rtol=1e-10) <= min(2 * n, p.W.shape[0])


@given(problems, st.integers(0, 2**32 - 1))
def test_rotating_the_output_space_rotates_the_solution(p: Problem, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    O, _ = torch.linalg.qr(torch.randn(p.W.shape[0], p.W.shape[0], generator=g, dtype=torch.float64))  # noqa: E741
    turned = Problem(O @ p.W, p.C, p.K, p.R @ O.mT, p.V @ O.mT, p.corpus, p.forget, p.ridge)
    assert_close(turned.edited(), O @ p.edited(), rtol=1e-9, atol=1e-9)


@given(problems)
def test_keys_to_keep_act_like_text_of_their_own(p: Problem) -> None:
    """A retain set with weight λk is the same as adding its rows to the corpus."""
    kept = p.K.flip(0) + 1.0
    joint = factor_base(p.W, p.C + 3.0 / p.corpus * kept.mT @ kept, corpus_weight=p.corpus, ridge=p.ridge)
    split = factor_base(p.W, p.C, corpus_weight=p.corpus, ridge=p.ridge, keep=kept, keep_weight=3.0)
    assert_close(split.lower, joint.lower, rtol=1e-9, atol=1e-9)


@given(problems, st.integers(0, 2**32 - 1))
def test_a_weight_that_has_lost_directions_is_solved_on_the_rest(p: Problem, seed: int) -> None:
    """After an exact projection W has no full row rank: the same as solving in a basis of what is left."""
    g = torch.Generator().manual_seed(seed)
    O, _ = torch.linalg.qr(torch.randn(p.W.shape[0], p.W.shape[0], generator=g, dtype=torch.float64))  # noqa: E741
    N, rest = O[:, :2], O[:, 2:]
    W = project_out(N, p.W)
    with pytest.raises(IllPosedError):
        factor_base(W, p.C, corpus_weight=p.corpus, ridge=p.ridge)
    base = factor_base(W, p.C, corpus_weight=p.corpus, ridge=p.ridge, lost=N)
    R, Q = project_out(N, p.R.mT).mT, orthonormal_basis(project_out(N, p.V.mT).mT)
    found = solve_update(W, base, p.K, R, Q, forget_weight=p.forget).apply(W)
    small = Problem(rest.mT @ W, p.C, p.K, R @ rest, p.V @ rest, p.corpus, p.forget, p.ridge)
    assert_close(found, rest @ small.edited(), rtol=1e-8, atol=1e-8)


@given(problems)
def test_without_a_forget_weight_only_the_projection_is_left(p: Problem) -> None:
    assert_close(p.edited(forget_weight=0.0), project_out(p.Q, p.W))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_basis_spans_the_sensitive_rows_and_nothing_more(seed: int, rank: int) -> None:
    g = torch.Generator().manual_seed(seed)
    V = torch.randn(8, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, 16, generator=g, dtype=torch.float64)
    Q = orthonormal_basis(V)
    assert Q.shape == (16, rank)
    assert_close(Q.mT @ Q, torch.eye(rank, dtype=torch.float64))
    assert torch.linalg.norm(project_out(Q, V.mT)) < 1e-12 * torch.linalg.norm(V)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_base_is_named(dtype: torch.dtype) -> None:
    p = draw(0)
    p.W[1] = p.W[0]
    with pytest.raises(IllPosedError, match=r"layer 17.*regularization_lam"):
        factor_base(p.W.to(dtype), p.C, corpus_weight=1.0, ridge=1.0, dtype=dtype, where="layer 17")


@pytest.mark.parametrize("spoiled", ["W", "C", "K", "R", "V"])
def test_what_is_not_finite_is_refused(spoiled: str) -> None:
    p = draw(1)
    getattr(p, spoiled).view(-1)[3] = float("nan")
    with pytest.raises(IllPosedError, match="NaN"):
        p.edited()


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_moments_do_not_depend_on_batching(seed: int, sizes: list[int]) -> None:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(sum(sizes), 6, generator=g, dtype=torch.float64)
    whole = SecondMoment.zeros(6).add(X, precision=torch.float64)
    parts = SecondMoment.zeros(6)
    for rows in X.split(sizes):
        parts += SecondMoment.zeros(6).add(rows, precision=torch.float64)
    assert parts.count == whole.count == sum(sizes)
    assert_close(parts.mean(), X.mT @ X / len(X))
    assert_close(whole.mean(), X.mT @ X / len(X))


def test_no_rows_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no rows"):
        SecondMoment.zeros(3).mean()
