"""Weights that accelerate keeps elsewhere between forward passes, in memory or on disk.

Such a parameter is on the meta device. A hook of its module, or of a parent, loads it from a mapping before each
forward pass and drops it afterwards; a `Slot` is its place in that mapping. What is put into a slot is what every
later forward pass and `save_pretrained` see. Files are never written to: with `from_pretrained` they are the
checkpoint's own. A weight that came from a file is held in memory from its first `put` on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where an offloaded parameter is loaded from, and the device on which it computes."""

    device: torch.device
    source: Mapping[str, Tensor]
    name: str

    @property
    def writable(self) -> bool:
        """Whether `put` knows this kind of mapping."""
        return self._store() is not None

    def get(self) -> Tensor:
        """The value as stored: the stored tensor itself where it is in memory, a copy where it is on disk."""
        return self.source[self.name]

    def put(self, value: Tensor) -> None:
        """Replace the value, in its shape, dtype and device; `writable` must hold."""
        store = self._store()
        assert store is not None
        held = store.get(self.name)
        if held is not None:
            held.copy_(value)  # in place: the plain model that was offloaded, or a tied weight, may share it
            return
        old = self.get()
        store[self.name] = torch.empty_like(old).copy_(value)

    def _store(self) -> MutableMapping[str, Tensor] | None:
        if isinstance(self.source, OffloadedWeightsLoader):
            return self.source.state_dict  # which it looks into before any file
        return self.source if isinstance(self.source, MutableMapping) else None


def slot_of(model: nn.Module, parameter: str) -> Slot | None:
    """The slot of a parameter on the meta device, None where no hook of accelerate loads it."""
    owner, _, leaf = parameter.rpartition(".")
    parts = owner.split(".") if owner else []
    for depth in range(len(parts), -1, -1):
        parent, below = ".".join(parts[:depth]), [*parts[depth:], leaf]
        for hook in _hooks(model.get_submodule(parent)):
            if hook.offload and hook.weights_map is not None and (len(below) == 1 or hook.place_submodules):
                source, name = hook.weights_map, ".".join(below)
                while isinstance(source, PrefixedDataset):
                    source, name = source.dataset, source.prefix + name
                return Slot(_device(hook), source, name)
    return None


def computes_on(model: nn.Module, parameter: str) -> torch.device:
    """The device on which a parameter is used, wherever it is kept; meta if nothing loads it."""
    device = model.get_parameter(parameter).device
    slot = slot_of(model, parameter) if device.type == "meta" else None
    return slot.device if slot else device


def _hooks(module: nn.Module) -> Iterator[AlignDevicesHook]:
    hook = getattr(module, "_hf_hook", None)
    for part in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(part, AlignDevicesHook):
            yield part


def _device(hook: AlignDevicesHook) -> torch.device:
    return torch.device("cpu" if hook.execution_device is None else hook.execution_device)
