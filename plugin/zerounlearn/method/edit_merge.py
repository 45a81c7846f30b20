"""Two edits as one: of different weights, of one original, or one made on top of the other; the digests say which."""

from __future__ import annotations

from typing import Literal

import torch

from zerounlearn.errors import EditError
from zerounlearn.method.edit import Edit
from zerounlearn.model.traces import Traces
from zerounlearn.model.weights import weight_digest

Relation = Literal["disjoint", "sum", "first then second", "second then first"]
_BY_NAME = ("factors", "steps", "changes", "digests", "dtypes", "norms", "fixes", "originals", "before")


def relation(first: Edit, second: Edit) -> Relation:
    """How two edits lie to each other, by the digests of the weights that both change.

    Raises:
        EditError: they are neither of one original nor one on top of the other, or are the same edit.
    """
    for edit in (first, second):
        if edit.undo is not None:
            raise EditError(f"{edit.method} wraps modules: its edit is no change of weights, and cannot be merged")
    shared = sorted(first.digests.keys() & second.digests.keys())
    if not shared:
        return "disjoint"
    pairs = [(first.digests[name], second.digests[name]) for name in shared]
    if all(one == other and one[1] for one, other in pairs):
        raise EditError("the two edits are the same: their sum would make the change twice")
    if all(one[1] == other[0] for one, other in pairs):
        return "first then second"
    if all(one[0] == other[1] for one, other in pairs):
        return "second then first"
    if all(one[0] == other[0] for one, other in pairs):
        return "sum"
    raise EditError(
        f"{shared[0]}: the edits are neither made on one original nor one on top of the other, by the digests of the "
        f"{len(shared)} weights that both change: make one of them again on the other's model"
    )


@torch.no_grad()
def merged(first: Edit, second: Edit) -> Edit:
    """One edit that does what both do.

    On weights that one of them changes, it is theirs. On others it is the sum of their changes, rounded once, where
    both are made on one original; and one change after the other, each rounded as it was, where one is made on the
    weights that the other left. What a sum comes to is not known without the weights: its digest is taken when it is
    first put on.

    Raises:
        EditError: see `relation`; or the edits name the same weights in models of different families.
    """
    how = relation(first, second)
    a, b = (second, first) if how == "second then first" else (first, second)
    alike = a.hparams == b.hparams and a.method == b.method
    edit = Edit(
        a.method if a.method == b.method else f"{a.method} + {b.method}",
        a.hparams if alike else {"merged": [a.hparams, b.hparams]},
        layers=[*a.layers, *b.layers],
        seconds={name: a.seconds.get(name, 0.0) + b.seconds.get(name, 0.0) for name in {**a.seconds, **b.seconds}},
        statistics=b.statistics | a.statistics,
        requests=[*a.requests, *b.requests] if a.requests and b.requests else (),
        facts=list(dict.fromkeys([*a.facts, *b.facts])),
        traces=_traces(a.traces, b.traces),
    )
    for part in _BY_NAME:
        getattr(edit, part).update(getattr(a, part) | getattr(b, part))
    for name in a.digests.keys() & b.digests.keys():
        _put_together(edit, name, a, b, stacked=how != "sum")
    return edit


def _put_together(edit: Edit, name: str, a: Edit, b: Edit, *, stacked: bool) -> None:
    """The change of a weight that both change."""
    for part in ("factors", "steps", "changes", "fixes", "originals", "before"):
        getattr(edit, part).pop(name, None)
    edit.norms[name] = a.norms[name]
    before = a.before.get(name, None if stacked else b.before.get(name))
    exact = False
    if name in a.factors and name in b.factors:
        left, right = zip(a.factors[name], b.factors[name], strict=True)
        edit.factors[name] = torch.cat(left, dim=1), torch.cat(right)
        steps = [*a.steps[name], *b.steps[name]]
        edit.steps[name] = steps if stacked else [sum(steps)]
        exact = stacked and not {*a.fixes, *b.fixes} & {name}
    else:
        edit.changes[name] = (a.change_of(name) + b.change_of(name)).float()
    edit.digests[name] = a.digests[name][0], b.digests[name][1] if exact else ""
    if before is not None:
        edit.before[name] = before
        edit.digests[name] = a.digests[name][0], weight_digest(edit.after(name, before))


def _traces(a: Traces | None, b: Traces | None) -> Traces | None:
    if a is None or b is None:
        return a or b
    if a.templates != b.templates:
        raise EditError(f"the edits are of different families: their modules are {a.templates} and {b.templates}")
    names = {**a.left, **b.left}
    left = {name: [*a.left.get(name, ()), *b.left.get(name, ())] for name in names}
    return Traces(sorted({*a.layers, *b.layers}), a.templates, left)
