"""What an edit is, in plain values: of which method, where, how much, of how many facts; no fact in clear."""

from __future__ import annotations

from typing import Any

import torch

from zerounlearn.method.edit import Edit
from zerounlearn.method.edit_file import FORMAT


@torch.no_grad()
def summary(edit: Edit) -> dict[str, Any]:
    """What `zerounlearn inspect --json` prints; shares are ‖W' − W‖ / ‖W‖ in the Frobenius norm, before rounding."""
    weights = {}
    for name, (before, after) in edit.digests.items():
        factors = edit.factors.get(name)
        weights[name] = {
            "shape": list(edit.shape_of(name)),
            "dtype": str(edit.dtypes[name]).removeprefix("torch."),
            "rank": len(factors[1]) if factors else None,
            "relative_change": _norm(edit, name) / edit.norms[name] if edit.norms[name] else None,
            "before": before,
            "after": after or None,
            "original": name in edit.originals,
        }
    return {
        "format": FORMAT,
        "zerounlearn": edit.version,
        "method": edit.method,
        "hparams": edit.hparams,
        "layers": sorted({layer.layer for layer in edit.layers}),
        "weights": weights,
        "facts": edit.facts,
        "statistics": edit.statistics,
        "later_edits_keep": edit.traces is not None,
        "seconds": edit.seconds,
    }


def _norm(edit: Edit, name: str) -> float:
    """‖W' − W‖; of factors from their Gram matrices, so that nothing of the weight's size is made."""
    if name not in edit.factors:
        return float(edit.changes[name].double().norm())
    left, right = (x.double() for x in edit.factors[name])
    return float(((left.mT @ left) * (right @ right.mT)).sum().clamp(min=0).sqrt())
