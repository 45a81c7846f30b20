"""Run the model once, then replay only the blocks above an edit, on the positions that it can reach.

A change at one position of one block's output reaches later positions of later blocks, nothing else. A
`Tape` keeps what those blocks were called with; a `Suffix` replays them on the positions from the change
on, with the attention keys and values of the earlier positions taken from the tape. Rows of different
lengths go through a block's matrices as one sequence of tokens, without padding; attention alone sees
them row by row. Where a model does not allow that (an attention kernel that takes no explicit mask, an
unknown tensor argument), whole rows are replayed instead, with the same result.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zerounlearn.model.hooks import first_tensor, forward_until
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_tokens

log = logging.getLogger(__name__)

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")


class _Recorder:
    """Stands in for a key-value cache: lets attention hand over its keys and values."""

    def __init__(self, tape: Tape, layer: int) -> None:
        self.tape, self.layer = tape, layer

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.tape.attention[self.layer] = (keys.detach(), values.detach())
        return keys, values


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
    found = (getattr(module, "config", None) for module in block.modules())
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values()
    own = [config._attn_implementation for config in configs]
    token = _packing.set(packing)
    try:
        for config in configs:
            config._attn_implementation = _PACKED
        yield
    finally:
        for config, name in zip(configs, own, strict=True):
            config._attn_implementation = name
        _packing.reset(token)


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
    return _joined([run(layout, ids[span], mask[span]) for span in spans])


def _batch_bounds(lengths: Sequence[int], tokens: int) -> list[int]:
    """Where batches of at least `tokens` padded tokens begin and end; `lengths` fall."""
    bounds = [0]
    for end in range(1, len(lengths) + 1):
        if lengths[bounds[-1]] * (end - bounds[-1]) >= tokens or end == len(lengths):
            bounds.append(end)
    return bounds


def _joined(parts: Sequence[Tape]) -> Tape:
    """One tape of all rows, of which the first part has the longest."""
    length = parts[0].length
    tape = Tape(parts[0].layout, rows=sum(part.rows for part in parts), length=length)
    joined: dict[tuple[int, ...], Tensor] = {}  # blocks share their masks and positions, and go on doing so

    def along(dim: int, found: Iterable[Tensor]) -> Tensor:
        return torch.cat([F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, length - x.shape[dim])) for x in found])

    def masks(found: Sequence[Tensor | None]) -> Tensor:
        """(n, 1, length, length); where a model made none, a query sees itself and what is before it."""
        like = next(each for each in found if each is not None)
        blocked = False if like.dtype == torch.bool else torch.finfo(like.dtype).min
        whole = like.new_full((tape.rows, 1, length, length), blocked)
        whole.diagonal(dim1=2, dim2=3).fill_(like.dtype == torch.bool)  # to see nothing at all is NaN
        for part, each, rows in zip(parts, found, whole.split([part.rows for part in parts]), strict=True):
            t = part.length
            if each is None:
                sees = torch.ones(t, t, dtype=torch.bool, device=like.device).tril()
                each = (
                    sees if like.dtype == torch.bool else torch.zeros_like(sees, dtype=like.dtype).where(sees, blocked)
                )
            rows[:, :, :t, :t] = each
        return whole

    def argument(name: str, found: Sequence[Any]) -> Any:
        first = found[0]
        if isinstance(first, tuple):
            return tuple(argument(name, each) for each in zip(*found, strict=True))
        is_mask = name == "attention_mask" and any(each is not None for each in found)
        if not is_mask and not (isinstance(first, Tensor) and first.ndim >= 2):
            return first
        key = tuple(map(id, found))
        if key not in joined:
            by_row = not is_mask and all(x.shape[0] == part.rows for x, part in zip(found, parts, strict=True))
            joined[key] = masks(found) if is_mask else along(1, found) if by_row else first
        return joined[key]

    for store in ("inputs", "outputs", "written"):
        for layer in getattr(parts[0], store):
            getattr(tape, store)[layer] = along(1, (getattr(part, store)[layer] for part in parts))
    for layer, call in parts[0].calls.items():
        tape.calls[layer] = {name: argument(name, [part.calls[layer][name] for part in parts]) for name in call}
    for layer in parts[0].attention:
        keys, values = zip(*(part.attention[layer] for part in parts), strict=True)
        tape.attention[layer] = (along(2, keys), along(2, values))
    return tape


def _record(
    layout: Layout, ids: Tensor, mask: Tensor, *, replayed: Collection[int], inputs: Collection[int],
    outputs: Collection[int], written: Collection[int], attention: bool,
) -> Tape:  # fmt: skip
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
    """Rows of a tape, each from a position of its own to its end, replayed together.

    Hidden states are (tokens, d), the rows one after the other; several rows may view the same sequence of the tape.
    `first[i]` is where row i's first position is among them; where whole rows are replayed, the positions before it
    and after its end are there, too.
    """

    def __init__(
        self, tape: Tape, sequence: Tensor, start: Tensor, size: Sequence[int], *, whole: bool = False
    ) -> None:  # fmt: skip
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

    def enter(self, layer: int, rows: slice) -> Tensor:
        """The recorded output of block `layer` on these rows: (their tokens, d)."""
        hidden = self.tape.outputs[layer]
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
            n, self._size, self._row[tokens] * self._size + self._step[tokens],
            self.tape.layout.model.config._attn_implementation,
        )  # fmt: skip
        longest = int(self.start[:n].max())
        keys, values = (part[self.sequence[:n].to(part.device), :, :longest] for part in self.tape.attention[layer])
        parameters = _argument_names(self.tape.layout.blocks[layer])[0].parameters
        cache_name = next(name for name in _CACHE_NAMES if name in parameters)
        call[cache_name] = _Prefix(keys, values, packing)
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
