"""What one step of the optimisation runs: rows of prompts, packed into passes that memory allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.data.request import Request
from zerounlearn.method.zerounlearn.config import LocatedEdit
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import free_memory, good_tokens
from zerounlearn.model.replay import Suffix
from zerounlearn.model.tape import Tape
from zerounlearn.model.tokens import encode, locate

# Vectors that share a tape where their number is left open; the shares of free memory that tape and pass may take.
_VECTORS, _TAPE_SHARE, _PASS_SHARE = 256, 0.25, 0.25


@dataclass(frozen=True)
class Problem:
    """One vector to find: add δ at `layer`, to the block's output or to what its down projection writes.

    The loss is the target's NLL, or with `unlikely` > 0 that many times its unlikelihood −log(1 − p) (Welleck et al.
    2020, arXiv 1908.04319). `expected`, log-probabilities (v,) of what is to come after the prompt, adds
    KL(expected ‖ p); `target` is then empty, or one token that is to be unlikely there.
    """

    request: Request
    target: tuple[int, ...]
    layer: int
    at: Literal["block", "projection"]
    unlikely: float = 0.0
    expected: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Row:
    """One prompt of one problem: with `targets`, with `open` for a distribution, or, without both, of the KL term."""

    problem: int
    ids: tuple[int, ...]
    position: int
    targets: tuple[int, ...]
    open: bool = False

    @property
    def aims(self) -> bool:
        """Whether the problem's own loss is read here."""
        return self.open or bool(self.targets)


class Pass:
    """Rows that go through the blocks together, up to the same last one.

    `targets` come first among the reads, then `opens`, then those of the KL term.
    """

    def __init__(
        self,
        tape: Tape,
        rows: Sequence[Row],
        sequences: Sequence[int],
        problems: Sequence[Problem],
        last: int,
        contexts: int,
        *,
        whole: bool,
    ) -> None:
        device = tape.layout.device
        self.last = last
        self.layers = [problems[row.problem].layer for row in rows]
        assert self.layers == sorted(self.layers)
        self.owner = torch.tensor([row.problem for row in rows], device=device)
        start = torch.tensor([row.position for row in rows], device=device)
        self.suffix = Suffix(
            tape,
            torch.tensor(sequences, device=device),
            start,
            [len(row.ids) - row.position for row in rows],
            whole=whole,
        )
        reads = [
            (i, len(row.ids) - len(row.targets) + j, token)
            for i, row in enumerate(rows)
            for j, token in enumerate(row.targets)
        ]
        self.targets = len(reads)
        reads += [(i, len(row.ids) - 1, -1) for i, row in enumerate(rows) if row.open]
        self.opens = len(reads) - self.targets
        reads += [(i, row.position, -1) for i, row in enumerate(rows) if not row.aims]
        row, position, token = torch.tensor(reads, device=device).T
        self.read_owner = self.owner[row]
        self.read_at = self.suffix.first[row] + position - start[row]
        self.read_from = (self.suffix.sequence[row], position)
        self.token = token[: self.targets]
        # A problem's loss is the mean over its contexts of the mean over each one's targets.
        sizes = torch.tensor([max(len(row.targets), 1) * contexts for row in rows], device=device)
        self.divisor = sizes[row[: self.targets + self.opens]]
        weights = torch.tensor([problems[row.problem].unlikely for row in rows], device=device)
        self.unlikely = weights[row[: self.targets]]

    def hidden(self, delta: Tensor | None) -> Tensor:
        """Hidden states (reads, d) after block `last`, with δ (problems, d) added where it belongs."""
        entered = 0
        hidden: Tensor | None = None
        for block in range(self.layers[0], self.last + 1):
            if hidden is not None:
                hidden = self.suffix.run(block, hidden, entered)
            upto = bisect_right(self.layers, block)
            if upto > entered:
                rows = slice(entered, upto)
                new = self.suffix.enter(block, rows)
                if delta is not None:
                    at = (self.suffix.first[rows] - self.suffix.bounds[entered]).to(new.device)
                    own = delta[self.owner[rows]].to(new.device, new.dtype)
                    new = new.index_add(0, at, own)
                hidden = new if hidden is None else torch.cat([hidden.to(new.device), new])
                entered = upto
        assert hidden is not None
        return hidden[self.read_at.to(hidden.device)]


def build(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: LocatedEdit,
) -> list[Row]:
    """The rows of every problem: each context's prompt with the target's head start, then '{subject} is a'."""
    rows = []
    for i, problem in enumerate(problems):
        request = problem.request
        start, end = request.subject_span
        for prefix in ("", *prefixes):
            text = prefix + request.prompt
            ids, position = locate(tokenizer, text, len(prefix) + start, len(prefix) + end, hparams.fact_token)
            row = Row(i, (*ids, *problem.target[:-1]), position, problem.target, problem.expected is not None)
            rows.append(row)
        ids, position = locate(tokenizer, f"{request.subject} is a", 0, len(request.subject), hparams.fact_token)
        rows.append(Row(i, tuple(ids[: position + 1]), position, ()))
    return rows


def distinct(rows: Iterable[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], dict[tuple[int, ...], int]]:
    """The sequences that are no beginning of another, and by every beginning of theirs where it is found.

    Attention is causal: what a decoder computes at a position does not depend on what follows.
    """
    kept: list[tuple[int, ...]] = []
    found: dict[tuple[int, ...], int] = {}
    for ids in sorted(dict.fromkeys(rows), key=len, reverse=True):
        if ids not in found:
            for end in range(1, len(ids) + 1):
                found.setdefault(ids[:end], len(kept))
            kept.append(ids)
    return kept, found


def even_parts(rows: Sequence[Row], sizes: Sequence[int], most: int) -> list[list[Row]]:
    """The rows in order, in as few parts as hold `most` tokens each, and about equally many."""
    count = -(-sum(sizes) // most)
    parts: list[list[Row]] = [[] for _ in range(count)]
    for row, end in zip(rows, accumulate(sizes), strict=True):
        parts[min((end - 1) * count // sum(sizes), count - 1)].append(row)
    return [part for part in parts if part]


def vectors_at_a_time(
    layout: Layout, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], prefixes: Sequence[str]
) -> int:
    """How many vectors may share a tape: it holds every block's keys and values (2d) and some hidden states a token."""
    d, _, size = _sizes(layout)
    longest = max(
        len(encode(tokenizer, prefix + p.request.prompt)) + len(p.target)
        for p in problems
        for prefix in ("", *prefixes)
    )
    above = len(layout.blocks) - 1 - min(p.layer for p in problems)
    bytes_each = (len(prefixes) + 1) * longest * d * size * (2 * above + 8)
    return max(1, min(_VECTORS, int(free_memory(layout.device) * _TAPE_SHARE / bytes_each)))


def tokens_at_a_time(layout: Layout, blocks: int) -> int:
    """Tokens a pass, so that what is kept for going back fits, by a high estimate: 20d + 6m a token and block."""
    d, m, size = _sizes(layout)
    room = int(free_memory(layout.device) * _PASS_SHARE / (max(blocks, 1) * (20 * d + 6 * m) * max(size, 4)))
    return max(1, min(room, good_tokens(layout.device)))


def _sizes(layout: Layout) -> tuple[int, int, int]:
    """d, m, and bytes a number."""
    layer = next(iter(layout.projections))
    weight, m = layout.parameter(layer), layout.inputs(layer)
    return weight.numel() // m, m, weight.element_size()
