r"""The closed form of ZeroUnlearn for one layer, in low-rank form.

Problem (paper section 4; rows are samples):

    min_D  λw‖(D - I) W K_w‖² + λf‖D M - (M + R)‖² + λr‖(D - I) W‖²    subject to  Qᵀ D = 0

With C = E[k kᵀ], V = W C and M = W K the normal equations collapse. Let B₀ = W (λw C + λr I) Wᵀ, which
does not depend on the requests. Then

    D = P (I + Rᵀ (I/λf + M B₀⁻¹ Mᵀ)⁻¹ M B₀⁻¹),        P = I - Q Qᵀ

by Woodbury, and W' = D W differs from W by a matrix of rank at most r + n. Nothing of size d x d is formed
but B₀ and its Cholesky factor, nothing of size m x m but C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import RELOAD, check_finite
from zerounlearn.core.subspace import project_out
from zerounlearn.errors import IllPosedError

# Columns of C that are converted to the solver's precision at a time, and rows that are looked at together: bounds
# the temporary to m * 256.
_BLOCK = 256


@dataclass(frozen=True)
class BaseFactor:
    """The Cholesky factor of B₀ for one layer; reusable for every request set while W stands."""

    lower: Float[Tensor, "d d"]

    def solve(self, M: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """M B₀⁻¹."""
        solution: Tensor = torch.cholesky_solve(M.mT, self.lower)
        return solution.mT

    def condition(self) -> float:
        """A lower bound on the condition number of B₀, from the diagonal of its factor."""
        diagonal = self.lower.diagonal()
        return float((diagonal.max() / diagonal.min()) ** 2)


@dataclass(frozen=True)
class LowRankUpdate:
    """W' = scale · W + left @ right, with `left` (d, k) and `right` (k, m); k ≤ r + n."""

    scale: float
    left: Float[Tensor, "d k"]
    right: Float[Tensor, "k m"]

    def apply(self, W: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
        """The edited weight, in the precision of the factors; the caller casts back."""
        return torch.addmm(W.to(self.left.dtype), self.left, self.right, beta=self.scale)


def factor_base(
    W: Float[Tensor, "d m"],
    C: Float[Tensor, "m m"] | None,
    *,
    corpus_weight: float,
    ridge: float,
    keep: Float[Tensor, "p m"] | None = None,
    keep_weight: float = 0.0,
    lost: Float[Tensor, "d p"] | None = None,
    dtype: torch.dtype = torch.float64,
    where: str = "this layer",
) -> BaseFactor:
    """Factor B₀ = W (λw C + λk K_kᵀ K_k + λr I) Wᵀ.

    Args:
        W: the layer's weight, of full row rank.
        C: second moment over ordinary text, or None to leave the corpus out (λw is then not read).
        corpus_weight: λw; larger keeps ordinary text closer to what it was.
        ridge: λr > 0; larger keeps W itself closer to what it was.
        keep: keys of a retain set, one a row; they join C with weight `keep_weight`.
        keep_weight: λk.
        lost: orthonormal directions along which W is zero, from earlier projections. B₀ is singular there and
            nothing is ever solved for there (M has no part along them), so any positive value may stand in.
        dtype: precision of the product and the factor.
        where: names the layer in errors.

    Raises:
        IllPosedError: W, C or the keys are not finite, or B₀ is numerically singular.
    """
    check_finite(where, {"weight": W, "second moment C": C, "retain keys": keep}, RELOAD)
    A = W.to(dtype)
    B: Tensor = ridge * (A @ A.mT)
    if C is not None:
        for start in range(0, C.shape[1], _BLOCK):
            block = C[:, start : start + _BLOCK].to(device=A.device, dtype=dtype)
            B.addmm_(A @ block, A[:, start : start + _BLOCK].mT, alpha=corpus_weight)
    if keep is not None:
        kept = keep.to(device=A.device, dtype=dtype) @ A.mT
        B.addmm_(kept.mT, kept, alpha=keep_weight)
    if lost is not None:
        N = lost.to(device=A.device, dtype=dtype)
        B.addmm_(N, N.mT, alpha=float(B.diagonal().mean()))
    lower, info = torch.linalg.cholesky_ex(B)
    factor = BaseFactor(lower)
    if int(info) != 0 or not factor.condition() * torch.finfo(dtype).eps * W.shape[0] < 1.0:
        raise IllPosedError(
            f"{where}: W (λw C + λr I) Wᵀ is numerically singular (d={W.shape[0]}, m={W.shape[1]}, "
            f"λw={corpus_weight if C is not None else 0:g}, λr={ridge:g}): raise regularization_lam, take the "
            "statistics over more text, or check the weight for equal or zero rows"
        )
    return factor


def solve_update(
    W: Float[Tensor, "d m"],
    base: BaseFactor,
    K: Float[Tensor, "n m"],
    R: Float[Tensor, "n d"],
    Q: Float[Tensor, "d r"],
    *,
    forget_weight: float,
    eps: float = 0.0,
    where: str = "this layer",
) -> LowRankUpdate:
    """The minimiser of the module's objective, as a low-rank change of W.

    Args:
        W: the layer's weight as it is now.
        base: `factor_base` of the same W.
        K: forget keys.
        R: residuals to be written on top of M = K Wᵀ.
        Q: basis of the sensitive subspace; r = 0 leaves the constraint out.
        forget_weight: λf ≥ 0; 0 leaves the remapping out and only projects.
        eps: see `project_out`.
        where: names the layer in errors.

    Raises:
        IllPosedError: the keys or residuals are not finite.
    """
    dtype = base.lower.dtype
    A, K, R, Q = (x.to(device=base.lower.device, dtype=dtype) for x in (W, K, R, Q))
    check_finite(where, {"forget keys": K, "residuals": R})
    left, right = -Q, Q.mT @ A
    if K.shape[0] and forget_weight > 0:
        M = K @ A.mT
        S = base.solve(M)
        gram = M @ S.mT
        gram.diagonal().add_(1.0 / forget_weight)
        G: Tensor = torch.cholesky_solve(S @ A, torch.linalg.cholesky(gram))
        left = torch.cat([left, project_out(Q, R.mT, eps=eps)], dim=1)
        right = torch.cat([right, G], dim=0)
    return LowRankUpdate(1.0 + eps, left, right)


def leakage(
    Q: Float[Tensor, "d r"], W: Float[Tensor, "d m"], edited: Float[Tensor, "d m"], K: Float[Tensor, "n m"]
) -> float:
    """‖Qᵀ W' Kᵀ‖ / ‖Qᵀ W Kᵀ‖: the share of the sensitive output that is left on the forget keys.

    Taken on the weight as written, so that it shows what rounding to the weight's dtype puts back.
    """
    Q, W, edited, K = (x.double() for x in (Q, W, edited, K))
    before = torch.linalg.norm((Q.mT @ W) @ K.mT)
    return float(torch.linalg.norm((Q.mT @ edited) @ K.mT) / before) if before > 0 else 0.0


def relative_change(W: Float[Tensor, "d m"], edited: Float[Tensor, "d m"]) -> float:
    """‖W' - W‖ / ‖W‖ in the Frobenius norm."""
    return distance(W, edited) / distance(W, None)


def distance(A: Float[Tensor, "d ..."], B: Float[Tensor, "d ..."] | None) -> float:
    """‖A - B‖ in the Frobenius norm, or ‖A‖, in float64 by blocks of rows: nothing of the size of A is made."""
    parts = (
        A[i : i + _BLOCK].double() - (0.0 if B is None else B[i : i + _BLOCK].double())
        for i in range(0, A.shape[0], _BLOCK)
    )
    return float(sum(float(part.square().sum()) for part in parts)) ** 0.5
