"""What the cells were run with, each setting once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def settings(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Hyperparameters by method label, then by name; see `merged`."""
    methods = dict.fromkeys(cell["cell"]["method"] for cell in cells)
    return {
        label: {"algorithm": _joined(c["cell"]["algorithm"] for c in own)} | merged(c.get("hparams") or {} for c in own)
        for label in methods
        if (own := [c for c in cells if c["cell"]["method"] == label])
    }


def environment(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Versions, device and the like, and the fingerprint of the weights that every cell starts from."""
    weights = _joined(c["weights"] for c in cells if c.get("weights"))
    return merged(c.get("environment") or {} for c in cells) | ({"weights": weights} if weights else {})


def merged(mappings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Every key of any mapping, with its values: one where all agree, else each distinct one, parted by " | "."""
    values: dict[str, list[Any]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            values.setdefault(key, []).append(value)
    return {key: _joined(values[key]) for key in sorted(values)}


def _joined(values: Iterable[Any]) -> str:
    return " | ".join(sorted({_text(value) for value in values}))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
