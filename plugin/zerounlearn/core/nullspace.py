r"""The additive update of ZeroUnlearn-GD for one layer, restricted to what ordinary text leaves free.

Problem (the published code's objective; rows are samples, T = M + R):

    min_Δ  a₁‖(W + Δ) Kᵀ projected on Q‖² + a₂‖(W + Δ) Kᵀ - Tᵀ‖² + b‖Δ‖²,    Δ = Δ̂ P_C

with P_C the projector on the eigenvectors of C whose eigenvalue is small: ordinary keys have next to no part
there, so their values stay. The published code takes 500 Adam steps on Δ̂; the problem is linear least
squares, and `solve_exact` gives its minimiser.

Where no eigenvalue is small the projector is zero and nothing could be learned. The soft form replaces
P_C by S = (I + C/τ)⁻¹ and b‖Δ‖² by b tr(Δ S⁻¹ Δᵀ) = b‖Δ‖² + (b/τ) tr(Δ C Δᵀ): directions that ordinary text
uses are not forbidden but dear. With S = P_C both are the same formula, since P_C P_C = P_C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import RELOAD, check_finite
from zerounlearn.core.solve import LowRankUpdate

Rule = Literal["absolute", "relative", "energy"]


@dataclass(frozen=True)
class Weights:
    """a₁ of the output along Q, a₂ of the mapping to the target, b > 0 of ‖Δ‖²; defaults as published."""

    sensitive: float = 1.0
    target: float = 100.0
    norm: float = 0.1


@dataclass(frozen=True)
class FreeSpace:
    """Where Δ may lie: Δ = Δ̂ root, with root (m, m) symmetric and S = root².

    `directions` counts the eigenvectors of the hard form; 0 means that the soft form stands in.
    """

    root: Float[Tensor, "m m"]
    directions: int

    def features(self, K: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """K root: what Δ̂ sees of the keys."""
        return K.to(self.root) @ self.root


def free_space(
    C: Float[Tensor, "m m"], threshold: float, rule: Rule = "absolute", *, soft: bool = False, where: str = "this layer"
) -> FreeSpace:
    """The free space of a second moment.

    Args:
        C: second moment of ordinary keys.
        threshold: for `absolute`, the largest eigenvalue that counts as free (published: 0.01); for
            `relative`, the same as a share of the largest eigenvalue; for `energy`, the share of the trace that
            the free directions may hold together.
        rule: how to read the threshold.
        soft: take the soft form whatever the eigenvalues; τ is the eigenvalue that the threshold names, at least the
            smallest one of C.
        where: names the layer in errors.

    Raises:
        IllPosedError: C is not finite.
    """
    check_finite(where, {"second moment C": C}, RELOAD)
    values, vectors = torch.linalg.eigh(C.double())
    values = values.clamp_min(0.0)  # rounding makes the smallest ones negative
    if rule == "energy":
        share = values.cumsum(0) / values.sum()
        free = share <= threshold
        bound = float(values[int(free.sum())]) if not bool(free.all()) else float(values[-1])
    else:
        bound = threshold * (float(values[-1]) if rule == "relative" else 1.0)
        free = values <= bound
    count = int(free.sum())
    if count and not soft:
        U = vectors[:, free]
        return FreeSpace(U @ U.mT, count)
    # Below every eigenvalue, τ would only scale the whole update down, to nothing in the end.
    tau = max(bound, float(values[0]))
    scale = (1.0 + values / tau).rsqrt()
    return FreeSpace((vectors * scale) @ vectors.mT, 0)


def solve_exact(
    W: Float[Tensor, "d m"],
    space: FreeSpace,
    K: Float[Tensor, "n m"],
    R: Float[Tensor, "n d"],
    Q: Float[Tensor, "d r"],
    weights: Weights,
) -> LowRankUpdate:
    """The minimiser, of rank at most n.

    Along Q the two quadratic terms add up to weight a₁ + a₂ and target a₂/(a₁ + a₂) T; off Q the weight is
    a₂ and the target T. Each part is ridge regression in the features F = K root, solved in its n x n dual.

    Args:
        W: the layer's weight.
        space: where Δ may lie.
        K: forget keys.
        R: residuals; the target is T = K Wᵀ + R.
        Q: basis of the sensitive outputs.
        weights: a₁, a₂ and b.
    """
    A, K, R, Q = (x.to(space.root) for x in (W, K, R, Q))
    F = space.features(K)
    gram = F @ F.mT
    M = K @ A.mT
    along = weights.sensitive + weights.target
    wanted = ((weights.target / along) * (M + R) - M) @ Q  # (n, r)
    left = _dual(gram, weights.norm / along, wanted) @ Q.mT
    left = left + _dual(gram, weights.norm / weights.target, R - (R @ Q) @ Q.mT)
    return LowRankUpdate(1.0, left.mT, F @ space.root)


def _dual(gram: Tensor, ridge: float, target: Tensor) -> Tensor:
    shifted = gram.clone()
    shifted.diagonal().add_(ridge)
    solution: Tensor = torch.cholesky_solve(target, torch.linalg.cholesky(shifted))
    return solution


def solve_adam(
    W: Float[Tensor, "d m"],
    space: FreeSpace,
    K: Float[Tensor, "n m"],
    R: Float[Tensor, "n d"],
    Q: Float[Tensor, "d r"],
    weights: Weights,
    *,
    steps: int = 500,
    lr: float = 1e-3,
) -> LowRankUpdate:
    """The published solver: Adam on Δ̂ (d, m) from zero, whose penalty is ‖Δ̂ root‖² (hard) or ‖Δ̂‖² (soft).

    Steps are in the coordinates of Δ̂, on which Adam's path depends; the change is not of low rank.
    """
    A, K, R, Q = (x.to(space.root) for x in (W, K, R, Q))
    M, F = K @ A.mT, space.features(K)
    change = torch.zeros_like(A, requires_grad=True)
    optimiser = torch.optim.Adam([change], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        written = M + F @ change.mT
        penalty = (change @ space.root if space.directions else change).square().sum()
        loss = weights.sensitive * (written @ Q).square().sum()
        loss = loss + weights.target * (written - M - R).square().sum() + weights.norm * penalty
        loss.backward()
        optimiser.step()
    return LowRankUpdate(1.0, change.detach(), space.root)
