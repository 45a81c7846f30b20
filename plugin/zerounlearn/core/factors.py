r"""A change of low rank as thin factors: made no wider than it is, and added with the same bits everywhere.

The product of two float32 numbers is exact in float64. So W + Σⱼ lⱼ rⱼᵀ, taken in float64 one j after another and
rounded once, has the same bits on every processor, with any number of threads and with or without fused additions,
which a matrix product has not. Of a matrix product the few elements are taken so that lie where its own rounding could
decide to which side they are rounded.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Elements that are under way together.
_BLOCK = {"cpu": 1 << 20}
_LARGE = 1 << 24


def added(W: Float[Tensor, "d m"], left: Float[Tensor, "d k"], right: Float[Tensor, "k m"]) -> Float[Tensor, "d m"]:
    """W + left @ right, in W's dtype, rounded once: the same bits wherever it is computed, for float32 factors.

    A sum of k products in float64 is off by at most (k + 2) ε (|w| + ‖l‖‖r‖), in any order (Higham 2002, section 3.1).
    """
    device = torch.device("cpu") if W.device.type == "mps" else W.device  # which has no float64
    left, right = left.to(device).double(), right.to(device).double()
    across, slack = right.norm(dim=0), (len(right) + 2) * torch.finfo(torch.float64).eps
    rows = max(1, _BLOCK.get(device.type, _LARGE) // max(1, W.shape[1]))
    result = torch.empty_like(W)
    for start in range(0, len(W), rows):
        before, own = W[start : start + rows].to(device, torch.float64), left[start : start + rows]
        total = torch.addmm(before, own, right)
        off = torch.addr(before.abs(), own.norm(dim=1), across).mul_(slack)
        i, j = ((total - off).to(W.dtype) != (total + off).to(W.dtype)).nonzero(as_tuple=True)
        exact = before[i, j]
        for k in range(len(right)):
            exact += own[i, k] * right[k, j]
        total[i, j] = exact
        result[start : start + rows] = total.to(W.dtype)
    return result


def moved_by(W: Float[Tensor, "*n"], change: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """W + change, of any shape, in W's dtype, rounded once from float64."""
    device = torch.device("cpu") if W.device.type == "mps" else W.device
    return (W.to(device).double() + change.to(device).double()).to(W.dtype).to(W.device)


def product_svd(
    left: Float[Tensor, "d k"], right: Float[Tensor, "k m"]
) -> tuple[Float[Tensor, "d p"], Float[Tensor, "p r"], Float[Tensor, r], Float[Tensor, "r q"], Float[Tensor, "m q"]]:
    """Q, U, S, Vᴴ, R with left @ right = (Q U) diag(S) (Vᴴ Rᵀ), its SVD, in float64; the product is never built."""
    Ql, Rl = torch.linalg.qr(left.double())
    Qr, Rr = torch.linalg.qr(right.double().mT)
    U, S, Vh = torch.linalg.svd(Rl @ Rr.mT, full_matrices=False)
    return Ql, U, S, Vh, Qr


def thinned(
    left: Float[Tensor, "d k"], right: Float[Tensor, "k m"], dtype: torch.dtype
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r m"]] | None:
    """Factors of the same product with as many columns as its numerical rank, for a weight of `dtype`.

    They are U√S and √S Vᵀ of the singular value decomposition, in float32; for bfloat16 weights with eleven
    significant bits, which lose less than that dtype rounds away; for float64 weights in float64.

    Returns:
        None where the factors would hold as many numbers as the change itself.
    """
    (d, k), m = left.shape, right.shape[1]
    if k >= min(d, m):
        return None
    eps = max(torch.finfo(left.dtype).eps, torch.finfo(right.dtype).eps)
    Ql, U, S, Vh, Qr = product_svd(left, right)
    rank = int(S.gt(max(d, m) * eps * S[:1]).sum())
    if rank * (d + m) >= d * m:
        return None
    root = S[:rank].sqrt()
    thin = ((Ql @ U[:, :rank]) * root).mT, root[:, None] * (Vh[:rank] @ Qr.mT)
    first, second = thin if dtype == torch.float64 else tuple(for_weights_of(dtype, x) for x in thin)
    return first.mT.contiguous(), second.contiguous()


def for_weights_of(dtype: torch.dtype, X: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """X in float32; for bfloat16 weights with the significant bits of float16, row by row on a scale of its own.

    Once more changes nothing, and `scaled_to_half` gives such rows without loss.
    """
    if dtype != torch.bfloat16:
        return X.float()
    half, exponents = scaled_to_half(X)
    return torch.ldexp(half.float(), exponents[:, None].int())


def scaled_to_half(X: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], Tensor]:
    """Each row over a power of two, in float16, and the exponents (n,), int16: `ldexp` of the two is X, or near it.

    The largest of a row comes to lie in [2¹⁴, 2¹⁵), so that only what is 10⁻⁹ of it loses more bits.
    """
    _, exponents = torch.frexp(X.double().abs().amax(dim=1))
    exponents = exponents.to(torch.int16) - 15
    half = torch.ldexp(X.double(), -exponents[:, None].int()).half()
    return half.clamp(-32752.0, 32752.0), exponents  # 2¹⁵ itself would move the scale when taken again
