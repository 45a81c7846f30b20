"""A base model and one that was edited from it, in one set of modules: only the weights that differ are kept twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zerounlearn.errors import AuditError
from zerounlearn.method.edit import Edit
from zerounlearn.model.weights import weight_of, with_weights


@dataclass(frozen=True)
class Pair:
    """Two models of one architecture.

    Attributes:
        model: the edited one.
        original: the base model's values of the weights that differ, by parameter name.
    """

    model: PreTrainedModel
    original: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, model: PreTrainedModel, base: PreTrainedModel | Edit) -> Pair:
        """From an edited model, and the base model or the edit that is on it.

        Raises:
            AuditError: the edit is not on the model or does not know the originals, the models differ in their
                weights' names or shapes, or in no weight at all.
        """
        if isinstance(base, Edit):
            if base.undo is not None:
                raise AuditError(f"{base.method} wraps modules: its edit cannot be audited as a change of weights")
            if not base.is_on(model):
                raise AuditError("the edit is not on the model: apply it first, or pass the base model")
            if set(base.before) != set(base.digests):
                raise AuditError("the edit does not know the weights that it was made on: apply it to them, then audit")
            return cls(model, dict(base.before))
        own, others = dict(model.named_parameters()), dict(base.named_parameters())
        shapes = [{name: tuple(p.shape) for name, p in each.items()} for each in (own, others)]
        if odd := sorted(name for name in {*own, *others} if shapes[0].get(name) != shapes[1].get(name)):
            raise AuditError(
                f"the edited model and its base are of different architectures: {odd[0]} is {shapes[0].get(odd[0])} in "
                f"the one and {shapes[1].get(odd[0])} in the other; name the model that it was edited from"
            )
        changed = {}
        for name in own:
            now, old = weight_of(model, name), weight_of(base, name).to(own[name].dtype)
            if not torch.equal(now.cpu(), old.cpu()):
                changed[name] = old.detach().clone()
        if not changed:
            raise AuditError("the edited model has the base model's weights, every one: nothing was forgotten in them")
        return cls(model, changed)

    @contextmanager
    def as_base(self) -> Iterator[PreTrainedModel]:
        """The model with the base's weights inside, bit for bit as before outside."""
        with with_weights(self.model, self.original):
            yield self.model


def between(edited: Mapping[str, Tensor], original: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) of edited weights and alpha of the original ones, by name, float64; alpha < 0 stretches the edit."""
    return {
        name: edited[name].double().lerp(old.to(edited[name].device).double(), alpha) for name, old in original.items()
    }
