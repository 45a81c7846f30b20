"""Facts and controls going through a model block by block: their hidden states, and what changed ones would answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from zerounlearn.audit.target import Target
from zerounlearn.errors import AuditError, LayoutError
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.answers import AnswerTokens
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_positions
from zerounlearn.model.tape import Tape, record
from zerounlearn.model.tokens import Queries, Query, check_ids, continuation, encode, filler_id, pad


def layout_of(target: Target, *, projections: bool = False) -> Layout:
    """Where the target's blocks are, with their down projections if wanted.

    Raises:
        AuditError: they are not found.
    """
    try:
        layout = find_layout(target.model, SimpleNamespace(layers=()))
        return find_layout(target.model, SimpleNamespace(layers=range(len(layout.blocks)))) if projections else layout
    except LayoutError as error:
        raise AuditError(str(error)) from None


@dataclass(frozen=True)
class Asked:
    """Prompts with their answers, teacher-forced, as one padded batch; n rows of t tokens, the longest first.

    Attributes:
        layout: of the model.
        ids: token ids (n, t).
        mask: 1 where there is a token (n, t).
        rows: which row each query is in.
        spots: row and position (k, 2) of what predicts each answer token, query by query.
        wanted: the answer tokens' ids (k,).
        sizes: how many of them each query has.
    """

    layout: Layout
    ids: Tensor
    mask: Tensor
    rows: tuple[int, ...]
    spots: Tensor
    wanted: Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, target: Target, queries: Queries) -> Asked:
        """The queries as the target is asked.

        Raises:
            AuditError: the model's blocks are not found.
        """
        layout = layout_of(target)
        asked = target.asked(queries)
        prompts = [encode(target.tokenizer, query.prompt) for query in asked]
        answers = [continuation(target.tokenizer, *query) for query in asked]
        rows = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
        check_ids(target.model, rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        row_of = {i: row for row, i in enumerate(order)}
        ids, mask = pad([rows[i] for i in order], filler_id(target.tokenizer, target.model), layout.device)
        spots = [
            (row_of[i], len(p) - 1 + k)
            for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
            for k in range(len(a))
        ]
        wanted = [token for answer in answers for token in answer]
        return cls(
            layout,
            ids,
            mask,
            tuple(row_of[i] for i in range(len(rows))),
            torch.tensor(spots),
            torch.tensor(wanted),
            tuple(map(len, answers)),
        )

    @property
    def depth(self) -> int:
        """How many blocks the model has."""
        return len(self.layout.blocks)

    @property
    def firsts(self) -> Tensor:
        """Which of `spots` predicts each query's first answer token (n,)."""
        return torch.tensor([0, *self.sizes[:-1]]).cumsum(0)

    def tape(self) -> Tape:
        """The model's own run, with the output of every block."""
        with _quiet(self.layout):
            layers = range(self.depth)
            return record(self.layout, self.ids, self.mask, replayed=layers, outputs=layers)

    def at(self, hidden: Tensor) -> Tensor:
        """Of states (n, t, d) those at `spots` (k, d)."""
        return hidden[tuple(self.spots.to(hidden.device).T)]

    def lasts(self, tape: Tape) -> Tensor:
        """Every block's output at each prompt's last token (layers, n, d), in float32, on the CPU."""
        return torch.stack([self.at(tape.outputs[layer])[self.firsts].float().cpu() for layer in range(self.depth)])

    def put(self, hidden: Tensor, states: Tensor) -> Tensor:
        """A copy of states (n, t, d) with others (k, d) at `spots`."""
        found = hidden.clone()
        found[tuple(self.spots.to(hidden.device).T)] = states.to(found)
        return found

    def onwards(self, tape: Tape, layer: int, hidden: Tensor) -> list[AnswerTokens]:
        """The answers' tokens where block `layer` gives `hidden` (n, t, d), by the blocks after it as they are now."""
        with _quiet(self.layout):
            for later in range(layer + 1, self.depth):
                hidden = tape.run(later, hidden)
        return self.answers(self.at(hidden))

    def answers(self, states: Tensor) -> list[AnswerTokens]:
        """The answers' tokens, read by the final norm and head from states (k, d) at `spots`."""
        log_p, hit = zip(*self.read(states, _chance), strict=True)
        parts = zip(torch.cat(log_p).split(self.sizes), torch.cat(hit).split(self.sizes), strict=True)
        ids = self.wanted.split(self.sizes)
        return [AnswerTokens(tuple(i.tolist()), *part) for i, part in zip(ids, parts, strict=True)]

    def read(
        self, states: Tensor, of: Callable[[Tensor, Tensor], tuple[Tensor, ...]], wanted: Tensor | None = None
    ) -> list[tuple[Tensor, ...]]:
        """`of` logits (·, v) and wanted ids (·,), on the CPU, a few states (k, d) at a time."""
        ids = self.wanted if wanted is None else wanted
        vocabulary = int(self.layout.model.config.get_text_config().vocab_size)
        size = good_positions(states.device, vocabulary)
        with _quiet(self.layout):
            return [
                tuple(value.cpu() for value in of(logits, tokens.to(logits.device)))
                for part, tokens in zip(states.split(size), ids.split(size), strict=True)
                for logits in (self.layout.logits(part),)
            ]


def known_pairs(target: Target, most: int) -> list[tuple[Query, Query]]:
    """Up to `most` prompts about other subjects that the model answers, each with the same about a made-up subject."""
    pairs = zip(target.others, target.strange, strict=False)
    return [(query, query._replace(prompt=prompt)) for query, prompt in pairs if prompt][:most]


def paired_states(target: Target, pairs: Sequence[tuple[Query, Query]]) -> Tensor:
    """`Asked.lasts` of the p first ones of pairs, then of the second ones (layers, 2p, d)."""
    asked = Asked.of(target, [query for side in zip(*pairs, strict=True) for query in side])
    return asked.lasts(asked.tape())


def _chance(logits: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    log_p = logits.log_softmax(-1)
    return log_p.gather(-1, ids[:, None])[:, 0], log_p.argmax(-1) == ids


@contextmanager
def _quiet(layout: Layout) -> Iterator[None]:
    with frozen(layout.model), torch.no_grad():
        yield
