"""What unlearning leaves behind: an edit, which can be taken back, put on again, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from zerounlearn.errors import EditError
from zerounlearn.files import whole_file
from zerounlearn.model.weights import weight_digest, weight_of, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1
"""Of edit files; another number is refused."""


@dataclass(frozen=True)
class LayerOutcome:
    """What was done to one layer, measured on the weight as written.

    `leakage` is ‖QᵀW'K‖/‖QᵀWK‖ (None without a Q), `relative_change` ‖W'−W‖/‖W‖, `rounding` the share of the change
    that the weight's dtype lost, `rank` that of Q, `kept` the number of keys of the retain set and of earlier edits
    that took part, `form` says which problem was solved, `distance` is the mean ‖target − h_L‖ that the layer started
    from.
    """

    layer: int
    leakage: float | None
    relative_change: float
    rounding: float
    rank: int
    kept: int
    form: str
    distance: float


@dataclass
class Edit:
    """The result of unlearning: what changed, what it was made from, how long it took, and how to undo it.

    Attributes:
        method: name of the method.
        hparams: its configuration as plain values.
        before: the changed weights as they were, by parameter name, in the checkpoint's orientation and dtype; empty
            for an edit that was loaded from a file.
        factors: thin factors by parameter name, left (rows, r) and right (r, columns) in float32, whose product is
            the change; only where the change is of low rank.
        changes: the whole change (W' − W) by parameter name, float32, where it is not of low rank.
        digests: of each changed weight, before and after, by parameter name; see `weight_digest`.
        layers: what was done to each layer; empty for methods that do not go by layers.
        seconds: by stage.
        statistics: name of the corpus behind C, and a digest of each layer's C.
        losses: by name, a series of values: a gradient method's terms at every step, or the first and last mean loss
            of z* and V_u, in nats per token.
        prefixes: the contexts that the facts were forgotten behind.
        vectors: z* and V_u, for runs that differ in nothing but how the layers are solved for; not saved.
        undo: what takes the edit back where it is more than weights (EasyEdit's GRACE and WISE wrap modules).
    """

    method: str
    hparams: dict[str, Any]
    before: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    layers: list[LayerOutcome] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    prefixes: list[str] = field(default_factory=list)
    vectors: Any = field(default=None, repr=False)
    undo: Callable[[], None] | None = field(default=None, repr=False)

    def record(self, model: PreTrainedModel, originals: Mapping[str, Tensor]) -> None:
        """Take note of the weights as the method left them; call once, when all are written.

        Args:
            model: the edited model.
            originals: the weights as they were, by parameter name.
        """
        self.before = dict(originals)
        for name, old in originals.items():
            new = weight_of(model, name)
            self.digests[name] = (weight_digest(old), weight_digest(new))
            if name not in self.factors:
                self.changes[name] = (new.to(old.device).double() - old.double()).float().cpu()

    @torch.no_grad()
    def revert(self, model: PreTrainedModel) -> None:
        """Put the weights back as they were, bit for bit.

        An edit that was loaded from a file has no copy of them: it takes its change off and accepts the result only if
        that is what the weights were, to the last bit.

        Raises:
            EditError: the weights are not those that the edit left (a later edit is on top, or it is another model),
                or the originals cannot be had exactly; nothing is changed.
        """
        if self.undo is not None:
            self.undo()
            return
        originals = {}
        for name, (old_digest, new_digest) in self.digests.items():
            now = weight_of(model, name)
            if weight_digest(now) != new_digest:
                raise EditError(
                    f"{name} is not as this edit left it: take back later edits first, or load the model that it was "
                    "made on"
                )
            old = self.before.get(name)
            if old is None:
                old = (now.double() - self._change(name).to(now.device)).to(now.dtype)
            if weight_digest(old) != old_digest:
                raise EditError(
                    f"{name} in {now.dtype} cannot be had exactly by taking the change off again: load the original "
                    "checkpoint"
                )
            originals[name] = old
        write_weights(model, originals)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Make the change on a model whose weights are those that it was made on.

        Afterwards `revert` knows the originals. A weight is the original plus the product of its factors, in float64,
        rounded once: equal to what the method wrote up to the rounding of its dtype.

        Raises:
            EditError: the weights are others; nothing is changed.
        """
        if self.undo is not None:
            raise EditError(f"{self.method} wraps modules: its edit cannot be put on again; run the method")
        edited, originals = {}, {}
        for name, (old_digest, _) in self.digests.items():
            now = weight_of(model, name)
            if weight_digest(now) != old_digest:
                raise EditError(
                    f"{name} is not the weight that this edit was made on ({now.dtype}, {tuple(now.shape)}): load that "
                    "model, unedited, in the same dtype"
                )
            originals[name] = now.clone()
            edited[name] = (now.double() + self._change(name).to(now.device)).to(now.dtype)
        write_weights(model, edited)
        self.before = originals
        self.digests = {n: (self.digests[n][0], weight_digest(value)) for n, value in edited.items()}

    def _change(self, name: str) -> Tensor:
        """W' − W (rows, columns) in float64."""
        if name in self.factors:
            left, right = self.factors[name]
            return left.double() @ right.double()
        return self.changes[name].double()

    def save(self, path: str | Path) -> None:
        """Write the change without the original weights: a safetensors file, no pickles.

        Raises:
            EditError: the edit is more than a change of weights.
            OutputError: the file cannot be written.
        """
        if self.undo is not None:
            raise EditError(f"{self.method} wraps modules: there is no change of weights to save")
        tensors = {f"{name}/change": change for name, change in self.changes.items()}
        for name, (left, right) in self.factors.items():
            tensors |= {f"{name}/left": left, f"{name}/right": right}
        described = {
            "format": FORMAT,
            "method": self.method,
            "hparams": self.hparams,
            "digests": self.digests,
            "layers": [asdict(layer) for layer in self.layers],
            "seconds": self.seconds,
            "statistics": self.statistics,
        }
        stored = serialise(
            {name: value.float().cpu().contiguous() for name, value in tensors.items()},
            metadata={"zerounlearn": json.dumps(described, sort_keys=True, default=str)},
        )
        with whole_file(Path(path), "wb", remedy="name another file or free space") as stream:
            stream.write(stored)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            EditError: the file is missing, damaged, no edit, or of another format.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                described = json.loads(stored.metadata()["zerounlearn"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
            if described["format"] != FORMAT:
                raise EditError(f"{str(path)!r} has format {described['format']}, and this version reads {FORMAT}")
            return cls(
                described["method"],
                described["hparams"],
                factors={
                    name: (tensors[f"{name}/left"], tensors[f"{name}/right"])
                    for name in described["digests"]
                    if f"{name}/left" in tensors
                },
                changes={n: tensors[f"{n}/change"] for n in described["digests"] if f"{n}/change" in tensors},
                digests={name: (old, new) for name, (old, new) in described["digests"].items()},
                layers=[LayerOutcome(**layer) for layer in described["layers"]],
                seconds=described["seconds"],
                statistics=described["statistics"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, EditError):
                raise
            raise EditError(f"{str(path)!r} is no edit, or damaged: {error}") from error
