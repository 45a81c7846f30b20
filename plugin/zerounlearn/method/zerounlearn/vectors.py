"""Hidden states that make the model say a given text: z* for the neutral target, V_u for the sensitive answer.

A vector δ is added at the subject's last token to the output of a block (z*) or of its down projection
(V_u), and optimised (paper section 4; the loss is ROME's and MEMIT's): by the published Adam, or by a few of Polyak's
steps, which come as far. In a block that adds its
MLP's output to the residual stream the two have the same effect on everything above, so vectors of all
layers and requests share their batches: rows join the replay at the block above their own. Where a block
does more with its MLP's output (a norm, a scale), they join at the block itself, which is run with δ in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from zerounlearn.errors import IllPosedError, LayoutError
from zerounlearn.method.zerounlearn.batches import (
    Pass,
    Row,
    build,
    distinct,
    even_parts,
    tokens_at_a_time,
    vectors_at_a_time,
)
from zerounlearn.method.zerounlearn.batches import Problem as Problem
from zerounlearn.method.zerounlearn.config import LocatedEdit
from zerounlearn.method.zerounlearn.losses import log_probabilities, read_losses
from zerounlearn.model.hooks import first_tensor, frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.tape import Tape, record
from zerounlearn.model.tokens import filler_id, pad

log = logging.getLogger(__name__)

# Below this total loss a vector is done (published code).
_DONE = 0.05
# The longest of Polyak's steps, as a share of the bound of ‖δ‖.
_LONGEST = 0.2
# What a model raises whose attention does not take what stands in for its cache or its mask.
_UNFIT = (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Solution:
    """What `optimise` found, one row a problem, in the order given.

    `vectors` (n, d) is v0 + δ; `initial` and `final` are the target's loss before and after, its mean NLL in nats
    per token or what `Problem` says; `steps` counts its steps.
    """

    vectors: Tensor
    initial: Tensor
    final: Tensor
    steps: Tensor


def optimise(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: LocatedEdit,
    *,
    progress: str | None = "vectors",
) -> Solution:
    """Find every problem's vector, `z_batch_size` at a time, each with its own early stop and clamp.

    Where `z_batch_size` is None, as many at a time as free memory allows; the tokens of a pass are always chosen so.

    Args:
        layout: the model; its weights are not changed and get no gradients.
        tokenizer: the model's.
        problems: what to find.
        prefixes: sampled contexts, from `sample_prefixes`.
        hparams: the `v_*`, `clamp_norm_factor` and `kl_factor` of the run.
        progress: label of the progress bar, None for none.

    Raises:
        LayoutError: a block cannot be replayed, or the model makes its logits in a way that is not known here.
        IllPosedError: a loss became NaN or Inf.
    """
    depth = len(layout.blocks)
    if hparams.v_loss_layer is not None and not 0 <= hparams.v_loss_layer < depth:
        raise LayoutError(f"v_loss_layer={hparams.v_loss_layer}: this model's layers are numbered 0 to {depth - 1}")
    with frozen(layout.model):
        check_logits(layout, tokenizer, problems[0].request.prompt)
        problems = _placed(layout, tokenizer, problems)
    size = hparams.z_batch_size or vectors_at_a_time(layout, tokenizer, problems, prefixes)
    chunks = [problems[i : i + size] for i in range(0, len(problems), size)]
    with (
        frozen(layout.model),
        tqdm(
            total=len(chunks) * _evaluations(hparams),
            desc=progress,
            unit="step",
            disable=None if progress else True,
        ) as bar,
    ):
        parts = [_optimise_chunk(layout, tokenizer, chunk, prefixes, hparams, bar) for chunk in chunks]
    return Solution(*(torch.cat([getattr(p, f) for p in parts]) for f in ("vectors", "initial", "final", "steps")))


def _placed(layout: Layout, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> Sequence[Problem]:
    """The problems, those at a down projection "written" where its block does more with its output than add it."""
    layers = sorted({p.layer for p in problems if p.at == "projection"})
    if not layers or is_additive(layout, tokenizer, problems[0].request.prompt, layers):
        return problems
    return [replace(p, at="written") if p.at == "projection" else p for p in problems]


class _Search:
    """δ of problems that share a tape: the model runs once, then the blocks above what is moved, step by step.

    Attributes:
        origin: what δ is added to (problems, d), float32 or float64.
        bound: how long δ may be (problems, 1).
        delta: δ (problems, d).
        active: numbers of the problems that are not done yet.
    """

    def __init__(
        self,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        prefixes: Sequence[str],
        hparams: LocatedEdit,
    ) -> None:
        """Run the model on all contexts, and see whether its blocks can be replayed from where δ begins to matter.

        Raises:
            LayoutError: its blocks depend on more than their arguments.
        """
        self.layout, self.problems, self.hparams = layout, problems, hparams
        self.rows = build(tokenizer, problems, prefixes, hparams)
        sequences, self.sequence_of = distinct(row.ids for row in self.rows)
        ids, mask = pad(sequences, filler_id(tokenizer, layout.model), layout.device)
        self.width = ids.shape[1]
        depth, lowest = len(layout.blocks), min(p.first for p in problems)
        wanted: dict[str, Any] = {
            "replayed": range(lowest, depth),
            "inputs": {p.layer for p in problems if p.at == "written"},
            "outputs": {*(p.layer for p in problems if p.at != "written"), depth - 1},
            "written": {p.layer for p in problems if p.at != "block"},
        }
        try:
            self.tape = record(layout, ids, mask, **wanted, attention=True)
        except (AttributeError, TypeError) as error:
            log.info("keys and values cannot be had (%s); whole rows are replayed", error)
            self.tape = record(layout, ids, mask, **wanted)
        self.contexts = len(self.rows) // len(problems) - 1
        self.most = tokens_at_a_time(layout, depth - lowest)
        self.active = set(range(len(problems)))
        self.origin = self._origin()
        self.bound = hparams.clamp_norm_factor * self.origin.norm(dim=1, keepdim=True)
        self.delta = torch.zeros_like(self.origin, requires_grad=True)
        self.reference: Tensor | None = None
        self.whole = self._must_replay_whole_rows()
        self.batch = self._passes(whole=self.whole)

    def _origin(self) -> Tensor:
        """What each problem's δ is added to, read on its bare prompt, (problems, d)."""
        each = self.contexts + 1
        bare = [self.rows[i * each] for i in range(len(self.problems))]
        states = [(self.tape.outputs if p.at == "block" else self.tape.written)[p.layer] for p in self.problems]
        origin = torch.stack(
            [
                state[self.sequence_of[row.ids], row.position].to(self.layout.device)
                for state, row in zip(states, bare, strict=True)
            ]
        )
        return origin.to(torch.float64 if origin.dtype == torch.float64 else torch.float32)

    def _must_replay_whole_rows(self) -> bool:
        whole = not _replay_agrees(self._passes(whole=False), self.tape)
        if whole and not _replay_agrees(self._passes(whole=True), self.tape):
            raise LayoutError(
                f"{type(self.layout.model).__name__}: replaying its blocks does not give its own outputs; "
                "its layers depend on more than their arguments"
            )
        return whole

    def _passes(self, *, whole: bool) -> list[Pass]:
        """The rows of the active problems, by the block that their loss is read behind, in parts that memory allows."""
        depth, by_last = len(self.layout.blocks), dict[int, list[Row]]()
        for row in sorted(self.rows, key=lambda row: len(row.ids) - row.position):  # of one length: no padding
            if row.problem in self.active:
                last = depth - 1
                if row.aims and self.hparams.v_loss_layer is not None:
                    last = max(self.hparams.v_loss_layer, self.problems[row.problem].layer)
                by_last.setdefault(last, []).append(row)
        passes = []
        for last, members in sorted(by_last.items()):
            sizes = [self.width if whole else len(row.ids) - row.position for row in members]
            for part in even_parts(members, sizes, self.most):
                part.sort(key=lambda row: self.problems[row.problem].first)
                sequences = [self.sequence_of[row.ids] for row in part]
                passes.append(Pass(self.tape, part, sequences, self.problems, last, self.contexts, whole=whole))
        return passes

    def losses(self, *, first: bool, slopes: bool) -> tuple[Tensor, Tensor]:
        """The targets' mean losses (problems,), and with KL and decay the whole ones; slopes go into δ's gradient."""
        nll, kl = torch.zeros_like(self.origin[:, 0]), torch.zeros_like(self.origin[:, 0])
        with torch.set_grad_enabled(slopes):
            for one in self.batch:
                targets, divergence = self._losses_of(one, first=first)
                nll += targets.detach()
                kl += divergence.detach()
                loss = targets + divergence
                if slopes:
                    loss.sum().backward()
            decay = self.hparams.v_weight_decay * self.delta.norm(dim=1) / self.origin.norm(dim=1).square()
            if slopes:
                decay.sum().backward()
        return nll, nll + kl + decay.detach()

    def _losses_of(self, one: Pass, *, first: bool) -> tuple[Tensor, Tensor]:
        """A pass's share in each problem's target loss and KL term, both (problems,)."""
        hidden = one.hidden(self.delta)
        aims = one.targets + one.opens
        here, kept = one.read_owner.split([aims, len(hidden) - aims])
        at_subject = None
        if len(kept):
            if first:
                expected = log_probabilities(self.layout, hidden[aims:])
                if self.reference is None:
                    self.reference = expected.new_empty(len(self.problems), expected.shape[1])
                self.reference[kept.to(self.reference.device)] = expected
            assert self.reference is not None
            at_subject = self.reference[kept.to(self.reference.device)]
        said, between, after = hidden.split([one.targets, one.opens, len(kept)])
        rest = torch.cat([said, after]) if one.opens else hidden
        each = read_losses(self.layout, rest, one.token, one.unlikely, at_subject, kl_of=self.hparams.kl_of)
        own, kl = each.to(self.origin.dtype).split([one.targets, len(kept)])
        if one.opens:
            owners = here[one.targets :].tolist()
            wanted = torch.stack([cast(Tensor, self.problems[i].expected) for i in owners])
            none = one.token[:0], one.unlikely[:0]
            opened = read_losses(self.layout, between, *none, wanted, kl_of="before")
            own = torch.cat([own, opened.to(own)])
        zeros = torch.zeros_like(self.origin[:, 0])
        return zeros.index_add(0, here, own / one.divisor), zeros.index_add(0, kept, self.hparams.kl_factor * kl)

    def finish(self, done: set[int]) -> None:
        """Leave these problems out from now on."""
        if done:
            self.active -= done
            self.batch = self._passes(whole=self.whole)

    def move(self, delta: Tensor) -> None:
        """Take δ of the active problems, each kept within its bound; the others stay where they are."""
        active = torch.tensor(sorted(self.active), device=delta.device)
        norm = delta[active].norm(dim=1, keepdim=True)
        self.delta[active] = delta[active] * (
            self.bound[active] / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        ).clamp_max(1)


class _Adam:
    """The published steps: Adam's, and the last δ counts."""

    def __init__(self, search: _Search) -> None:
        assert search.hparams.v_lr is not None, "a run measures it"
        self.search = search
        self.optimiser = torch.optim.Adam([search.delta], lr=search.hparams.v_lr)

    def judge(self, live: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Of the `live` problems with these losses, which δ count so far, and which are done."""
        return torch.ones_like(live, dtype=torch.bool), total[live] < _DONE

    def step(self) -> None:
        """The next δ of the active problems."""
        before = self.search.delta.detach().clone()
        self.optimiser.step()
        after = self.search.delta.detach().clone()
        self.search.delta.copy_(before)
        self.search.move(after)

    @property
    def found(self) -> Tensor:
        """δ (problems, d)."""
        return self.search.delta.detach()


class _Polyak:
    """Along the gradient, as far as would bring the loss f to zero if it were linear: f / ‖∇f‖ (Polyak 1969).

    A step is `_LONGEST` of the bound at most. One that gains nothing is taken back, and all later ones are half as
    long.
    """

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.found = search.delta.detach().clone()
        self.slope = torch.zeros_like(self.found)
        self.lowest = torch.full_like(search.origin[:, 0], float("inf"))
        self.share = torch.ones_like(self.lowest)

    def judge(self, live: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Adam.judge`."""
        better = total[live] < self.lowest[live]
        rows, worse = live[better], live[~better]
        self.found[rows], self.lowest[rows] = self.search.delta.detach()[rows], total[rows]
        if self.search.delta.grad is not None:
            self.slope[rows] = self.search.delta.grad[rows]
        self.share[worse] /= 2
        return better, total[live] < _DONE

    def step(self) -> None:
        """See `_Adam.step`."""
        steepness = self.slope.norm(dim=1).clamp_min(torch.finfo(self.slope.dtype).tiny)
        length = self.share * torch.minimum(self.lowest / steepness, _LONGEST * self.search.bound[:, 0])
        self.search.move(self.found - (length / steepness)[:, None] * self.slope)


def _evaluations(hparams: LocatedEdit) -> int:
    """How often the losses are taken, at most; the last time without a step after it."""
    return hparams.v_num_grad_steps if hparams.reproduce == "exact" else hparams.v_steps + 1


def _optimise_chunk(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: LocatedEdit,
    bar: Any,
) -> Solution:
    search = _Search(layout, tokenizer, problems, prefixes, hparams)
    descent = (_Adam if hparams.reproduce == "exact" else _Polyak)(search)
    initial = torch.zeros_like(search.origin[:, 0])
    final, steps = initial.clone(), torch.zeros(len(problems), dtype=torch.long)
    evaluations = _evaluations(hparams)
    for step in range(evaluations):
        stepping = step < evaluations - 1
        search.delta.grad = None
        nll, total = search.losses(first=step == 0, slopes=stepping)
        live = torch.tensor(sorted(search.active), device=total.device)
        if not torch.isfinite(total[live]).all():
            raise IllPosedError(
                f"the loss of {int((~torch.isfinite(total[live])).sum())} of {len(live)} vectors is NaN or Inf at step "
                f"{step}: check the checkpoint for NaN weights, or load it in bfloat16 or float32 instead of float16"
            )
        if step == 0:
            initial = nll
        counts, done = descent.judge(live, total)
        final[live[counts]] = nll[live[counts]]
        bar.update()
        search.finish(set(live[done].tolist()))
        if not search.active or not stepping:
            bar.update(evaluations - step - 1)
            break
        with torch.no_grad():
            descent.step()
        steps[sorted(search.active)] += 1
    return Solution(search.origin + descent.found, initial, final, steps)


@torch.no_grad()
def _replay_agrees(batch: Sequence[Pass], tape: Tape) -> bool:
    """Whether replaying with δ = 0 gives what the model itself gave; looked at in one pass that runs to the end."""
    last = max(tape.outputs)
    one = next((one for one in batch if one.last == last), None)
    if one is None:
        return True
    try:
        replayed = one.hidden(None)
    except _UNFIT as error:
        log.info("suffix replay is not possible here (%s); whole rows are replayed", error)
        return False
    states = tape.outputs[last]
    sequence, position = one.read_from
    own = states[sequence.to(states.device), position.to(states.device)]
    gap = (replayed.to(own.device) - own).float().norm() / own.float().norm()
    # Models take norms and softmaxes in float32, whatever they are in: padding alone moves those by some 1e-7.
    if gap < max(50 * torch.finfo(own.dtype).eps ** 0.75, 1e-6):
        return True
    log.info("suffix replay differs by %.1e; whole rows are replayed", float(gap))
    return False


@torch.no_grad()
def is_additive(layout: Layout, tokenizer: PreTrainedTokenizerBase, prompt: str, layers: Sequence[int]) -> bool:
    """Whether the output of each block moves by exactly what is added to its down projection."""
    ids = torch.tensor([list(tokenizer(prompt)["input_ids"])], device=layout.device)
    tape = record(layout, ids, torch.ones_like(ids), replayed=layers, inputs=layers)
    for layer in layers:
        before = tape.run(layer, tape.inputs[layer])
        step = before.abs().max()
        with layout.projections[layer].register_forward_hook(lambda _, __, output, step=step: output + step):
            after = tape.run(layer, tape.inputs[layer])
        gap = (after - before - step).abs().max() / step
        if not gap < min(100 * torch.finfo(step.dtype).eps, 0.1):  # a hundred of bfloat16's would let a scale pass
            log.info("layer %d does more with its MLP's output than add it: it is run again with δ in it", layer)
            return False
    return True


@torch.no_grad()
def check_logits(layout: Layout, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    """Refuse a model whose logits are not those of its final norm and head, and of what is known to follow.

    Raises:
        LayoutError: they differ.
    """
    ids = torch.tensor([list(tokenizer(prompt)["input_ids"])], device=layout.device)
    seen: list[Tensor] = []
    with layout.blocks[-1].register_forward_hook(lambda _, __, output: seen.append(first_tensor(output))):
        own = layout.model(input_ids=ids, use_cache=False).logits
    found = layout.logits(seen[0])
    gap = (found.to(own.device) - own).float().norm() / own.float().norm()
    if not gap < max(50 * torch.finfo(own.dtype).eps ** 0.75, 1e-6) and torch.isfinite(own).all():
        raise LayoutError(
            f"{type(layout.model).__name__} does something to its logits that is not known here: they differ by "
            f"{gap:.1e} of their norm from those of its final norm and head"
        )
