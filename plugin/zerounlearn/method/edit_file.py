"""An edit as one safetensors file, written whole, and read only if it is whole.

The file's description says which tensors there are and a digest covers every byte of them, so that what is damaged,
cut short, added or left out is refused before any model is looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from zerounlearn.core.factors import scaled_to_half
from zerounlearn.data.request import fact_digest
from zerounlearn.errors import EditError, RequestError
from zerounlearn.files import whole_file
from zerounlearn.method.edit import Edit, LayerOutcome
from zerounlearn.model.traces import Traces

FORMAT = 2
"""Of edit files; another number is refused."""

_KEY = "zerounlearn"
_PLAIN = ("method", "hparams", "digests", "seconds", "statistics", "steps", "norms", "facts", "version")
_NAMED = re.compile(r"(?P<weight>.+)/(?P<part>left|right|change|fixes|originals|(keys|directions)\.\d+)")
_BYTES = ("fixes", "originals")


def write_edit(edit: Edit, path: Path, *, originals: bool, key: bytes | None) -> None:
    """See `Edit.save`."""
    if edit.undo is not None:
        raise EditError(f"{edit.method} wraps modules: there is no change of weights to save")
    if key is not None and not edit.requests:
        raise RequestError("a key for the facts' digests is given, and an edit from a file knows no facts in clear")
    facts = edit.facts if key is None else [fact_digest(request, key) for request in edit.requests]
    tensors = _packed(_tensors(edit, edit.with_originals() if originals else {}))
    described = {name: getattr(edit, name) for name in _PLAIN} | {
        "format": FORMAT,
        "facts": facts,
        "layers": [asdict(layer) for layer in edit.layers],
        "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in edit.dtypes.items()},
        "traces": None if edit.traces is None else {"layers": edit.traces.layers, "templates": edit.traces.templates},
        "tensors": {name: [str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in tensors.items()},
    }
    text = json.dumps(described, sort_keys=True, default=str)
    stored = serialise(tensors, metadata={_KEY: text, "digest": _digest(text, tensors)})
    with whole_file(path, "wb", remedy="name another file or free space") as stream:
        stream.write(stored)


def read_edit(path: Path) -> Edit:
    """See `Edit.load`."""
    try:
        described, tensors = _read(path)
        return _edit(described, tensors)
    except EditError as error:
        raise EditError(f"{str(path)!r} {error}") from error
    except OSError as error:
        raise EditError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EditError(f"{str(path)!r} is no edit, or damaged ({error}): copy it again, or make it again") from error


def is_edit(path: Path) -> bool:
    """Whether a file is one that `write_edit` wrote; nothing but its header is looked at."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {_KEY, "digest"} <= set(stored.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return False


def _tensors(edit: Edit, originals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a file by its name there; rows of factors are components."""
    found = {f"{name}/change": change for name, change in edit.changes.items()}
    for name, (left, right) in edit.factors.items():
        found |= {f"{name}/left": left.mT, f"{name}/right": right}
    for name, steps in (edit.traces.left if edit.traces is not None else {}).items():
        for i, (keys, directions) in enumerate(steps):
            found |= {f"{name}/keys.{i}": keys, f"{name}/directions.{i}": directions.mT}
    found |= {f"{name}/fixes": value for name, value in edit.fixes.items()}
    return found | {f"{name}/originals": value for name, value in originals.items()}


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows in float16 with their exponents where nothing is lost by it; all else as it is."""
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.cpu().contiguous()
        if value.dtype == torch.float32 and value.ndim == 2 and value.numel():
            half, exponents = scaled_to_half(value)
            if torch.equal(torch.ldexp(half.float(), exponents[:, None].int()), value):
                packed |= {name: half.contiguous(), f"{name}.exponents": exponents}
                continue
        packed[name] = value
    return packed


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors that it names, whole."""
    if not path.exists():
        raise EditError("does not exist")
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata() or {}
        if _KEY not in metadata:
            raise EditError("is a safetensors file, but no edit: it may be a checkpoint")
        described = json.loads(metadata[_KEY])
        if described["format"] != FORMAT:
            raise EditError(
                f"has format {described['format']}, and zerounlearn {Edit.version} reads {FORMAT}: install the "
                f"version that made it ({described.get('version', 'an earlier one')}), or make the edit again"
            )
        names, listed = set(stored.keys()), set(described["tensors"])
        if names != listed:
            lacking, extra = sorted(listed - names), sorted(names - listed)
            raise EditError(f"lacks the tensor {lacking[0]}" if lacking else f"has a tensor too many: {extra[0]}")
        tensors = {name: stored.get_tensor(name) for name in sorted(names)}
    for name, (dtype, shape) in described["tensors"].items():
        found = tensors[name]
        if list(found.shape) != shape or str(found.dtype) != f"torch.{dtype}":
            raise EditError(f"is damaged: {name} is {found.dtype} {list(found.shape)}, not {dtype} {shape}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise EditError(f"is damaged: {name} is not finite")
    if _digest(metadata[_KEY], tensors) != metadata["digest"]:
        raise EditError("is damaged: its content is not what was written: copy it again, or make it again")
    return described, tensors


def _edit(described: Mapping[str, Any], packed: Mapping[str, Tensor]) -> Edit:
    """The edit of a file, every name and shape checked against the others."""
    tensors = {name: _unpacked(name, packed) for name in packed if not name.endswith(".exponents")}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if (match := _NAMED.fullmatch(name)) is None or match["weight"] not in described["digests"]:
            raise EditError(f"has a tensor too many: {name}")
        parts.setdefault(match["weight"], {})[match["part"]] = value
    for name in described["digests"]:
        _check_parts(name, parts.get(name, {}), described)
    traces = described["traces"]
    return Edit(
        **{name: described[name] for name in _PLAIN if name != "digests"},
        digests={name: (old, new) for name, (old, new) in described["digests"].items()},
        dtypes={name: getattr(torch, dtype) for name, dtype in described["dtypes"].items()},
        layers=[LayerOutcome(**layer) for layer in described["layers"]],
        factors={n: (p["left"].mT.contiguous(), p["right"]) for n, p in parts.items() if "left" in p},
        changes={n: p["change"] for n, p in parts.items() if "change" in p},
        fixes={n: p["fixes"] for n, p in parts.items() if "fixes" in p},
        originals={n: p["originals"] for n, p in parts.items() if "originals" in p},
        traces=None if traces is None else Traces(traces["layers"], traces["templates"], _left(parts)),
    )


def _unpacked(name: str, packed: Mapping[str, Tensor]) -> Tensor:
    value, exponents = packed[name], packed.get(f"{name}.exponents")
    return value if exponents is None else torch.ldexp(value.float(), exponents[:, None].int())


def _left(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    found = {}
    for name, own in parts.items():
        count = sum(part.startswith("keys.") for part in own)
        if count:
            found[name] = [(own[f"keys.{i}"], own[f"directions.{i}"].mT.contiguous()) for i in range(count)]
    return found


def _check_parts(name: str, parts: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Refuse a weight whose tensors are not those of one change."""
    if ("change" in parts) == ("left" in parts or "right" in parts) or ("left" in parts) != ("right" in parts):
        raise EditError(f"lacks a tensor of {name}: expected left and right, or change")
    for part, value in parts.items():
        ranks = {"change": value.ndim, "fixes": 1, "originals": 1}
        if value.ndim != ranks.get(part, 2) or value.is_floating_point() == (part in _BYTES):
            raise EditError(f"is damaged: {name}/{part} is {value.dtype} {list(value.shape)}")
    if "left" in parts:
        rank = len(parts["left"])
        if not rank == len(parts["right"]) == sum(described["steps"][name]):
            raise EditError(f"is damaged: the factors of {name} do not fit together")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits over the description and every byte of the tensors."""
    seen = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        flat = tensors[name].contiguous().reshape(-1).view(torch.uint8)
        seen.update(f"{name} {math.prod(tensors[name].shape)};".encode())
        seen.update(flat.numpy().data)
    return seen.hexdigest()
