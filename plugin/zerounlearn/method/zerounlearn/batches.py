"""What one step of the optimisation runs: rows of prompts, packed into passes that memory allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
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


At = Literal["block", "projection", "written"]


@dataclass(frozen=True)
class Problem:
    """One vector to find: add δ at `layer`, to the block's output or to what its down projection writes.

    "written" is the latter where the block does more with that than add it: the block itself is run again with δ in it.
    The loss is the target's NLL, or with `unlikely` > 0 that many times its unlikelihood −log(1 − p) (Welleck et al.
    2020, arXiv 1908.04319). `expected`, log-probabilities (v,) of what is to come after the prompt, adds
    KL(expected ‖ p); `target` is then empty, or one token that is to be unlikely there.
    """

    request: Request
    target: tuple[int, ...]
    layer: int
    at: At
    unlikely: float = 0.0
    expected: Tensor | None = field(default=None, compare=False)

    @property
    def first(self) -> int:
        """The first block that has to run again with δ."""
        return self.layer if self.at == "written" else self.layer + 1


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
        self.tape, self.last = tape, last
        self.problems = [problems[row.problem] for row in rows]
        self.begins = [problem.first for problem in self.problems]
        assert self.begins == sorted(self.begins)
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
        for block in range(self.begins[0], self.last + 2):
            upto = bisect_right(self.begins, block)
            if upto > entered:
                new = self._entering(block, slice(entered, upto), delta)
                hidden = new if hidden is None else torch.cat([hidden.to(new.device), new])
                entered = upto
            if block <= self.last and hidden is not None:
                with self._written(block, entered, delta):
                    hidden = self.suffix.run(block, hidden, entered)
        assert hidden is not None
        return hidden[self.read_at.to(hidden.device)]

    def _entering(self, block: int, rows: slice, delta: Tensor | None) -> Tensor:
        """What rows that begin at `block` give it: what the block below put out, with their δ unless it comes later."""
        parts = []
        for at, members in groupby(range(rows.start, rows.stop), key=lambda i: self.problems[i].at == "written"):
            some = list(members)
            part = slice(some[0], some[-1] + 1)
            states = self.tape.inputs[block] if at else self.tape.outputs[block - 1]
            new = self.suffix.enter(states, part)
            if delta is not None and not at:
                where = (self.suffix.first[part] - self.suffix.bounds[part.start]).to(new.device)
                new = new.index_add(0, where, delta[self.owner[part]].to(new.device, new.dtype))
            parts.append(new)
        return torch.cat([part.to(parts[0].device) for part in parts]) if len(parts) > 1 else parts[0]

    @contextmanager
    def _written(self, block: int, entered: int, delta: Tensor | None) -> Iterator[None]:
        """While `block` runs, its down projection writes δ too, for the rows whose δ belongs there."""
        rows = [i for i in range(entered) if self.begins[i] == block and self.problems[i].at == "written"]
        if delta is None or not rows:
            yield
            return
        where, own = self.suffix.first[rows], delta[self.owner[rows]]

        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            flat = output.flatten(0, -2)
            moved = flat.index_add(0, where.to(flat.device), own.to(flat.device, flat.dtype))
            return moved.view_as(output)

        with self.tape.layout.projections[block].register_forward_hook(add):
            yield


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
    above = len(layout.blocks) - min(p.first for p in problems)
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
