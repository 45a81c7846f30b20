r"""The closed form whose orthogonality holds on the forget keys alone: ours, additive, in low-rank form.

Problem (docs/method.md; rows are samples):

    min_Δ  λw‖Δ K_w‖² + λk‖Δ K_k‖² + λr‖Δ‖² + λf‖(W + Δ) K - (M + R)‖²    subject to  Qᵀ (W + Δ) K = 0

Let A = λw C + λk K_kᵀ K_k + λr I, S = K A⁻¹ and G = S Kᵀ (n x n). Off span(Q) this is ridge regression, along it
a least-norm problem with an equality, and both solutions are combinations of the rows of S:

    Δ = [P Rᵀ (G + I/λf)⁻¹ - Q Qᵀ Mᵀ G⁻¹] S,        P = I - Q Qᵀ

so Δ has rank at most n. For λk → ∞ the retain keys are kept exactly, which Woodbury's form of A⁻¹ allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import RELOAD, check_finite
from zerounlearn.core.solve import LowRankUpdate
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.errors import IllPosedError

# A key of which less than this share (of kᵀ A⁻¹ k) lies outside the span that is kept exactly cannot be moved.
_OUTSIDE = 1e-9
# Singular values of the retain keys, read in float32, that count as zero when their span is taken.
_SPAN = 1e-6


@dataclass(frozen=True)
class KeyFactor:
    """A⁻¹ for one layer: the Cholesky factor of λw C + λr I, and the retain keys by Woodbury."""

    lower: Float[Tensor, "m m"]
    keep: Float[Tensor, "p m"] | None = None
    solved: Float[Tensor, "p m"] | None = None
    inner: Float[Tensor, "p p"] | None = None

    def solve(self, K: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """K A⁻¹."""
        S = _right_solve(K, self.lower)
        if self.keep is None or self.solved is None or self.inner is None:
            return S
        return S - _right_solve(S @ self.keep.mT, self.inner) @ self.solved


def factor_keys(
    W: Float[Tensor, "d m"],
    C: Float[Tensor, "m m"] | None,
    *,
    corpus_weight: float,
    ridge: float,
    keep: Float[Tensor, "p m"] | None = None,
    keep_weight: float = 0.0,
    exactly: bool = False,
    dtype: torch.dtype = torch.float64,
    where: str = "this layer",
) -> KeyFactor:
    """Factor A = λw C + λk K_kᵀ K_k + λr I.

    Args:
        W: the layer's weight; only its device and m are used.
        C: second moment over ordinary text, or None to leave the corpus out.
        corpus_weight: λw; larger keeps ordinary text closer to what it was.
        ridge: λr > 0; larger keeps the change small in every direction, also where the corpus says nothing.
        keep: keys of a retain set, one a row.
        keep_weight: λk; 0 leaves them out.
        exactly: keep what the layer writes for every combination of `keep`, whatever `keep_weight` says.
        dtype: precision of the factors.
        where: names the layer in errors.

    Raises:
        IllPosedError: C or the keys are not finite, or A is numerically singular.
    """
    check_finite(where, {"second moment C": C, "retain keys": keep}, RELOAD)
    m = W.shape[1]
    if C is None:
        A = torch.zeros(m, m, dtype=dtype, device=W.device)
    else:
        A = C.to(device=W.device, dtype=dtype, copy=True).mul_(corpus_weight)
    A.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(A)
    diagonal = lower.diagonal()
    if int(info) != 0 or not float((diagonal.max() / diagonal.min()) ** 2) * torch.finfo(dtype).eps * m < 1.0:
        raise IllPosedError(
            f"{where}: λw C + λr I is numerically singular (m={m}, λw={corpus_weight:g}, λr={ridge:g}): raise "
            "regularization_lam, or take the statistics again"
        )
    if keep is None or not len(keep) or not (exactly or keep_weight > 0):
        return KeyFactor(lower)
    keys = keep.to(device=W.device, dtype=dtype)
    if exactly:
        keys = orthonormal_basis(keys, rtol=_SPAN).mT.to(dtype)
    solved = _right_solve(keys, lower)
    gram = solved @ keys.mT
    if not exactly:
        gram.diagonal().add_(1.0 / keep_weight)
    inner, info = torch.linalg.cholesky_ex((gram + gram.mT) / 2)
    if int(info) != 0:
        raise IllPosedError(f"{where}: the {len(keep)} retain keys are too alike to be kept exactly: use a weight")
    return KeyFactor(lower, keys, solved, inner)


def solve_on_keys(
    W: Float[Tensor, "d m"],
    factor: KeyFactor,
    K: Float[Tensor, "n m"],
    R: Float[Tensor, "n d"],
    Q: Float[Tensor, "d r"],
    *,
    forget_weight: float,
    where: str = "this layer",
) -> LowRankUpdate:
    """The minimiser of the module's objective, as a change of W of rank at most n.

    Args:
        W: the layer's weight as it is now.
        factor: `factor_keys` of the same layer.
        K: forget keys. Where some depend on others linearly the constraint is met in the least-squares sense; equal
            keys have equal outputs, so it is then met all the same.
        R: residuals to be written on top of M = K Wᵀ.
        Q: basis of the sensitive subspace; r = 0 leaves the constraint out.
        forget_weight: λf ≥ 0; 0 leaves the remapping out.
        where: names the layer in errors.

    Raises:
        IllPosedError: the keys or residuals are not finite, or a forget key lies in the span that is kept exactly.
    """
    dtype, device = factor.lower.dtype, factor.lower.device
    A, K, R, Q = (x.to(device=device, dtype=dtype) for x in (W, K, R, Q))
    check_finite(where, {"forget keys": K, "residuals": R})
    S = factor.solve(K)
    G = S @ K.mT
    G = (G + G.mT) / 2
    unkept = (_right_solve(K, factor.lower) * K).sum(dim=1)
    held = (G.diagonal() < _OUTSIDE * unkept).nonzero().flatten().tolist()
    if held:
        raise IllPosedError(
            f"{where}: the keys of requests {held[:5]} lie in the span of the retain set, which is kept exactly: drop "
            "what is like them from it, or keep it by its weight (retain_exactly: false)"
        )
    left = A.new_zeros(A.shape[0], K.shape[0])
    if forget_weight > 0:
        ridged = G.clone()
        ridged.diagonal().add_(1.0 / forget_weight)
        remapped = R - (R @ Q) @ Q.mT
        left = left + _right_solve(remapped.mT, torch.linalg.cholesky(ridged))
    if Q.shape[1]:
        sensitive = K @ (A.mT @ Q)
        left = left - Q @ (sensitive.mT @ torch.linalg.pinv(G, hermitian=True, rtol=len(K) * torch.finfo(dtype).eps))
    return LowRankUpdate(1.0, left, S)


def _right_solve(X: Tensor, lower: Tensor) -> Tensor:
    """X (L Lᵀ)⁻¹."""
    solution: Tensor = torch.cholesky_solve(X.mT, lower)
    return solution.mT
