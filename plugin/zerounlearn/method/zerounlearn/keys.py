"""Keys and outputs of the edited layers, one layer after another, as the edit goes through them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.data.request import Request
from zerounlearn.method.zerounlearn.config import LocatedEdit
from zerounlearn.model.hooks import inputs_of, outputs_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_tokens
from zerounlearn.model.tape import Tape, record
from zerounlearn.model.tokens import filler_id, length_sorted_batches, locate, pad


class Walk:
    """Keys of the requests at one edited layer after another, on the weights as they are by then.

    The model runs once, up to the first edited layer; from there only the edited layers are replayed. A request has
    one key, the mean over its contexts, or with `context_keys: each` one a context; what is returned has a row a key,
    context by context, the bare prompts' first. What the target is for is the last edited layer's output h_L, or, where
    blocks do more with what their down projections write than add it, what the layer at hand writes (`written`).
    """

    def __init__(
        self,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        prefixes: Sequence[str],
        hparams: LocatedEdit,
        *,
        written: bool = False,
    ) -> None:
        self.layout, self.layers, self.requests = layout, hparams.layers, len(requests)
        self.written = written
        self.each = hparams.context_keys == "each"
        rows: list[list[int]] = []
        self.positions: list[int] = []
        for prefix in ("", *prefixes):  # context-major: row c * n + i is request i in context c
            for request in requests:
                start, end = request.subject_span
                text = prefix + request.prompt
                ids, position = locate(tokenizer, text, len(prefix) + start, len(prefix) + end, hparams.fact_token)
                rows.append(ids)
                self.positions.append(position)
        self.batches = length_sorted_batches([len(row) for row in rows], good_tokens(layout.device))
        self.tapes: list[Tape] = []
        self.hidden: list[Tensor] = []
        first, last = self.layers[0], self.layers[-1]
        for batch in self.batches:
            padded, mask = pad([rows[i] for i in batch], filler_id(tokenizer, layout.model), layout.device)
            tape = record(layout, padded, mask, replayed=range(first, last + 1), inputs=[first])
            self.tapes.append(tape)
            self.hidden.append(tape.inputs.pop(first))

    def _gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Each row's hidden state at its looked-up position, in row order: (rows, ·)."""
        found: dict[int, Tensor] = {}
        for batch, part in zip(self.batches, parts, strict=True):
            for at, row in enumerate(batch):
                found[row] = part[at, self.positions[row]]
        return torch.stack([found[i] for i in sorted(found)])

    @torch.no_grad()
    def keys(self, layer: int) -> Tensor:
        """K (rows, m); the mean is over the two context groups, each averaged in itself (as MEMIT does)."""
        parts = []
        with inputs_of({layer: self.layout.projections[layer]}) as seen:
            for tape, hidden in zip(self.tapes, self.hidden, strict=True):
                tape.run(layer, hidden)
                parts.append(seen[layer].view(*hidden.shape[:2], -1))
        rows = self._gather(parts).double() if parts[0].device.type != "mps" else self._gather(parts).float()
        if self.each:
            return rows
        by_context = rows.view(-1, self.requests, rows.shape[1])
        groups = [by_context[0], *([by_context[1:].mean(0)] if len(by_context) > 1 else [])]
        return torch.stack(groups).mean(0)

    @torch.no_grad()
    def state(self, layer: int) -> Tensor:
        """h_L, replayed from `layer` on, or what `layer` writes, (rows, d); for mean keys the bare prompts'."""
        found: dict[int, Tensor] = {}
        for batch, tape, hidden in zip(self.batches, self.tapes, self.hidden, strict=True):
            wanted = [at for at, row in enumerate(batch) if self.each or row < self.requests]
            if not wanted:
                continue
            rows = torch.tensor(wanted, device=hidden.device)
            for at, part in zip(wanted, self._run(tape, layer, hidden[rows], rows), strict=True):
                found[batch[at]] = part[self.positions[batch[at]]]
        h = torch.stack([found[i] for i in sorted(found)])
        return h if h.dtype == torch.float64 else h.float()

    def _run(self, tape: Tape, layer: int, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden states (rows, t, d) that go into `layer`, to what `state` is of."""
        if self.written:
            with outputs_of({layer: self.layout.projections[layer]}) as seen:
                tape.run(layer, hidden, rows)
            return seen[layer].view(*hidden.shape[:2], -1)
        for block in range(layer, self.layers[-1] + 1):
            hidden = tape.run(block, hidden, rows)
        return hidden

    def target(self, layer: int, z: Tensor, strength: Tensor) -> Tensor:
        """Where `state` (rows, d) is to go: each row moves as its bare prompt does towards z* (requests, d).

        `strength` (requests,) says how far: 1 is all the way.
        """
        h = self.state(layer)
        step = strength.to(h.dtype).to(h.device)[:, None] * (z - h[: self.requests])
        return h + step.repeat(len(h) // self.requests, 1)

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Move on behind `layer`, whose weight has been written."""
        if layer != self.layers[-1]:
            self.hidden = [t.run(layer, h) for t, h in zip(self.tapes, self.hidden, strict=True)]
