"""Replay a tape's blocks on the positions that a change can reach.

A change at one position of one block's output reaches later positions of later blocks, nothing else. A
`Suffix` replays those blocks on the positions from the change on, with the attention keys and values of
the earlier positions taken from the tape. Rows of different lengths go through a block's matrices as one
sequence of tokens, without padding; attention alone sees them row by row. Where a model does not allow
that (an attention kernel that takes no explicit mask, an unknown tensor argument), whole rows are replayed
instead, with the same result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zerounlearn.model.hooks import attention_of, first_tensor, uninterrupted
from zerounlearn.model.tape import Tape, argument_names, cache_name


@dataclass(frozen=True)
class _Packing:
    """Rows of unequal lengths as one sequence of tokens; `slots` says where each is among rows padded to `size`."""

    rows: int
    size: int
    slots: Tensor
    attention: str

    @property
    def _is_full(self) -> bool:
        return len(self.slots) == self.rows * self.size

    def unpack(self, value: Tensor) -> Tensor:
        """(1, heads, tokens, ·) to (rows, heads, size, ·), zero where a row has no token."""
        if self._is_full:
            return value[0].unflatten(1, (self.rows, self.size)).transpose(0, 1)
        tokens = value[0].transpose(0, 1)
        padded = tokens.new_zeros(self.rows * self.size, *tokens.shape[1:])
        padded = padded.index_copy(0, self.slots.to(value.device), tokens)
        return padded.view(self.rows, self.size, *tokens.shape[1:]).transpose(1, 2)

    def pack(self, value: Tensor) -> Tensor:
        """(rows, size, ...) to (1, tokens, ...)."""
        if self._is_full:
            return value.flatten(0, 1)[None]
        return value.flatten(0, 1).index_select(0, self.slots.to(value.device))[None]


class _Prefix:
    """Stands in for a key-value cache: prepends the recorded keys and values of earlier positions, row by row."""

    def __init__(self, keys: Tensor, values: Tensor, packing: _Packing) -> None:
        self.keys, self.values, self.packing = keys, values, packing

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.packing.unpack(keys), self.packing.unpack(values)
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


# How the rows of the block that runs are packed.
_packing: ContextVar[_Packing] = ContextVar("packing")
_PACKED = "zerounlearn_packed"


def _attend_row_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """The model's own attention, on rows that `_Prefix` has taken apart already but for the queries."""
    packing = _packing.get()
    query = packing.unpack(query)
    if packing.attention == "eager":
        own: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
    else:
        own = ALL_ATTENTION_FUNCTIONS[packing.attention]
    if own is sdpa_attention_forward:
        return packing.pack(_grouped(query, key, value, attention_mask, kwargs.get("scaling"))), None
    return packing.pack(own(module, query, key, value, attention_mask, **kwargs)[0]), None


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Scaled dot-product attention; heads that share keys are taken as further queries, so that no key is copied."""
    rows, heads, size, width = query.shape
    together = query.reshape(rows, key.shape[1], -1, width)
    mask = mask.repeat(1, 1, together.shape[2] // size, 1)
    found = F.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, heads, size, -1).transpose(1, 2)


AttentionInterface.register(_PACKED, _attend_row_by_row)


@contextmanager
def _packed(block: nn.Module, packing: _Packing) -> Iterator[None]:
    """Let the attention of a block work on packed rows."""
    own = attention_of(block)
    token = _packing.set(packing)
    try:
        for config, _ in own:
            config._attn_implementation = _PACKED
        yield
    finally:
        with uninterrupted():
            for config, name in own:
                config._attn_implementation = name
            _packing.reset(token)


class Suffix:
    """Rows of a tape, each from a position of its own to its end, replayed together.

    Hidden states are (tokens, d), the rows one after the other; several rows may view the same sequence of the tape.
    `first[i]` is where row i's first position is among them; where whole rows are replayed, the positions before it
    and after its end are there, too.
    """

    def __init__(
        self, tape: Tape, sequence: Tensor, start: Tensor, size: Sequence[int], *, whole: bool = False
    ) -> None:
        self.tape, self.sequence, self.start = tape, sequence, start
        self.whole = whole or not supports_suffix(tape)
        if self.whole:
            size = [tape.length] * len(size)
        ends = list(accumulate(size))
        self.bounds = [0, *ends]
        begins = torch.tensor(self.bounds[:-1], device=start.device)
        self.first = begins + start if self.whole else begins
        sizes = torch.tensor(size, device=start.device)
        self._row = torch.repeat_interleave(sizes)
        self._step = torch.arange(ends[-1], device=start.device) - begins[self._row]
        self._size = max(size)
        self._masks: dict[tuple[int, int, torch.device], Tensor] = {}
        self._calls: dict[tuple[int, int], tuple[dict[str, Any], _Packing]] = {}

    def enter(self, hidden: Tensor, rows: slice) -> Tensor:
        """Recorded hidden states (n, t, d) of the tape on these rows: (their tokens, d)."""
        if self.whole:
            return hidden[self.sequence[rows].to(hidden.device)].flatten(0, 1)
        return self._gather(hidden, slice(self.bounds[rows.start], self.bounds[rows.stop]))

    def run(self, layer: int, hidden: Tensor, n: int) -> Tensor:
        """Block `layer` on the first n rows: (their tokens, d) to the same."""
        if self.whole:
            rows = hidden.view(n, self.tape.length, -1)
            return self.tape.run(layer, rows, self.sequence[:n]).flatten(0, 1)
        found = self._calls.get((layer, n))
        if found is None:
            found = self._calls[layer, n] = self._call(layer, n)
        call, packing = found
        block = self.tape.layout.blocks[layer]
        with _packed(block, packing):
            return first_tensor(block(hidden[None], **call))[0]

    def _gather(self, value: Tensor, tokens: slice) -> Tensor:
        """Value (n or 1, t, ...) at these tokens: (tokens, ...)."""
        row = self._row[tokens]
        sequence = self.sequence[row] if value.shape[0] == self.tape.rows else torch.zeros_like(row)
        position = self.start[row] + self._step[tokens]
        return value[sequence.to(value.device), position.to(value.device)]

    def _call(self, layer: int, n: int) -> tuple[dict[str, Any], _Packing]:
        tokens = slice(0, self.bounds[n])
        call: dict[str, Any] = {}
        for name, value in self.tape.calls[layer].items():
            if name == "attention_mask":
                continue
            if isinstance(value, tuple):
                call[name] = tuple(self._gather(part, tokens)[None] for part in value)
            elif isinstance(value, Tensor) and value.ndim >= 2:
                call[name] = self._gather(value, tokens)[None]
            elif not isinstance(value, Tensor):
                call[name] = value
        packing = _Packing(
            n,
            self._size,
            self._row[tokens] * self._size + self._step[tokens],
            self.tape.layout.model.config._attn_implementation,
        )
        longest = int(self.start[:n].max())
        keys, values = (part[self.sequence[:n].to(part.device), :, :longest] for part in self.tape.attention[layer])
        signature, _ = argument_names(self.tape.layout.blocks[layer])
        call[cache_name(signature)] = _Prefix(keys, values, packing)
        call["attention_mask"] = self._mask(self.tape.calls[layer].get("attention_mask"), n, longest, keys.device)
        return call, packing

    def _mask(self, recorded: Tensor | None, n: int, longest: int, device: torch.device) -> Tensor:
        """(n, 1, size, longest + size): the recorded mask at these rows' queries, the columns of the prefix first.

        Nobody reads what queries beyond a row's end attend to, but it must be something: nothing at all is NaN.
        """
        cached = self._masks.get((id(recorded), n, device))
        if cached is not None:
            return cached
        start = self.start[:n].to(device)
        steps = torch.arange(self._size, device=device)
        ends = torch.tensor(self.bounds, device=device).diff()[:n, None]
        inside = steps < ends
        queries = torch.where(inside, start[:, None] + steps, start[:, None])
        prefix = torch.arange(longest, device=device).expand(n, -1)
        keys = torch.cat([prefix, queries], dim=1)
        real = torch.cat([prefix < start[:, None], inside], dim=1)
        if recorded is None:
            allowed = keys[:, None, :] <= queries[:, :, None]
            mask = (allowed & real[:, None, :])[:, None]
        else:
            row = self.sequence[:n].to(device) if recorded.shape[0] == self.tape.rows else torch.zeros_like(start)
            keys = torch.where(real, keys, 0)
            picked = recorded[row[:, None, None], 0, queries[:, :, None], keys[:, None, :]]
            blocked = False if recorded.dtype == torch.bool else torch.finfo(recorded.dtype).min
            mask = picked.masked_fill(~real[:, None, :], blocked)[:, None]
        self._masks[id(recorded), n, device] = mask
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
