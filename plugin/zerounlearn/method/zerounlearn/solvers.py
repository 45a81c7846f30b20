"""How one layer is solved for: the published closed form, ours on the forget keys, ZeroUnlearn-GD's null space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerounlearn.core.nullspace import Weights, free_space, solve_adam, solve_exact
from zerounlearn.core.on_keys import factor_keys, solve_on_keys
from zerounlearn.core.solve import LowRankUpdate, factor_base, solve_update
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.errors import ConfigError
from zerounlearn.method.zerounlearn.config import DescentConfig, SolveConfig

log = logging.getLogger(__name__)

# Singular values of V_u, found in float32, that count as zero.
RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class LayerProblem:
    """What is solved for one layer: keys are rows, and so are residuals.

    Attributes:
        W: the weight (d, m).
        C: second moment of ordinary text's keys (m, m), or None.
        keys: forget keys K (n, m).
        kept: keys to keep (p, m), each times the root of its weight.
        residuals: R (n, d), what the layer's output is to move by for `keys`.
        Q: orthonormal basis (d, r) of the sensitive outputs; r may be 0.
        lost: output directions (d, q) that earlier edits took away, or None.
        where: names the layer in errors.
    """

    W: Tensor
    C: Tensor | None
    keys: Tensor
    kept: Tensor
    residuals: Tensor
    Q: Tensor
    lost: Tensor | None
    where: str


@dataclass(frozen=True)
class Solved:
    """A layer's update, the output directions (d, q) that it takes away for good, and in words what was solved."""

    update: LowRankUpdate
    taken: Tensor
    form: str


def _multiplicative(problem: LayerProblem, hparams: SolveConfig) -> Solved:
    """The published closed form W ← D W; without V_u (`remap-only`) its P is I."""
    p = problem
    # What earlier edits took away must not come back with R, so it is projected out again.
    basis = p.Q if p.lost is None else orthonormal_basis(torch.cat([p.lost, p.Q], dim=1).mT, rtol=RANK_TOLERANCE)
    base = factor_base(
        p.W,
        p.C,
        corpus_weight=hparams.wiki_KKT_lam,
        ridge=hparams.regularization_lam,
        keep=p.kept if len(p.kept) else None,
        keep_weight=1.0,
        lost=p.lost,
        dtype=getattr(torch, hparams.solve_dtype),
        where=p.where,
    )
    update = solve_update(
        p.W,
        base,
        p.keys,
        p.residuals,
        basis,
        forget_weight=hparams.forget_KKT_lam,
        eps=hparams.projection_eps,
        where=p.where,
    )
    taken = basis if hparams.projection_eps == 0 else basis[:, :0]
    return Solved(update, taken, f"closed form, cond(B₀) ≥ {base.condition():.1e}")


def _on_keys(problem: LayerProblem, hparams: SolveConfig) -> Solved:
    """Ours, W ← W + Δ, which changes what the layer writes for keys like the forget keys and for no others."""
    p = problem
    factor = factor_keys(
        p.W,
        p.C,
        corpus_weight=hparams.wiki_KKT_lam,
        ridge=hparams.regularization_lam,
        keep=p.kept if len(p.kept) else None,
        keep_weight=1.0,
        exactly=hparams.retain_exactly,
        dtype=getattr(torch, hparams.solve_dtype),
        where=p.where,
    )
    update = solve_on_keys(p.W, factor, p.keys, p.residuals, p.Q, forget_weight=hparams.forget_KKT_lam, where=p.where)
    form = "additive on the forget keys" + (", orthogonal there" if p.Q.shape[1] else "")
    return Solved(update, p.Q[:, :0], form)


def _null_space(problem: LayerProblem, hparams: DescentConfig) -> Solved:
    """ZeroUnlearn-GD's W ← W + Δ, whose free space is that of C and the keys to keep."""
    p = problem
    if p.C is None:
        raise ConfigError("mom2_adjustment=False: ZeroUnlearn-GD keeps what C uses, and cannot do without it")
    C = p.C.to(p.W.device).double()
    if len(p.kept):
        C = C.addmm(p.kept.mT.double(), p.kept.double())
    space = free_space(C, hparams.nullspace_threshold, hparams.nullspace_rule, where=p.where)
    if not space.directions:
        log.warning(
            "%s: no eigenvalue of C is at most nullspace_threshold=%g (%s): the soft form is used instead",
            p.where,
            hparams.nullspace_threshold,
            hparams.nullspace_rule,
        )
    weights = Weights(hparams.sensitive_weight, hparams.target_weight, hparams.norm_weight)
    if hparams.solver == "exact":
        update = solve_exact(p.W, space, p.keys, p.residuals, p.Q, weights)
    else:
        with torch.enable_grad():
            update = solve_adam(p.W, space, p.keys, p.residuals, p.Q, weights, steps=hparams.gd_steps, lr=hparams.gd_lr)
    form = f"null space of {space.directions} directions" if space.directions else "soft null space"
    return Solved(update, p.Q[:, :0], form)


SOLVERS: Mapping[str, Callable[[LayerProblem, Any], Solved]] = {
    "multiplicative": _multiplicative,
    "keys": _on_keys,
    "null space": _null_space,
}
"""How a layer is solved for, by the `form` of a configuration."""
