"""One run of the model that leaves behind what its upper blocks were called with, so that they can be run again alone.

A change of one block's output reaches later blocks, nothing else. A `Tape` runs those blocks on whole rows;
`zerounlearn.model.replay` runs them on the positions from the change on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zerounlearn.model.hooks import first_tensor, forward_until
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_tokens

_CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")
"""What models and blocks call the argument that holds a key-value cache, the newest transformers' name first."""


def cache_name(signature: inspect.Signature) -> str:
    """What the forward pass of a model or a block calls its key-value cache; empty if it takes none."""
    return next((name for name in _CACHE_NAMES if name in signature.parameters), "")


class _Recorder:
    """Stands in for a key-value cache: lets attention hand over its keys and values."""

    def __init__(self, tape: Tape, layer: int) -> None:
        self.tape, self.layer = tape, layer

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.tape.attention[self.layer] = (keys.detach(), values.detach())
        return keys, values


@dataclass
class Tape:
    """What one forward pass over (n, t) token ids leaves behind.

    `inputs` and `outputs` hold block hidden states (n, t, d), `written` the outputs (n, t, d) of down
    projections, `calls` each block's other arguments by name, `attention` its keys and values.
    """

    layout: Layout
    rows: int
    length: int
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    attention: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def run(self, layer: int, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Block `layer` on whole rows of new hidden states; `rows` names them where not all are given."""
        call = {name: self._take(value, rows) for name, value in self.calls[layer].items()}
        return first_tensor(self.layout.blocks[layer](hidden, **call))

    def _take(self, value: Any, rows: Tensor | None) -> Any:
        if rows is None:
            return value
        if isinstance(value, Tensor):
            return value[rows.to(value.device)] if value.ndim > 1 and value.shape[0] == self.rows else value
        if isinstance(value, tuple):
            return tuple(self._take(part, rows) for part in value)
        return value


def argument_names(block: nn.Module) -> tuple[inspect.Signature, str]:
    """The signature of a block's forward, and what its first argument, the hidden states, is called."""
    signature = inspect.signature(block.forward)
    return signature, next(iter(signature.parameters))


@torch.no_grad()
def record(
    layout: Layout,
    ids: Tensor,
    mask: Tensor,
    *,
    replayed: Collection[int],
    inputs: Collection[int] = (),
    outputs: Collection[int] = (),
    written: Collection[int] = (),
    attention: bool = False,
) -> Tape:
    """One forward pass that ends after the last block named; in batches, if the longest rows come first.

    Args:
        layout: the model.
        ids: token ids (n, t), right-padded.
        mask: attention mask (n, t).
        replayed: blocks whose call arguments are to be kept.
        inputs: blocks whose incoming hidden states are to be kept.
        outputs: blocks whose outgoing hidden states are to be kept.
        written: blocks whose down-projection outputs are to be kept.
        attention: keep the attention keys and values of the replayed blocks, for `Suffix`.
    """
    lengths = mask.sum(1).tolist()
    bounds = [0, len(lengths)]
    if lengths[0] == ids.shape[1] and lengths == sorted(lengths, reverse=True):
        bounds = _batch_bounds(lengths, good_tokens(layout.device))
    run = partial(_record, replayed=replayed, inputs=inputs, outputs=outputs, written=written, attention=attention)
    if len(bounds) == 2:
        return run(layout, ids, mask)
    spans = [(slice(start, end), slice(lengths[start])) for start, end in pairwise(bounds)]
    return _Joining([run(layout, ids[span], mask[span]) for span in spans]).whole()


def _batch_bounds(lengths: Sequence[int], tokens: int) -> list[int]:
    """Where batches of at least `tokens` padded tokens begin and end; `lengths` fall."""
    bounds = [0]
    for end in range(1, len(lengths) + 1):
        if lengths[bounds[-1]] * (end - bounds[-1]) >= tokens or end == len(lengths):
            bounds.append(end)
    return bounds


def joined_rows(parts: Sequence[Tensor]) -> Tensor:
    """(Σ n, t, ...) of what a hook saw in the parts of one `record`, padded to the first part's length t."""
    length = parts[0].shape[1]
    return _padded(parts, 1, length)


def _padded(tensors: Iterable[Tensor], dim: int, length: int) -> Tensor:
    """All rows, padded to one length along `dim`."""
    return torch.cat([F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, length - x.shape[dim])) for x in tensors])


class _Joining:
    """Makes one tape of all rows out of its parts, of which the first has the longest rows."""

    def __init__(self, parts: Sequence[Tape]) -> None:
        self.parts, self.length = parts, parts[0].length
        self.rows = [part.rows for part in parts]
        # Blocks share their masks and positions, and go on doing so.
        self.shared: dict[tuple[int, ...], Tensor] = {}

    def whole(self) -> Tape:
        """The tape of all rows."""
        first = self.parts[0]
        tape = Tape(first.layout, rows=sum(self.rows), length=self.length)
        for store in ("inputs", "outputs", "written"):
            for layer in getattr(first, store):
                getattr(tape, store)[layer] = _padded(
                    (getattr(part, store)[layer] for part in self.parts), 1, self.length
                )
        for layer, call in first.calls.items():
            tape.calls[layer] = {
                name: self._argument(name, [part.calls[layer][name] for part in self.parts]) for name in call
            }
        for layer in first.attention:
            keys, values = zip(*(part.attention[layer] for part in self.parts), strict=True)
            tape.attention[layer] = (_padded(keys, 2, self.length), _padded(values, 2, self.length))
        return tape

    def _argument(self, name: str, values: Sequence[Any]) -> Any:
        """What a block is called with under `name`, given what each part was called with."""
        first = values[0]
        if isinstance(first, tuple):
            return tuple(self._argument(name, each) for each in zip(*values, strict=True))
        is_mask = name == "attention_mask" and any(value is not None for value in values)
        if not is_mask and not (isinstance(first, Tensor) and first.ndim >= 2):
            return first
        key = tuple(map(id, values))
        if key not in self.shared:
            if is_mask:
                self.shared[key] = self._mask(values)
            else:
                by_row = all(x.shape[0] == rows for x, rows in zip(values, self.rows, strict=True))
                self.shared[key] = _padded(values, 1, self.length) if by_row else first
        return self.shared[key]

    def _mask(self, masks: Sequence[Tensor | None]) -> Tensor:
        """(n, 1, length, length); where a model made none, a query sees itself and what is before it."""
        like = next(mask for mask in masks if mask is not None)
        is_bool = like.dtype == torch.bool
        blocked = False if is_bool else torch.finfo(like.dtype).min
        whole = like.new_full((sum(self.rows), 1, self.length, self.length), blocked)
        whole.diagonal(dim1=2, dim2=3).fill_(is_bool)  # to see nothing at all is NaN
        for part, mask, rows in zip(self.parts, masks, whole.split(self.rows), strict=True):
            t = part.length
            if mask is None:
                sees = torch.ones(t, t, dtype=torch.bool, device=like.device).tril()
                mask = sees if is_bool else torch.zeros_like(sees, dtype=like.dtype).where(sees, blocked)
            rows[:, :, :t, :t] = mask
        return whole


def _record(
    layout: Layout,
    ids: Tensor,
    mask: Tensor,
    *,
    replayed: Collection[int],
    inputs: Collection[int],
    outputs: Collection[int],
    written: Collection[int],
    attention: bool,
) -> Tape:
    tape = Tape(layout, rows=ids.shape[0], length=ids.shape[1])

    def before(layer: int) -> Callable[..., Any]:
        signature, first = argument_names(layout.blocks[layer])

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            named = {k: v for k, v in bound.items() if k != "kwargs"} | dict(bound.get("kwargs", {}))
            hidden = named.pop(first)
            if layer in inputs:
                tape.inputs[layer] = hidden.detach()
            if layer not in replayed:
                return None
            tape.calls[layer] = {k: v for k, v in named.items() if k not in _CACHE_NAMES}
            cache = cache_name(signature)
            if not attention or not cache:
                return None
            return (hidden,), named | {cache: _Recorder(tape, layer)}

        return hook

    with ExitStack() as stack:
        for layer in sorted({*replayed, *inputs}):
            stack.enter_context(layout.blocks[layer].register_forward_pre_hook(before(layer), with_kwargs=True))
        for layer in outputs:
            stack.enter_context(layout.blocks[layer].register_forward_hook(_keeping(tape.outputs, layer)))
        for layer in written:
            stack.enter_context(
                layout.projections[layer].register_forward_hook(_keeping(tape.written, layer, ids.shape))
            )
        last = max({*replayed, *inputs, *outputs, *written})
        forward_until(layout.model, layout.blocks[last], input_ids=ids, attention_mask=mask, use_cache=False)
    return tape


def _keeping(store: dict[int, Tensor], layer: int, rows: Sequence[int] | None = None) -> Callable[..., None]:
    """A hook that keeps a module's output; with `rows` a copy of what a down projection wrote, of that shape.

    Falcon adds its attention's output to it in place, and OPT's MLP sees the tokens of all rows as one.
    """

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        kept = first_tensor(output).detach()
        store[layer] = kept if rows is None else kept.clone().view(*rows, -1)

    return hook
