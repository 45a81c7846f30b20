r"""How much of an update for some keys is written for others: what tells an edit's side effects before it is made.

Problem (rows are samples): an update that moves the outputs of n forget keys K by steps R, keeping what p keys X of
ordinary text and the weight itself are mapped to,

    min_Δ  (λw/p)‖Δ Xᵀ‖² + λr‖Δ‖² + λf‖Δ Kᵀ - Rᵀ‖²,

is Δ = Rᵀ (G + I/λf)⁻¹ K A⁻¹ with A = (λw/p) XᵀX + λr I and G = K A⁻¹ Kᵀ (`core.on_keys`, with the text's second moment
from a sample). For any key k it writes Δk = Σᵢ cᵢ(k) Rᵢ with

    c(k) = (G + I/λf)⁻¹ K A⁻¹ k,

which does not depend on R: of the step that fact i is given, k gets the share cᵢ(k). A⁻¹ is applied by Woodbury's
identity, so that no m x m matrix is made.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zerounlearn.core.finite import check_finite
from zerounlearn.errors import IllPosedError


def shares(
    forget: Float[Tensor, "n m"],
    probes: Float[Tensor, "q m"],
    text: Float[Tensor, "p m"],
    *,
    corpus_weight: float,
    ridge: float,
    forget_weight: float,
    where: str = "this layer",
) -> Float[Tensor, "q n"]:
    """c(k) of every probe: the share of each forget key's step that is written for it, float64.

    Args:
        forget: forget keys K.
        probes: keys that the update is not made for.
        text: keys of ordinary text, at least one.
        corpus_weight: λw; larger keeps ordinary text closer to what it was.
        ridge: λr > 0.
        forget_weight: λf > 0.
        where: names the layer in errors.

    Raises:
        IllPosedError: a key is not finite, or the text's keys are numerically singular under the ridge.
    """
    check_finite(where, {"forget keys": forget, "probes": probes, "keys of ordinary text": text})
    K, k, X = (x.double() for x in (forget, probes, text))
    gram = X @ X.mT
    gram.diagonal().add_(ridge * len(X) / corpus_weight)
    lower, info = torch.linalg.cholesky_ex(gram)
    if int(info) != 0:
        raise IllPosedError(
            f"{where}: the {len(X)} keys of ordinary text are numerically singular (λr={ridge:g}): raise "
            "regularization_lam"
        )
    S = (K - torch.cholesky_solve(X @ K.mT, lower).mT @ X) / ridge
    G = S @ K.mT
    G = (G + G.mT) / 2
    G.diagonal().add_(1 / forget_weight)
    written: Tensor = torch.cholesky_solve(S @ k.mT, torch.linalg.cholesky(G))
    return written.mT


def auc(above: Float[Tensor, " a"], below: Float[Tensor, " b"]) -> float:
    """The chance that one drawn of `above` is larger than one of `below`, ties half; NaN where one is empty."""
    if not len(above) or not len(below):
        return float("nan")
    gap = above.double()[:, None] - below.double()[None]
    return float((gap > 0).double().mean() + (gap == 0).double().mean() / 2)
