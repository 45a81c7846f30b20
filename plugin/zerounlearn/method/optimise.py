"""Hidden states that make the model say a given text: z* for the neutral target, V_u for the sensitive answer.

A vector δ is added at the subject's last token to the output of a block (z*) or of its down projection
(V_u), and optimised by Adam (paper section 4; the loss is ROME's and MEMIT's). In a block that adds its
MLP's output to the residual stream the two have the same effect on everything above, so vectors of all
layers and requests share their batches: rows join the replay at the block above their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from zerounlearn.errors import IllPosedError, LayoutError
from zerounlearn.method.hparams import ZeroUnlearnHyperParams
from zerounlearn.method.request import Request
from zerounlearn.model.hooks import first_tensor, forward_until, frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.replay import Suffix, Tape, record
from zerounlearn.model.tokens import filler_id, locate, pad

log = logging.getLogger(__name__)

# Below this total loss a vector is done (published code).
_DONE = 0.05


@dataclass(frozen=True)
class Problem:
    """One vector to find: add δ at `layer`, to the block's output or to what its down projection writes."""

    request: Request
    target: tuple[int, ...]
    layer: int
    at: Literal["block", "projection"]


@dataclass(frozen=True)
class Solution:
    """What `optimise` found, one row a problem, in the order given.

    `vectors` (n, d) is v0 + δ; `initial` and `final` are the target's mean NLL in nats per token before
    and after; `steps` counts Adam updates.
    """

    vectors: Tensor
    initial: Tensor
    final: Tensor
    steps: Tensor


@dataclass(frozen=True)
class _Row:
    """One prompt of one problem; `targets` is empty for the row of the KL term."""

    problem: int
    ids: tuple[int, ...]
    position: int
    targets: tuple[int, ...]


class _Group:
    """Rows that are replayed together: one length from the edited position on, one last block, one loss."""

    def __init__(
        self, tape: Tape, rows: Sequence[_Row], sequences: Sequence[int], problems: Sequence[Problem],
        last: int, contexts: int, *, whole: bool,
    ) -> None:  # fmt: skip
        device = next(iter(tape.outputs.values())).device
        order = sorted(range(len(rows)), key=lambda i: problems[rows[i].problem].layer)
        self.rows = [rows[i] for i in order]
        self.last = last
        self.layers = [problems[row.problem].layer for row in self.rows]
        self.problem = torch.tensor([row.problem for row in self.rows], device=device)
        start = torch.tensor([row.position for row in self.rows], device=device)
        size = len(self.rows[0].ids) - self.rows[0].position
        sequence = torch.tensor([sequences[i] for i in order], device=device)
        self.suffix = Suffix(tape, sequence, start, size, whole=whole)
        targets = [
            (i, len(row.ids) - max(len(row.targets), 1) + j, token)
            for i, row in enumerate(self.rows)
            for j, token in enumerate(row.targets or (-1,))
        ]
        self.read_row = torch.tensor([t[0] for t in targets], device=device)
        shift = start - self.suffix.offset
        self.read_at = torch.tensor([t[1] for t in targets], device=device) - shift[self.read_row]
        self.read_token = torch.tensor([t[2] for t in targets], device=device)
        # A problem's loss is the mean over its contexts of the mean over each one's targets.
        self.divisor = torch.tensor([max(len(row.targets), 1) * contexts for row in self.rows], device=device)[
            self.read_row
        ]

    def hidden(self, delta: Tensor | None) -> Tensor:
        """Hidden states (rows, positions, d) after block `last`, with δ (problems, d) added where it belongs."""
        entered = 0
        hidden: Tensor | None = None
        for block in range(self.layers[0], self.last + 1):
            if block > self.layers[0] and hidden is not None:
                hidden = self.suffix.run(block, hidden)
            upto = sum(layer <= block for layer in self.layers)
            if upto > entered:
                rows = slice(entered, upto)
                new = self.suffix.enter(block, rows)
                if delta is not None:
                    spot = F.one_hot(self.suffix.offset[rows], new.shape[1]).to(new.dtype)
                    new = new + spot[:, :, None] * delta[self.problem[rows], None].to(new.dtype)
                hidden = new if hidden is None else torch.cat([hidden, new])
                entered = upto
        assert hidden is not None
        return hidden

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states (targets, d) at the positions that the loss is read from."""
        return hidden[self.read_row, self.read_at]


def build(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: ZeroUnlearnHyperParams,
) -> list[_Row]:
    """The rows of every problem: each context's prompt with the target's head start, then '{subject} is a'."""
    rows = []
    for i, problem in enumerate(problems):
        request = problem.request
        start, end = request.subject_span
        for prefix in ("", *prefixes):
            text = prefix + request.prompt
            ids, position = locate(tokenizer, text, len(prefix) + start, len(prefix) + end, hparams.fact_token)
            rows.append(_Row(i, (*ids, *problem.target[:-1]), position, problem.target))
        ids, position = locate(tokenizer, f"{request.subject} is a", 0, len(request.subject), hparams.fact_token)
        rows.append(_Row(i, tuple(ids[: position + 1]), position, ()))
    return rows


def optimise(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: ZeroUnlearnHyperParams,
    *,
    progress: str | None = "vectors",
) -> Solution:
    """Find every problem's vector, `z_batch_size` at a time, each with its own early stop and clamp.

    Args:
        layout: the model; its weights are not changed and get no gradients.
        tokenizer: the model's.
        problems: what to find.
        prefixes: sampled contexts, from `sample_prefixes`.
        hparams: the `v_*`, `clamp_norm_factor` and `kl_factor` of the run.
        progress: label of the progress bar, None for none.

    Raises:
        LayoutError: a block does not add its MLP's output to the residual stream, or cannot be replayed.
        IllPosedError: a loss became NaN or Inf.
    """
    depth = len(layout.blocks)
    if hparams.v_loss_layer is not None and not 0 <= hparams.v_loss_layer < depth:
        raise LayoutError(f"v_loss_layer={hparams.v_loss_layer}: this model's layers are numbered 0 to {depth - 1}")
    chunks = [problems[i : i + hparams.z_batch_size] for i in range(0, len(problems), hparams.z_batch_size)]
    with (
        frozen(layout.model),
        tqdm(total=len(chunks) * hparams.v_num_grad_steps, desc=progress, unit="step",
             disable=None if progress else True) as bar,
    ):  # fmt: skip
        for layer in sorted({p.layer for p in problems if p.at == "projection"}):
            _check_additive(layout, tokenizer, problems[0].request.prompt, layer)
        parts = [_optimise_chunk(layout, tokenizer, chunk, prefixes, hparams, bar) for chunk in chunks]
    return Solution(*(torch.cat([getattr(p, f) for p in parts]) for f in ("vectors", "initial", "final", "steps")))


def _optimise_chunk(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: ZeroUnlearnHyperParams,
    bar: Any,
) -> Solution:
    rows = build(tokenizer, problems, prefixes, hparams)
    unique = {ids: i for i, ids in enumerate(dict.fromkeys(row.ids for row in rows))}
    ids, mask = pad(list(unique), filler_id(tokenizer), layout.device)
    depth = len(layout.blocks)
    lowest = min(p.layer for p in problems)
    tape = record(
        layout, ids, mask,
        replayed=range(lowest + 1, depth),
        outputs={*(p.layer for p in problems), depth - 1},
        written={p.layer for p in problems if p.at == "projection"},
        attention=True,
    )  # fmt: skip
    per_problem = len(rows) // len(problems)
    contexts = per_problem - 1
    bare = [rows[i * per_problem] for i in range(len(problems))]
    origin = torch.stack([
        (tape.outputs if p.at == "block" else tape.written)[p.layer][unique[row.ids], row.position].to(layout.device)
        for p, row in zip(problems, bare, strict=True)
    ])  # fmt: skip
    work = torch.float64 if origin.dtype == torch.float64 else torch.float32
    origin = origin.to(work)

    def group_up(active: set[int], *, whole: bool) -> list[_Group]:
        found: dict[tuple[int, int, bool], list[_Row]] = {}
        for row in rows:
            if row.problem in active:
                last = depth - 1
                if row.targets and hparams.v_loss_layer is not None:
                    last = max(hparams.v_loss_layer, problems[row.problem].layer)
                found.setdefault((last, len(row.ids) - row.position, bool(row.targets)), []).append(row)
        return [
            _Group(tape, members, [unique[r.ids] for r in members], problems, last, contexts, whole=whole)
            for (last, _, _), members in sorted(found.items())
        ]

    active = set(range(len(problems)))
    whole = not _replay_agrees(group_up(active, whole=False), tape)
    if whole and not _replay_agrees(group_up(active, whole=True), tape):
        raise LayoutError(
            f"{type(layout.model).__name__}: replaying its blocks does not give its own outputs; "
            "its layers depend on more than their arguments"
        )
    groups = group_up(active, whole=whole)
    reference: dict[int, Tensor] = {}
    delta = torch.zeros_like(origin, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=hparams.v_lr)
    bound = hparams.clamp_norm_factor * origin.norm(dim=1)
    initial = torch.zeros(len(problems), dtype=work, device=origin.device)
    final, steps = initial.clone(), torch.zeros(len(problems), dtype=torch.long)

    for step in range(hparams.v_num_grad_steps):
        stepping = step < hparams.v_num_grad_steps - 1
        optimiser.zero_grad()
        nll, kl = torch.zeros_like(initial), torch.zeros_like(initial)
        with torch.set_grad_enabled(stepping):
            for group in groups:
                logits = layout.logits(group.read(group.hidden(delta))).to(work)
                owner = group.problem[group.read_row]
                if group.rows[0].targets:
                    each = F.cross_entropy(logits, group.read_token, reduction="none") / group.divisor
                    loss = torch.zeros_like(nll).index_add(0, owner, each)
                    nll += loss.detach()
                else:
                    log_p = logits.log_softmax(-1)
                    if step == 0:
                        reference |= dict(zip(owner.tolist(), log_p.detach(), strict=True))
                    before = torch.stack([reference[i] for i in owner.tolist()])
                    each = hparams.kl_factor * F.kl_div(log_p, before, reduction="none", log_target=True).sum(-1)
                    loss = torch.zeros_like(kl).index_add(0, owner, each)
                    kl += loss.detach()
                if stepping:
                    loss.sum().backward()
            decay = hparams.v_weight_decay * delta.norm(dim=1) / origin.norm(dim=1).square()
            if stepping:
                decay.sum().backward()
        total = nll + kl + decay.detach()
        live = torch.tensor(sorted(active), device=total.device)
        if not torch.isfinite(total[live]).all():
            raise IllPosedError(
                f"the loss of {int((~torch.isfinite(total[live])).sum())} of {len(live)} vectors is NaN or Inf at step "
                f"{step}: check the checkpoint for NaN weights, or load it in bfloat16 or float32 instead of float16"
            )
        if step == 0:
            initial = nll
        final[live] = nll[live]
        finished = set(live[total[live] < _DONE].tolist())
        bar.update()
        if finished:
            active -= finished
            groups = group_up(active, whole=whole)
        if not active or not stepping:
            bar.update(hparams.v_num_grad_steps - step - 1)
            break
        with torch.no_grad():
            kept = delta.detach().clone()
            optimiser.step()
            frozen_rows = torch.tensor([i not in active for i in range(len(problems))], device=delta.device)
            delta[frozen_rows] = kept[frozen_rows]
            norm = delta.norm(dim=1)
            delta *= torch.where(norm > bound, bound / norm, torch.ones_like(norm))[:, None]
        steps[sorted(active)] += 1
    return Solution((origin + delta.detach()), initial, final, steps)


@torch.no_grad()
def _replay_agrees(groups: Sequence[_Group], tape: Tape) -> bool:
    """Whether replaying with δ = 0 gives what the model itself gave."""
    last = max(tape.outputs)
    for group in groups:
        if group.last != last:
            continue
        try:
            replayed = group.read(group.hidden(None))
        except (AttributeError, TypeError, RuntimeError) as error:
            log.info("suffix replay is not possible here (%s); whole rows are replayed", error)
            return False
        absolute = group.read_at + (group.suffix.start - group.suffix.offset)[group.read_row]
        own = tape.outputs[last][group.suffix.sequence[group.read_row], absolute]
        tolerance = 50 * torch.finfo(own.dtype).eps ** 0.75
        gap = (replayed - own).float().norm() / own.float().norm()
        if not gap < tolerance:
            log.info("suffix replay differs by %.1e; whole rows are replayed", float(gap))
            return False
    return True


@torch.no_grad()
def _check_additive(layout: Layout, tokenizer: PreTrainedTokenizerBase, prompt: str, layer: int) -> None:
    """Refuse a block whose output does not move by exactly what is added to its down projection."""
    ids = torch.tensor([list(tokenizer(prompt)["input_ids"])], device=layout.device)
    block, projection = layout.blocks[layer], layout.projections[layer]
    seen: list[Tensor] = []
    keep = block.register_forward_hook(lambda _, __, output: seen.append(first_tensor(output)))
    try:
        forward_until(layout.model, block, input_ids=ids, use_cache=False)
        step = seen[0].abs().max()
        add = projection.register_forward_hook(lambda _, __, output: output + step)
        try:
            forward_until(layout.model, block, input_ids=ids, use_cache=False)
        finally:
            add.remove()
    finally:
        keep.remove()
    gap = (seen[1] - seen[0] - step).abs().max() / step
    if not gap < 100 * torch.finfo(step.dtype).eps:
        raise LayoutError(
            f"layer {layer}: {type(block).__name__} does not add its down projection's output to the residual stream "
            "as it is (a norm or a scale comes after), so V_u at this module is not defined by what the block writes"
        )
