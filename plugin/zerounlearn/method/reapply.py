"""An edit's change put on a model that descends from the one it was made on, and how far that has moved since."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerounlearn.core.finite import is_finite
from zerounlearn.errors import EditError
from zerounlearn.method.edit import Edit
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.weights import weight_digest, weight_of, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a change; fine-tuning by itself hardly moves a weight along one.
_THERE = 0.5


@dataclass(frozen=True)
class Moved:
    """One weight of a model that an edit is to be replayed on, before that.

    Attributes:
        name: of the parameter.
        change: ‖ΔW‖/‖W‖, the edit's change against the weight.
        moved: ‖W − W₀‖/‖W₀‖, against the weight that the edit was made on; None where that is not at hand.
        held: ⟨W − W₀, ΔW⟩/‖ΔW‖², the share of the change that the weight has already; None likewise.
    """

    name: str
    change: float
    moved: float | None = None
    held: float | None = None


def check_replayable(edit: Edit, model: PreTrainedModel) -> None:
    """Compare names and shapes; a model without weights will do.

    Raises:
        EditError: the edit is more than a change of weights, or of another architecture.
    """
    if edit.undo is not None:
        raise EditError(f"{edit.method} wraps modules: its edit cannot be replayed; run the method on the model")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not edit.names:
        raise EditError(f"this edit by {edit.method} changes no weight: there is nothing to replay")
    for name in edit.names:
        shape = edit.shape_of(name)
        if shapes.get(name) != shape:
            found = f"is {shapes[name]}" if name in shapes else "is not there"
            raise EditError(f"{name} {found} in the model, {shape} in the edit: replay takes the same architecture")


@torch.no_grad()
def moved(edit: Edit, model: PreTrainedModel, parent: PreTrainedModel | None = None) -> tuple[Moved, ...]:
    """How far each weight is from the one that the edit was made on: by the edit's own copy, by `parent`, or by digest.

    Args:
        edit: to be replayed.
        model: on which.
        parent: the model that the edit was made on.

    Raises:
        EditError: the edit fits neither model, `parent` is not the edit's, or `model` has the change already.
    """
    check_replayable(edit, model)
    rows, along, square = [], 0.0, 0.0
    for name in edit.names:
        now, change = weight_of(model, name), edit.change_of(name)
        old_digest, new_digest = edit.digests.get(name, ("", ""))
        digest = weight_digest(now)
        if digest == new_digest:
            raise EditError(f"{name} is as this edit left it: the model has the edit already")
        old = now if digest == old_digest else edit.before.get(name)
        if old is None and parent is not None:
            old = weight_of(parent, name)
            if old_digest and weight_digest(old) != old_digest:
                raise EditError(
                    f"{name} of the parent is not the weight that this edit was made on: name its own model"
                )
        norm, share = _norm(change), _norm(change) / _norm(now.double())
        if old is None or not norm:
            rows.append(Moved(name, share))
            continue
        start = old.double().cpu()
        gap = now.double().cpu() - start
        inner = float((gap * change).sum())
        along, square = along + inner, square + norm**2
        rows.append(Moved(name, share, _norm(gap) / _norm(start), inner / norm**2))
    if square and along > _THERE * square:
        raise EditError(f"the model has {along / square:.0%} of this edit's change already: replay it on another")
    return tuple(rows)


@torch.no_grad()
def reapply(edit: Edit, model: PreTrainedModel) -> Edit:
    """Add an edit's change to whatever the weights are now, as it was added; later edits of the model know of it.

    Returns:
        The edit of this model, which `revert` takes off it bit for bit.

    Raises:
        EditError: another architecture, or a weight that does not fit its dtype; the weights are as they were.
    """
    check_replayable(edit, model)
    made = replace(edit, before={}, digests={}, changes={}, fixes={}, originals={}, dtypes={}, norms={}, layers=[])
    change = replace(edit, fixes={})  # they are of the weights that it was made on
    originals, edited = {}, {}
    for name in edit.names:
        now = weight_of(model, name)
        originals[name], edited[name] = now.clone(), change.after(name, now)
        if not is_finite(edited[name]):
            raise EditError(f"{name} with the change does not fit {now.dtype}: load the model in bfloat16 or float32")
    with restored_if_it_fails(model, list(originals)), ExitStack() as stack:
        if edit.traces is not None:
            stack.enter_context(edit.traces.added(model))
        write_weights(model, edited)
        made.record(model, originals)
    return made


def _norm(value: Tensor) -> float:
    return float(torch.linalg.norm(value))
