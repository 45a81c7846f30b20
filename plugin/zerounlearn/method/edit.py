"""What unlearning leaves behind: an edit, which can be taken back, put on again, merged, and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zerounlearn.core.bits import difference, moved
from zerounlearn.core.factors import added, moved_by
from zerounlearn.core.solve import distance
from zerounlearn.data.request import Request, fact_digest
from zerounlearn.errors import EditError
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.traces import Traces
from zerounlearn.model.weights import weight_digest, weight_of, write_weights
from zerounlearn.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    A weight after the edit is the one before plus the product of its factors (or its change), added up in one order in
    float64 and rounded once (`core.factors.added`), so that an edit gives the same bits on every machine.

    Attributes:
        method: name of the method.
        hparams: its configuration as plain values.
        before: the changed weights as they were, by parameter name, in the checkpoint's orientation and dtype; empty
            for an edit that was loaded from a file.
        factors: thin factors by parameter name, left (rows, r) and right (r, columns) in float32, whose product is
            the change; only where the change is of low rank.
        steps: how many columns of the factors were added before each rounding, by parameter name: one number for an
            edit of one site, one a site or a merged edit otherwise.
        changes: the whole change (W' − W) by parameter name, float32, where it is not of low rank.
        digests: of each changed weight, before and after, by parameter name; see `weight_digest`. The second is ""
            in an edit that was merged from two and not put on yet.
        layers: what was done to each layer; empty for methods that do not go by layers.
        seconds: by stage.
        statistics: name of the corpus behind C, and a digest of each layer's C.
        losses: by name, a series of values: a gradient method's terms at every step, or the first and last mean loss
            of z* and V_u, in nats per token.
        prefixes: the contexts that the facts were forgotten behind.
        requests: what was forgotten, in clear; not saved.
        facts: a digest of each fact, see `fact_digest`; of the requests, until `save` is given a key.
        traces: what later edits of the model must know of this one; None for methods that do not look.
        fixes: by parameter name, what rounding the sum is off by (`core.bits`); empty but for whole changes.
        originals: by parameter name, what taking the change off is off by; only in an edit whose file carries it.
        dtypes: of the changed weights, by parameter name.
        norms: ‖W‖ of the changed weights before the edit, by parameter name.
        version: of this package, that made the edit.
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
    steps: dict[str, list[int]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    requests: Sequence[Request] = field(default=(), repr=False)
    facts: list[str] = field(default_factory=list)
    traces: Traces | None = field(default=None, repr=False)
    fixes: dict[str, Tensor] = field(default_factory=dict, repr=False)
    originals: dict[str, Tensor] = field(default_factory=dict, repr=False)
    version: str = __version__
    vectors: Any = field(default=None, repr=False)
    undo: Callable[[], None] | None = field(default=None, repr=False)

    def forgot(self, requests: Sequence[Request]) -> None:
        """Take note of what was forgotten."""
        self.requests, self.facts = list(requests), [fact_digest(request) for request in requests]

    @torch.no_grad()
    def add_factors(self, name: str, left: Tensor, right: Tensor) -> None:
        """One more step of a weight's change: factors in the checkpoint's orientation, as they were added."""
        left, right = left.cpu(), right.cpu()
        if name in self.factors:
            earlier_left, earlier_right = self.factors[name]
            left, right = torch.cat([earlier_left, left], dim=1), torch.cat([earlier_right, right])
        self.steps.setdefault(name, []).append(len(right) - sum(self.steps.get(name, ())))
        self.factors[name] = left.contiguous(), right.contiguous()

    @torch.no_grad()
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
            self.dtypes[name], self.norms[name] = new.dtype, distance(old, None)
            if name in self.factors:  # whose sum is what was written
                self.steps.setdefault(name, [len(self.factors[name][1])])
                continue
            self.changes[name] = (new.to(old.device).double() - old.double()).float().cpu()
            made = self.after(name, old)
            if weight_digest(made) != self.digests[name][1]:
                self.fixes[name] = difference(made, new)

    def is_on(self, model: PreTrainedModel) -> bool:
        """Whether a model's weights are as this edit left them."""
        return bool(self.digests) and all(
            weight_digest(weight_of(model, name)) == after for name, (_, after) in self.digests.items()
        )

    @torch.no_grad()
    def revert(self, model: PreTrainedModel) -> None:
        """Put the weights back as they were, bit for bit.

        An edit that was loaded from a file has no copy of them: it takes its change off, corrects the result by what
        the file has in `originals`, and accepts only what the weights were, to the last bit.

        Raises:
            EditError: the weights are not those that the edit left (a later edit is on top, or it is another model),
                or the originals cannot be had exactly; nothing is changed.
        """
        if self.undo is not None:
            self.undo()
            return
        self.check_fits(model)
        originals = {}
        for name, (old_digest, new_digest) in self.digests.items():
            now = weight_of(model, name)
            # An edit that was merged, and saved before it was put on, knows only what it goes on.
            if new_digest and weight_digest(now) != new_digest:
                raise EditError(
                    f"{name} is not as this edit left it: take back later edits first, or load the model that it was "
                    "made on"
                )
            old = self.before.get(name)
            if old is None:
                old = self._backward(name, now)
            if weight_digest(old) != old_digest:
                raise EditError(
                    f"{name} in {now.dtype} cannot be had exactly by taking the change off again: load the original "
                    "checkpoint, or save edits with their originals (`originals=True`, --originals)"
                )
            originals[name] = old
        with restored_if_it_fails(model, list(originals)), ExitStack() as stack:
            if self.traces is not None:
                stack.enter_context(self.traces.removed(model))
            write_weights(model, originals)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Make the change on a model whose weights are those that it was made on, to the bit that the method wrote.

        Afterwards `revert` knows the originals, and later edits of the model know of this one.

        Raises:
            EditError: the weights are others, or cannot be made exactly; nothing is changed.
        """
        if self.undo is not None:
            raise EditError(f"{self.method} wraps modules: its edit cannot be put on again; run the method")
        self.check_fits(model)
        edited, originals = {}, {}
        for name, (old_digest, new_digest) in self.digests.items():
            now = weight_of(model, name)
            if weight_digest(now) != old_digest:
                raise EditError(self._not_its_own(name, now, new_digest))
            originals[name], edited[name] = now.clone(), self.after(name, now)
            if new_digest and weight_digest(edited[name]) != new_digest:
                raise EditError(
                    f"{name}: the edit does not make the weight that it made when it was new: make it again"
                )
        with restored_if_it_fails(model, list(edited)), ExitStack() as stack:
            if self.traces is not None:
                stack.enter_context(self.traces.added(model))
            write_weights(model, edited)
        self.before = originals
        self.digests = {n: (self.digests[n][0], weight_digest(value)) for n, value in edited.items()}

    def check_fits(self, model: PreTrainedModel) -> None:
        """Compare names and shapes with a model's weights, which may be on the meta device.

        Raises:
            EditError: the edit is another model's.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for name in self.digests:
            if shapes.get(name) != self.shape_of(name):
                raise EditError(
                    f"{name}: the edit is of a weight of shape {self.shape_of(name)}, the model's is "
                    f"{shapes.get(name, 'not there')}: the edit was made on another model"
                )

    def _not_its_own(self, name: str, now: Tensor, new_digest: str) -> str:
        if weight_digest(now) == new_digest:
            return f"{name} is as this edit leaves it: it is on this model already"
        dtype = self.dtypes.get(name)
        if dtype is not None and now.dtype != dtype:
            return f"{name} is {now.dtype}, and the edit was made on {dtype}: load the model in that dtype"
        return (
            f"{name} is not the weight that this edit was made on ({now.dtype}, {tuple(now.shape)}): load that model, "
            "unedited, or put edits of one original together with `zerounlearn merge`"
        )

    def after(self, name: str, old: Tensor) -> Tensor:
        """The weight after the edit, of the one before."""
        made = old
        if name in self.factors:
            left, right = self.factors[name]
            start = 0
            for width in self.steps.get(name, [len(right)]):
                made = added(made, left[:, start : start + width], right[start : start + width])
                start += width
        else:
            made = moved_by(old, self.changes[name])
        return moved(made, self.fixes[name]) if name in self.fixes else made

    def _backward(self, name: str, new: Tensor) -> Tensor:
        """The weight before the edit, of the one after: exact where the edit has the originals."""
        found = self._taken_off(name, new)
        return moved(found, self.originals[name]) if name in self.originals else found

    def _taken_off(self, name: str, new: Tensor) -> Tensor:
        if name in self.factors:
            left, right = self.factors[name]
            return added(new, -left, right)
        return moved_by(new, -self.changes[name])

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a changed weight, in the checkpoint's orientation."""
        if name in self.factors:
            left, right = self.factors[name]
            return left.shape[0], right.shape[1]
        return tuple(self.changes[name].shape)

    @property
    def names(self) -> list[str]:
        """The parameters that it changes."""
        return [*self.factors, *self.changes]

    def change_of(self, name: str) -> Tensor:
        """W' − W of a weight in float64, before rounding."""
        if name in self.factors:
            left, right = self.factors[name]
            return left.double() @ right.double()
        return self.changes[name].double()

    @property
    def exact(self) -> bool:
        """Whether `with_originals` has what it needs."""
        return all(name in self.before or name in self.originals for name in self.digests)

    @torch.no_grad()
    def with_originals(self) -> dict[str, Tensor]:
        """What `originals` has to hold so that `revert` is exact without `before`.

        Raises:
            EditError: the weights as they were are not known.
        """
        found = {}
        for name in self.digests:
            old = self.before.get(name)
            if old is not None:
                found[name] = difference(self._taken_off(name, self.after(name, old)), old)
            elif name in self.originals:
                found[name] = self.originals[name]
            else:
                raise EditError(f"{name} as it was is not known to this edit: put it on its model, then save it")
        return found

    def save(self, path: str | Path, *, originals: bool = False, key: bytes | None = None) -> None:
        """Write the edit as one safetensors file, no pickles; see docs/edits.md for what is in it.

        Args:
            path: the file; one that is there is replaced.
            originals: store what `revert` lacks to be exact from the file alone: some bits for every number of the
                changed weights.
            key: secret for the facts' digests, without which nobody can tell a guessed fact from another.

        Raises:
            EditError: the edit is more than a change of weights; or there are no originals to store.
            RequestError: a key is given, and the facts are not known in clear.
            OutputError: the file cannot be written.
        """
        from zerounlearn.method.edit_file import write_edit

        write_edit(self, Path(path), originals=originals, key=key)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote, and check all that needs no model.

        Raises:
            EditError: the file is missing, damaged, no edit, or of another format.
        """
        from zerounlearn.method.edit_file import read_edit

        return read_edit(Path(path))
