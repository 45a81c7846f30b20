"""Run the model once, then replay only the blocks above an edit, on the positions that it can reach.

A change at one position of one block's output reaches later positions of later blocks, nothing else. A
`Tape` keeps what those blocks were called with; a `Suffix` replays them on the positions from the change
on, with the attention keys and values of the earlier positions taken from the tape. Where a model does not
allow that (an attention kernel that takes no explicit mask, an unknown tensor argument), whole rows are
replayed instead, with the same result.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zerounlearn.model.hooks import first_tensor, forward_until
from zerounlearn.model.layout import Layout

log = logging.getLogger(__name__)

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")


class _Recorder:
    """Stands in for a key-value cache: lets attention hand over its keys and values."""

    def __init__(self, tape: Tape, layer: int) -> None:
        self.tape, self.layer = tape, layer

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.tape.attention[self.layer] = (keys.detach(), values.detach())
        return keys, values


class _Prefix:
    """Stands in for a key-value cache: prepends the recorded keys and values of earlier positions."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


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
            return value[rows] if value.ndim > 1 and value.shape[0] == self.rows else value
        if isinstance(value, tuple):
            return tuple(self._take(part, rows) for part in value)
        return value


def _argument_names(block: nn.Module) -> tuple[inspect.Signature, str]:
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
    """One forward pass that ends after the last block named.

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
    tape = Tape(layout, rows=ids.shape[0], length=ids.shape[1])

    def before(layer: int) -> Callable[..., Any]:
        signature, first = _argument_names(layout.blocks[layer])

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = signature.bind(*args, **kwargs).arguments
            named = {k: v for k, v in bound.items() if k != "kwargs"} | dict(bound.get("kwargs", {}))
            hidden = named.pop(first)
            if layer in inputs:
                tape.inputs[layer] = hidden.detach()
            if layer not in replayed:
                return None
            tape.calls[layer] = {k: v for k, v in named.items() if k not in _CACHE_NAMES}
            cache_name = next((name for name in _CACHE_NAMES if name in signature.parameters), None)
            if not attention or cache_name is None:
                return None
            return (hidden,), named | {cache_name: _Recorder(tape, layer)}

        return hook

    def after(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            store[layer] = first_tensor(output).detach()

        return hook

    with ExitStack() as stack:
        for layer in sorted({*replayed, *inputs}):
            handle = layout.blocks[layer].register_forward_pre_hook(before(layer), with_kwargs=True)
            stack.callback(handle.remove)
        for layer in outputs:
            handle = layout.blocks[layer].register_forward_hook(after(tape.outputs, layer))
            stack.callback(handle.remove)
        for layer in written:
            handle = layout.projections[layer].register_forward_hook(after(tape.written, layer))
            stack.callback(handle.remove)
        last = max({*replayed, *inputs, *outputs, *written})
        forward_until(layout.model, layout.blocks[last], input_ids=ids, attention_mask=mask, use_cache=False)
    return tape


class Suffix:
    """Rows of a tape from a position on: n rows of `size` positions each, row i from `start[i]`.

    Several rows may view the same sequence of the tape. `offset` is where the first position of each row
    is found in the hidden states that `enter` gives: 0, or `start` where whole rows are replayed.
    """

    def __init__(self, tape: Tape, sequence: Tensor, start: Tensor, size: int, *, whole: bool = False) -> None:
        self.tape, self.sequence, self.start, self.size = tape, sequence, start, size
        self.whole = whole or not supports_suffix(tape)
        self.offset = start if self.whole else torch.zeros_like(start)
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._calls: dict[tuple[int, int], dict[str, Any]] = {}

    def enter(self, layer: int, rows: slice) -> Tensor:
        """The recorded output of block `layer` on these rows: (rows, positions, d)."""
        hidden = self.tape.outputs[layer]
        return hidden[self.sequence[rows]] if self.whole else self._gather(hidden, rows)

    def run(self, layer: int, hidden: Tensor) -> Tensor:
        """Block `layer` on the first len(hidden) rows."""
        n = hidden.shape[0]
        if self.whole:
            return self.tape.run(layer, hidden, self.sequence[:n])
        call = self._calls.get((layer, n))
        if call is None:
            call = self._calls[layer, n] = self._call(layer, n)
        return first_tensor(self.tape.layout.blocks[layer](hidden, **call))

    def _positions(self, rows: slice) -> Tensor:
        return self.start[rows, None] + torch.arange(self.size, device=self.start.device)

    def _gather(self, value: Tensor, rows: slice) -> Tensor:
        """Value (n or 1, t, ...) at these rows' positions: (rows, size, ...)."""
        sequence = self.sequence[rows] if value.shape[0] == self.tape.rows else torch.zeros_like(self.start[rows])
        return value[sequence[:, None].to(value.device), self._positions(rows).to(value.device)]

    def _call(self, layer: int, n: int) -> dict[str, Any]:
        rows = slice(0, n)
        call: dict[str, Any] = {}
        for name, value in self.tape.calls[layer].items():
            if name == "attention_mask":
                continue
            if isinstance(value, tuple):
                call[name] = tuple(self._gather(part, rows) for part in value)
            elif isinstance(value, Tensor) and value.ndim >= 2:
                call[name] = self._gather(value, rows)
            elif not isinstance(value, Tensor):
                call[name] = value
        keys, values = (part[self.sequence[rows], :, : int(self.start.max())] for part in self.tape.attention[layer])
        parameters = _argument_names(self.tape.layout.blocks[layer])[0].parameters
        cache_name = next(name for name in _CACHE_NAMES if name in parameters)
        call[cache_name] = _Prefix(keys, values)
        call["attention_mask"] = self._mask(self.tape.calls[layer].get("attention_mask"), rows, keys.device)
        return call

    def _mask(self, recorded: Tensor | None, rows: slice, device: torch.device) -> Tensor:
        """(rows, 1, size, prefix + size): the recorded mask at these rows, prefix columns first."""
        cached = self._masks.get((id(recorded), rows.stop))
        if cached is not None:
            return cached
        start = self.start[rows].to(device)
        queries = self._positions(rows).to(device)
        prefix = torch.arange(int(self.start.max()), device=device).expand(len(start), -1)
        keys = torch.cat([prefix, queries], dim=1)
        real = torch.cat([prefix < start[:, None], torch.ones_like(queries, dtype=torch.bool)], dim=1)
        if recorded is None:
            allowed = keys[:, None, :] <= queries[:, :, None]
            mask = (allowed & real[:, None, :])[:, None]
        else:
            row = self.sequence[rows].to(device) if recorded.shape[0] == self.tape.rows else torch.zeros_like(start)
            picked = recorded[row[:, None, None], 0, queries[:, :, None], keys[:, None, :]]
            blocked = False if recorded.dtype == torch.bool else torch.finfo(recorded.dtype).min
            mask = picked.masked_fill(~real[:, None, :], blocked)[:, None]
        self._masks[id(recorded), rows.stop] = mask
        return mask


def supports_suffix(tape: Tape) -> bool:
    """Whether the taped blocks can be replayed on suffixes: explicit masks, known arguments, a cache."""
    if getattr(tape.layout.model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    if set(tape.attention) != set(tape.calls):
        return False
    for call in tape.calls.values():
        mask = call.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[1] != 1):
            return False
        if mask is None and tape.layout.model.config._attn_implementation == "eager":
            return False
        for name, value in call.items():
            parts: Sequence[Any] = value if isinstance(value, tuple) else (value,)
            for part in parts:
                timed = isinstance(part, Tensor) and part.ndim >= 2 and part.shape[1] == tape.length
                if isinstance(part, Tensor) and name not in ("attention_mask", "cache_position") and not timed:
                    return False
    return True
