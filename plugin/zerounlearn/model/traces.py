"""What one edit tells later ones, apart from any model: to be put on a model's lineage with the edit, and taken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerounlearn.model.fingerprint import fingerprints
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage, Trace, lineage_kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Traces:
    """The traces of an edit without what the weights can tell, and where it was made.

    Attributes:
        layers: that were edited.
        templates: EasyEdit's module templates, by which the layers are found.
        left: by weight name, forget keys (n, m) and lost directions (d, r) of each step, in float32.
    """

    layers: list[int]
    templates: dict[str, str]
    left: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    @contextmanager
    def added(self, model: PreTrainedModel) -> Iterator[None]:
        """The body puts the edit on; the model's lineage then is what it was when the edit was made."""
        layout, lineage = self._layout(model), Lineage.of(model)
        earlier = {name: lineage.earlier(name, layout.read(layer)) for layer, name in layout.weight_names.items()}
        with lineage_kept(layout, self.layers):
            yield
        for layer, name in layout.weight_names.items():
            W = _read(layout, layer)
            *before, last = [Trace.of(K.to(W.device), W, D) for K, D in self.left[name]]
            lineage.add(name, [*earlier[name], *before], last, W)

    @contextmanager
    def removed(self, model: PreTrainedModel) -> Iterator[None]:
        """The body takes the edit off; the model's lineage then is what it was before."""
        layout, lineage = self._layout(model), Lineage.of(model)
        held = {name: lineage.traces.get(name, []) for name in layout.weight_names.values()}
        watched = range(min(self.layers), len(layout.blocks))
        edited = fingerprints(layout, watched)
        yield
        original = fingerprints(layout, watched)
        for layer in watched:
            if original[layer] != edited[layer]:
                lineage.origins.pop(edited[layer], None)
        for layer, name in layout.weight_names.items():
            W = _read(layout, layer)
            kept = [Trace.of(t.keys.to(W.device), W, t.directions) for t in held[name] if not self._owns(name, t)]
            lineage.traces.pop(name, None)
            if kept:
                lineage.traces[name] = kept

    def _layout(self, model: PreTrainedModel) -> Layout:
        return Layout.of(model, self.layers, **self.templates)

    def _owns(self, name: str, trace: Trace) -> bool:
        return any(torch.equal(trace.keys, K) for K, _ in self.left[name])


def _read(layout: Layout, layer: int) -> Tensor:
    W = layout.read(layer)
    return W.cpu() if W.device.type == "mps" else W  # which has no float64
