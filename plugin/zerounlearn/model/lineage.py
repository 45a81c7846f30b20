"""What earlier edits of a model have left behind, for later ones: on the model object, and in a file beside its folder.

Three things outlive an edit. Whose statistics the model goes on using: C is taken once, on the unedited model. Which
output directions a layer has lost: W is rank-deficient there, by design. And which keys were mapped where: a later
edit must leave them there, or it would bring back what was forgotten. All are checked against the weights before
they are used, so restoring or replacing weights makes them void, and so does loading another checkpoint.

An origin says where a statistic may be *read*. What is written carries the fingerprint of the weights that ran.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zerounlearn.core.factors import for_weights_of
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.errors import OutputError
from zerounlearn.files import MARKER, whole_file, whole_folder
from zerounlearn.model.fingerprint import fingerprints
from zerounlearn.model.layout import Layout

STATE_FILE = "zerounlearn_state.safetensors"
_PARTS = ("keys", "outputs", "directions")

log = logging.getLogger(__name__)

_ATTRIBUTE = "_zerounlearn_lineage"
# A direction counts as lost where what W writes along it is below this share of its mean over all directions.
_LOST = 1e-4
# An edit counts as present where its keys give its outputs up to this; half-precision weights keep 1e-2 of them.
_PRESENT = 3e-2


def state_file(folder: Path) -> Path:
    """Where the state of a checkpoint lies: beside its folder, since it tells more of what was forgotten than that."""
    place = Path(os.path.abspath(folder))
    return place.with_name(f"{place.name}-{STATE_FILE}") if place.name else place / STATE_FILE


def set_state_aside(folder: Path) -> None:
    """Move the state out of a checkpoint's folder when that is finished; until then it is found inside.

    Raises:
        OutputError: it cannot be moved.
    """
    inside, beside, marker = folder / STATE_FILE, state_file(folder), folder / MARKER
    try:
        if not inside.exists():
            beside.unlink(missing_ok=True)  # of a checkpoint that had this name before
            return
        if marker.is_file():
            with whole_file(marker, "w", remedy="") as stream:
                stream.write(json.dumps({**json.loads(marker.read_text(encoding="utf-8")), "edited": True}) + "\n")
        os.replace(inside, beside)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot move {str(inside)!r} to {str(beside)!r}: {error}; move it yourself") from error


@contextmanager
def whole_checkpoint(
    path: Path, *, overwrite: bool = False, inputs: Mapping[str, Path] | None = None
) -> Iterator[Path]:
    """`whole_folder` for a checkpoint, whose state ends beside it."""
    with whole_folder(path, overwrite=overwrite, inputs=inputs) as folder:
        yield folder
    set_state_aside(path)


def _was_edited(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8")).get("edited"))
    except (OSError, ValueError, AttributeError):
        return False


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
        """Of the weight as written, in float32 on the CPU; directions along which it still writes are left out."""
        K = K.double()
        if K.shape[0] > K.shape[1]:
            K = torch.linalg.qr(K, mode="r").R
        K = for_weights_of(W.dtype, K).double()  # so that a file can hold it in few bytes, and nothing is lost there
        if not _lacks(W, directions):
            directions = directions[:, :0]
        return cls(*(x.float().cpu().contiguous() for x in (K, K @ W.double().mT, directions)))

    def present(self, W: Tensor) -> bool:
        """Whether a weight maps the keys as this edit left them."""
        K, M = self.keys.to(W.device), self.outputs.to(W.device)
        return bool(torch.linalg.norm(K @ W.float().mT - M) <= _PRESENT * torch.linalg.norm(M))


@dataclass
class Lineage:
    """What a model's edits have left behind.

    Attributes:
        origins: fingerprints of edited weights to those of the weights whose statistics they go on using.
        traces: weight names to their edits.
        file: where it was read from; empty where it began in this process.
    """

    origins: dict[str, str] = field(default_factory=dict)
    traces: dict[str, list[Trace]] = field(default_factory=dict)
    file: str = ""

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
        """What `save` left of a checkpoint, in its folder or beside it; an empty one where there is nothing.

        Raises:
            OutputError: the file is damaged.
        """
        file = next((file for file in (folder / STATE_FILE, state_file(folder)) if file.exists()), None)
        if file is None:
            if _was_edited(folder):
                log.warning(
                    "%s was edited by zerounlearn, and %s is not there: later edits do not keep what it has forgotten; "
                    "put the file there to have it kept",
                    folder,
                    state_file(folder),
                )
            return cls()
        try:
            if not file.is_file():
                raise ValueError("it is not a file")
            with safe_open(file, framework="pt") as stored:
                found = _read_state(stored)
        except Exception as error:  # safetensors, json and torch raise too many kinds to list
            raise OutputError(
                f"{str(file)!r} is damaged ({_shortened(error)}): it remembers what this model has forgotten; restore "
                "it, or delete it to go on without"
            ) from error
        found.file = str(file)
        return found

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint's folder; without a single edit nothing is written.

        A finished checkpoint has it beside it instead, see `set_state_aside`.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.traces and not self.origins:
            return
        tensors = {
            f"{name}/{i}/{part}": getattr(trace, part)
            for name, traces in self.traces.items()
            for i, trace in enumerate(traces)
            for part in _PARTS
        }
        described = {"edits": {name: len(traces) for name, traces in self.traces.items()}, "origins": self.origins}
        stored = save(tensors, metadata={"zerounlearn": json.dumps(described, sort_keys=True)})
        with whole_file(folder / STATE_FILE, "wb", remedy="name another folder or free space") as stream:
            stream.write(stored)

    def earlier(self, name: str, W: Tensor) -> list[Trace]:
        """The edits that a weight W (d, m) really holds; others are forgotten here and now, with a warning.

        Raises:
            OutputError: the state is of a weight of another shape.
        """
        self._check_shape(name, tuple(W.shape))
        held = [trace for trace in self.traces.get(name, []) if trace.present(W)]
        given = self.traces.get(name, [])
        if self.file and len(held) < len(given):
            log.warning(
                "%s: %d of the %d edits that %r remembers are not in the weight, and are not kept: it was changed "
                "since, or is another checkpoint's",
                name,
                len(given) - len(held),
                len(given),
                self.file,
            )
        if name in self.traces:
            self.traces[name] = held
        return held

    def check_fits(self, model: nn.Module) -> None:
        """Compare names and shapes with a model's weights, which may be on the meta device.

        Raises:
            OutputError: the state is another model's.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for name in self.traces:
            shape = shapes.get(name, ())
            # GPT-2's Conv1D lies the other way round.
            owner = model.get_submodule(name.rpartition(".")[0]) if shape else None
            self._check_shape(name, shape[::-1] if isinstance(owner, Conv1D) else shape)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        for trace in self.traces.get(name, ()):
            held = trace.outputs.shape[1], trace.keys.shape[1]
            if held != shape:
                raise OutputError(
                    f"{self.file!r} holds edits of {name} of shape {held}, the model's is {shape or 'not there'}: it "
                    "is another model's; delete it to go on without"
                )

    def lost(self, name: str, W: Tensor) -> Tensor | None:
        """The recorded directions (d, p) of a weight that W (d, m) really lacks, None where there are none."""
        found = [
            D.to(W.device).double()
            for D in (trace.directions for trace in self.traces.get(name, []))
            if D.shape[1] and _lacks(W, D)
        ]
        return orthonormal_basis(torch.cat(found, dim=1).mT, rtol=1e-6) if found else None

    def add(self, name: str, earlier: Sequence[Trace], trace: Trace, W: Tensor) -> None:
        """Record an edit, with what the weight as written now gives for the keys of those before."""
        self.traces[name] = [*(Trace.of(t.keys.to(W.device), W, t.directions) for t in earlier), trace]


@contextmanager
def lineage_kept(layout: Layout, layers: Sequence[int]) -> Iterator[None]:
    """Remember, when the body has edited the weights of `layers`, whose statistics the edited model goes on using.

    They are those of the model before, or those that it went on using itself. All layers from the first edited one on
    are remembered, since a later edit may choose others.
    """
    watched = range(min(layers), len(layout.blocks))
    before = fingerprints(layout, watched)
    yield
    after = fingerprints(layout, watched)
    origins = Lineage.of(layout.model).origins
    for layer in watched:
        if after[layer] != before[layer]:
            origins[after[layer]] = origins.get(before[layer], before[layer])


def _read_state(stored: Any) -> Lineage:
    """The state in an opened file, every name, type, rank, shape and number of it checked.

    Raises:
        Exception: of any kind, saying what is wrong.
    """
    described = json.loads(stored.metadata()["zerounlearn"])
    origins, edits = described["origins"], described["edits"]
    if not _maps(origins, str) or not _maps(edits, int):
        raise ValueError("its description has entries of another type")
    if sum(edits.values()) * len(_PARTS) != len(stored.keys()) or min(edits.values(), default=1) < 1:
        raise ValueError("the tensors are not those that it describes")
    traces = {
        name: [Trace(*(stored.get_tensor(f"{name}/{i}/{part}") for part in _PARTS)) for i in range(count)]
        for name, count in edits.items()
    }
    for name, held in traces.items():
        shapes = {(t.outputs.shape[-1], t.keys.shape[-1]) for t in held}
        if len(shapes) != 1 or not all(_sound(trace) for trace in held):
            raise ValueError(f"the tensors of {name!r} are not finite float32 matrices of matching shapes")
    return Lineage(dict(origins), traces)


def _lacks(W: Tensor, directions: Tensor) -> bool:
    """Whether a weight W (d, m) writes nothing along directions (d, r), up to rounding."""
    typical = torch.linalg.norm(W.double()) / W.shape[0] ** 0.5
    along = torch.linalg.norm(directions.to(W.device).double().mT @ W.double())
    return bool(along <= _LOST * typical * directions.shape[1] ** 0.5)


def _maps(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(v) is kind for v in value.values())


def _sound(trace: Trace) -> bool:
    K, M, D = trace.keys, trace.outputs, trace.directions
    return (
        all(x.dtype == torch.float32 and x.ndim == 2 and bool(torch.isfinite(x).all()) for x in (K, M, D))
        and K.shape[0] == M.shape[0]
        and M.shape[1] == D.shape[0]
    )


def _shortened(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:199] + "…"
