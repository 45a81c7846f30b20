"""What RECT and PRUNE take back of an edit's change D to a weight W; both look at entries or singular values alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def largest_relative(
    W: Float[Tensor, "d m"], D: Float[Tensor, "d m"], percent: float, *, eps: float = 1e-8
) -> Bool[Tensor, "d m"]:
    """RECT: where |D / (W + eps)| is among the largest `percent` of all entries; the rest of D is to be dropped.

    Gu et al. 2024 (arXiv 2401.04700): what changes a weight little by its own measure costs general ability and does
    not carry the edit. The cut is the value of rank ⌊n (100 − percent) / 100⌋ from below, as in the published code of
    AlphaEdit and ZeroUnlearn (40 percent); entries equal to it stay, so a few more than `percent` may.

    Args:
        W: the weight before the edit.
        D: the edit's change.
        percent: share of the entries that stay, 0 < percent <= 100; larger restrains less.
        eps: added to W, against division by 0.
    """
    ratio = (D.double() / (W.double() + eps)).abs().reshape(-1)
    rank = int(ratio.numel() * (100 - percent) / 100)
    if rank < 1:
        return torch.ones_like(D, dtype=torch.bool)
    kept: Tensor = ratio >= ratio.kthvalue(rank).values
    return kept.reshape(D.shape)


def damped(W: Float[Tensor, "d m"], D: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """PRUNE: D with singular values σ above s, the largest of W, lowered to ln σ − ln s + s; float64.

    Ma et al. 2024 (arXiv 2405.16821): many edits together perturb a weight without bound, and this bounds how much
    worse its condition may become. Continuous in D, with D itself as long as ‖D‖₂ ≤ ‖W‖₂.
    """
    most = torch.linalg.matrix_norm(W.double(), 2)
    left, singular, right = torch.linalg.svd(D.double(), full_matrices=False)
    above = singular > most
    if not above.any():
        return D.double()
    taken = singular[above] - (singular[above].log() - most.log() + most)
    return D.double() - (left[:, above] * taken) @ right[above]
