"""The sensitive subspace: an orthonormal basis of the sensitive outputs, and its complement."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import check_finite


def orthonormal_basis(V: Float[Tensor, "n d"], *, rtol: float | None = None) -> Float[Tensor, "d r"]:
    """An orthonormal basis Q of the row space of V, with r its numerical rank.

    Args:
        V: sensitive outputs, one row per request.
        rtol: singular values below `rtol` times the largest do not count. The default is
            max(n, d) times the machine epsilon of float64, as in `numpy.linalg.matrix_rank`; rows that
            were computed in float32 deserve about 1e-6.

    Raises:
        IllPosedError: V is not finite.
    """
    check_finite("the sensitive subspace", {f"outputs of shape {tuple(V.shape)}": V})
    V = V.double()
    if V.shape[0] == 0:
        return V.new_zeros(V.shape[1], 0)
    _, singular, right = torch.linalg.svd(V, full_matrices=False)
    cut = max(V.shape) * torch.finfo(V.dtype).eps if rtol is None else rtol
    rank = int((singular > cut * singular[0]).sum())
    return right[:rank].mT.contiguous()


def project_out(Q: Float[Tensor, "d r"], X: Float[Tensor, "d k"], *, eps: float = 0.0) -> Float[Tensor, "d k"]:
    """((1 + eps) I - Q Qᵀ) X; the d x d projector is never formed.

    `eps` = 0 is the projector of the paper. The published code uses 0.01, which is no projector: it keeps
    a hundredth of the sensitive directions and scales all others by 1.01.
    """
    return (1.0 + eps) * X - Q @ (Q.mT @ X)
