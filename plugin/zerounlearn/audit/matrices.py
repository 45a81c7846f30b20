"""The weight matrices of a decoder's blocks, and the same model with all of them changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zerounlearn.errors import AuditError
from zerounlearn.method.gradient.adapters import linear_layers
from zerounlearn.model.weights import weight_of, with_weights

Change = Callable[[str, Tensor], Tensor]
"""From a matrix's name and its value (out, in), which is not to be written to, to another of that shape."""


def matrices(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear module but the head, by the name of its weight: what libraries round and prune.

    Raises:
        AuditError: there is none of floating point.
    """
    modules = {f"{name}.weight": model.get_submodule(name) for name in linear_layers(model)}
    found = {name: module for name, module in modules.items() if model.get_parameter(name).is_floating_point()}
    if not found:
        raise AuditError(f"{type(model).__name__} has no linear layers of floating point beside its head")
    return found


@contextmanager
def changed(model: PreTrainedModel, names: Iterable[str], change: Change) -> Iterator[None]:
    """The named matrices changed inside, bit for bit as before outside; one more copy of each is held, not two."""
    with with_weights(model, _Changed(model, tuple(names), change)):
        yield


class _Changed(Mapping[str, Tensor]):
    """The new weights, each made when it is asked for, in the checkpoint's orientation and dtype."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...], change: Change) -> None:
        self.model, self.names, self.change = model, names, change

    def __getitem__(self, name: str) -> Tensor:
        stored = weight_of(self.model, name)
        turned = isinstance(self.model.get_submodule(name.rpartition(".")[0]), Conv1D)  # GPT-2 stores Wᵀ
        W = self.change(name, stored.mT if turned else stored)
        return (W.mT if turned else W).to(stored.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
