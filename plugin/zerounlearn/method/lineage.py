"""What earlier edits of the same model object have left behind, for later ones.

Two things must survive an edit: whose statistics the model goes on using (C is taken once, on the unedited
model), and which output directions a layer has lost (W is rank-deficient there, by design). Both are
checked against the weights before they are used, so restoring or replacing weights makes them void.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zerounlearn.core.subspace import orthonormal_basis

_ATTRIBUTE = "_zerounlearn_lineage"
# A direction counts as lost where what W writes along it is below this share of its mean over all directions.
_LOST = 1e-4


@dataclass
class Lineage:
    """`origins` maps fingerprints of edited models to the unedited one's, `removed` weight names to bases (d, p)."""

    origins: dict[str, str] = field(default_factory=dict)
    removed: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Lineage:
        """The model's own; it is copied with the model and dies with it."""
        found = getattr(model, _ATTRIBUTE, None)
        if not isinstance(found, cls):
            found = cls()
            setattr(model, _ATTRIBUTE, found)
        return found

    def lost(self, name: str, W: Tensor) -> Tensor | None:
        """The recorded directions (d, p) of a weight that W (d, m) really lacks, None where there are none."""
        basis = self.removed.get(name)
        if basis is None:
            return None
        basis = basis.to(W.device)
        written = basis.mT @ W.double()
        typical = torch.linalg.norm(W.double()) * (basis.shape[1] / W.shape[0]) ** 0.5
        return basis if torch.linalg.norm(written) < _LOST * typical else None

    def lose(self, name: str, earlier: Tensor | None, Q: Tensor) -> None:
        """Record that a weight has lost the directions Q (d, r), besides those it had lost before."""
        rows = [Q.mT] if earlier is None else [earlier.mT, Q.mT]
        self.removed[name] = orthonormal_basis(torch.cat(rows), rtol=1e-8).cpu()
