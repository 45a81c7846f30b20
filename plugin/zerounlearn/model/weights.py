"""A model's weights by their names, wherever they are kept: read, written, told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zerounlearn.errors import EditError
from zerounlearn.model.hooks import uninterrupted
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.offload import slot_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def weight_digest(weight: Tensor) -> str:
    """A digest of a weight's shape, dtype and every byte."""
    seen = hashlib.blake2b(f"{tuple(weight.shape)} {weight.dtype}".encode(), digest_size=16)
    seen.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    """A parameter's value, wherever it is kept.

    Raises:
        EditError: the model has no such parameter.
    """
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise EditError(f"{type(model).__name__} has no weight {name!r}: the edit was made on another model") from None
    slot = slot_of(model, name) if parameter.is_meta else None
    return slot.get().to(parameter.dtype) if slot is not None else parameter.detach()


def write_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Store weights, and forget what was remembered of edits that are no longer there."""
    with uninterrupted():
        _store(model, values)


@contextmanager
def with_weights(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights inside, those from before outside, bit for bit; what is remembered of edits stays."""
    saved = {name: weight_of(model, name).clone() for name in values}
    try:
        _put(model, values)
        yield
    finally:
        with uninterrupted():
            _put(model, saved)


@torch.no_grad()
def _put(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = model.get_parameter(name)
        slot = slot_of(model, name) if parameter.is_meta else None
        if slot is not None:
            slot.put(value)
        else:
            parameter.copy_(value)


def _store(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    _put(model, values)
    for name in values:
        value = weight_of(model, name)
        turned = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)  # GPT-2 stores Wᵀ
        if name in Lineage.of(model).traces:
            Lineage.of(model).earlier(name, value.mT if turned else value)
