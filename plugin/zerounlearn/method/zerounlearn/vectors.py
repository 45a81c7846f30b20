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
from typing import Any

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
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.tape import Tape, record
from zerounlearn.model.tokens import filler_id, pad

log = logging.getLogger(__name__)

# Below this total loss a vector is done (published code).
_DONE = 0.05


@dataclass(frozen=True)
class Solution:
    """What `optimise` found, one row a problem, in the order given.

    `vectors` (n, d) is v0 + δ; `initial` and `final` are the target's loss before and after, its mean NLL in nats
    per token or what `Problem` says; `steps` counts Adam updates.
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
        LayoutError: a block does not add its MLP's output to the residual stream, or cannot be replayed.
        IllPosedError: a loss became NaN or Inf.
    """
    depth = len(layout.blocks)
    if hparams.v_loss_layer is not None and not 0 <= hparams.v_loss_layer < depth:
        raise LayoutError(f"v_loss_layer={hparams.v_loss_layer}: this model's layers are numbered 0 to {depth - 1}")
    size = hparams.z_batch_size or vectors_at_a_time(layout, tokenizer, problems, prefixes)
    chunks = [problems[i : i + size] for i in range(0, len(problems), size)]
    with (
        frozen(layout.model),
        tqdm(total=len(chunks) * hparams.v_num_grad_steps, desc=progress, unit="step",
             disable=None if progress else True) as bar,
    ):  # fmt: skip
        if additive := sorted({p.layer for p in problems if p.at == "projection"}):
            check_additive(layout, tokenizer, problems[0].request.prompt, additive)
        parts = [_optimise_chunk(layout, tokenizer, chunk, prefixes, hparams, bar) for chunk in chunks]
    return Solution(*(torch.cat([getattr(p, f) for p in parts]) for f in ("vectors", "initial", "final", "steps")))


def _optimise_chunk(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    prefixes: Sequence[str],
    hparams: LocatedEdit,
    bar: Any,
) -> Solution:
    rows = build(tokenizer, problems, prefixes, hparams)
    sequences, sequence_of = distinct(row.ids for row in rows)
    ids, mask = pad(sequences, filler_id(tokenizer, layout.model), layout.device)
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
    found = [(tape.outputs if p.at == "block" else tape.written)[p.layer] for p in problems]
    origin = torch.stack([
        states[sequence_of[row.ids], row.position].to(layout.device) for states, row in zip(found, bare, strict=True)
    ])  # fmt: skip
    work = torch.float64 if origin.dtype == torch.float64 else torch.float32
    origin = origin.to(work)

    most = tokens_at_a_time(layout, depth - 1 - lowest)

    def passes(active: set[int], *, whole: bool) -> list[Pass]:
        by_last: dict[int, list[Row]] = {}
        for row in sorted(rows, key=lambda row: len(row.ids) - row.position):  # rows of one length need no padding
            if row.problem in active:
                last = depth - 1
                if row.targets and hparams.v_loss_layer is not None:
                    last = max(hparams.v_loss_layer, problems[row.problem].layer)
                by_last.setdefault(last, []).append(row)
        found = []
        for last, members in sorted(by_last.items()):
            sizes = [ids.shape[1] if whole else len(r.ids) - r.position for r in members]
            for part in even_parts(members, sizes, most):
                part.sort(key=lambda row: problems[row.problem].layer)
                found.append(
                    Pass(tape, part, [sequence_of[r.ids] for r in part], problems, last, contexts, whole=whole)
                )
        return found

    active = set(range(len(problems)))
    whole = not _replay_agrees(passes(active, whole=False), tape)
    if whole and not _replay_agrees(passes(active, whole=True), tape):
        raise LayoutError(
            f"{type(layout.model).__name__}: replaying its blocks does not give its own outputs; "
            "its layers depend on more than their arguments"
        )
    batch = passes(active, whole=whole)
    reference: Tensor | None = None
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
            for one in batch:
                hidden = one.hidden(delta)
                here, kept = one.read_owner.split([one.targets, len(hidden) - one.targets])
                at_subject = None
                if len(kept):
                    if step == 0:
                        expected = log_probabilities(layout, hidden[one.targets :])
                        if reference is None:
                            reference = expected.new_empty(len(problems), expected.shape[1])
                        reference[kept.to(reference.device)] = expected
                    assert reference is not None
                    at_subject = reference[kept.to(reference.device)]
                each = read_losses(layout, hidden, one.token, one.unlikely, at_subject, kl_of=hparams.kl_of).to(work)
                targets = torch.zeros_like(nll).index_add(0, here, each[: one.targets] / one.divisor)
                divergence = torch.zeros_like(kl).index_add(0, kept, hparams.kl_factor * each[one.targets :])
                nll += targets.detach()
                kl += divergence.detach()
                loss = targets + divergence
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
            batch = passes(active, whole=whole)
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
def _replay_agrees(batch: Sequence[Pass], tape: Tape) -> bool:
    """Whether replaying with δ = 0 gives what the model itself gave; looked at in one pass that runs to the end."""
    last = max(tape.outputs)
    one = next((one for one in batch if one.last == last), None)
    if one is None:
        return True
    try:
        replayed = one.hidden(None)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
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
def check_additive(layout: Layout, tokenizer: PreTrainedTokenizerBase, prompt: str, layers: Sequence[int]) -> None:
    """Refuse a block whose output does not move by exactly what is added to its down projection."""
    ids = torch.tensor([list(tokenizer(prompt)["input_ids"])], device=layout.device)
    tape = record(layout, ids, torch.ones_like(ids), replayed=layers, inputs=layers)
    for layer in layers:
        before = tape.run(layer, tape.inputs[layer])
        step = before.abs().max()
        add = layout.projections[layer].register_forward_hook(lambda _, __, output, step=step: output + step)
        try:
            after = tape.run(layer, tape.inputs[layer])
        finally:
            add.remove()
        gap = (after - before - step).abs().max() / step
        if not gap < 100 * torch.finfo(step.dtype).eps:
            raise LayoutError(
                f"layer {layer}: {type(layout.blocks[layer]).__name__} does not add its down projection's output to "
                "the residual stream as it is (a norm or a scale comes after), so V_u at this module is not defined by "
                "what the block writes"
            )
