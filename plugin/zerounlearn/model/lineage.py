"""What earlier edits of a model have left behind, for later ones: on the model object, and in a file beside it.

Three things outlive an edit. Whose statistics the model goes on using: C is taken once, on the unedited model. Which
output directions a layer has lost: W is rank-deficient there, by design. And which keys were mapped where: a later
edit must leave them there, or it would bring back what was forgotten. All are checked against the weights before
they are used, so restoring or replacing weights makes them void, and so does loading another checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.errors import OutputError
from zerounlearn.files import whole_file

STATE_FILE = "zerounlearn_state.safetensors"
_ATTRIBUTE = "_zerounlearn_lineage"
# A direction counts as lost where what W writes along it is below this share of its mean over all directions.
_LOST = 1e-4
# An edit counts as present where its keys give its outputs up to this; half-precision weights keep 1e-2 of them.
_PRESENT = 3e-2


@dataclass(frozen=True)
class Trace:
    """One edit of one weight W (d, m): forget keys (n, m), what W wrote for them since (n, d), directions lost (d, r).

    Only KᵀK counts in later solves, so more than m keys are kept as the m x m triangle with the same product.
    """

    keys: Tensor
    outputs: Tensor
    directions: Tensor

    @classmethod
    def of(cls, K: Tensor, W: Tensor, directions: Tensor) -> Trace:
        """Of the weight as written, in float32 on the CPU."""
        K = K.double()
        if K.shape[0] > K.shape[1]:
            K = torch.linalg.qr(K, mode="r").R
        return cls(*(x.float().cpu().contiguous() for x in (K, K @ W.double().mT, directions)))

    def present(self, W: Tensor) -> bool:
        """Whether a weight maps the keys as this edit left them."""
        K, M = self.keys.to(W.device), self.outputs.to(W.device)
        return bool(torch.linalg.norm(K @ W.float().mT - M) <= _PRESENT * torch.linalg.norm(M))


@dataclass
class Lineage:
    """`origins` maps fingerprints of edited models to the unedited one's, `traces` weight names to their edits."""

    origins: dict[str, str] = field(default_factory=dict)
    traces: dict[str, list[Trace]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Lineage:
        """The model's own, at first read from beside its checkpoint; it is copied with the model and dies with it."""
        found = getattr(model, _ATTRIBUTE, None)
        if not isinstance(found, cls):
            folder = getattr(getattr(model, "config", None), "_name_or_path", "")
            found = cls.load(Path(folder)) if folder else cls()
            setattr(model, _ATTRIBUTE, found)
        return found

    @classmethod
    def load(cls, folder: Path) -> Lineage:
        """What `save` left in a checkpoint's folder; an empty one where there is nothing.

        Raises:
            OutputError: the file is damaged.
        """
        file = folder / STATE_FILE
        if not file.is_file():
            return cls()
        try:
            with safe_open(file, framework="pt") as stored:
                described = json.loads(stored.metadata()["zerounlearn"])
                traces = {
                    name: [
                        Trace(*(stored.get_tensor(f"{name}/{i}/{part}") for part in ("keys", "outputs", "directions")))
                        for i in range(count)
                    ]
                    for name, count in described["edits"].items()
                }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OutputError(
                f"{str(file)!r} is damaged ({error}): it remembers what this model has forgotten; restore it, or "
                "delete it to go on without"
            ) from error
        return cls(dict(described["origins"]), traces)

    def save(self, folder: Path) -> None:
        """Write the state beside a checkpoint; without a single edit nothing is written.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.traces:
            return
        tensors = {
            f"{name}/{i}/{part}": getattr(trace, part)
            for name, traces in self.traces.items()
            for i, trace in enumerate(traces)
            for part in ("keys", "outputs", "directions")
        }
        described = {"edits": {name: len(traces) for name, traces in self.traces.items()}, "origins": self.origins}
        stored = save(tensors, metadata={"zerounlearn": json.dumps(described, sort_keys=True)})
        with whole_file(folder / STATE_FILE, "wb", remedy="name another folder or free space") as stream:
            stream.write(stored)

    def earlier(self, name: str, W: Tensor) -> list[Trace]:
        """The edits that a weight W (d, m) really holds; others are forgotten here and now."""
        held = [trace for trace in self.traces.get(name, []) if trace.present(W)]
        if name in self.traces:
            self.traces[name] = held
        return held

    def lost(self, name: str, W: Tensor) -> Tensor | None:
        """The recorded directions (d, p) of a weight that W (d, m) really lacks, None where there are none."""
        typical = torch.linalg.norm(W.double()) / W.shape[0] ** 0.5
        found = [
            D
            for D in (trace.directions.to(W.device).double() for trace in self.traces.get(name, []))
            if D.shape[1] and torch.linalg.norm(D.mT @ W.double()) < _LOST * typical * D.shape[1] ** 0.5
        ]
        return orthonormal_basis(torch.cat(found, dim=1).mT, rtol=1e-6) if found else None

    def add(self, name: str, earlier: Sequence[Trace], trace: Trace, W: Tensor) -> None:
        """Record an edit, with what the weight as written now gives for the keys of those before."""
        self.traces[name] = [*(Trace.of(t.keys.to(W.device), W, t.directions) for t in earlier), trace]
