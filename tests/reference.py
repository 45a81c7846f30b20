"""A plain implementation of the paper's algorithm, to compare with: results in the tests, time in `speed.py`.

It shares no code with the package but the request and its hyperparameters, and works as the published code
(XMUDeepLIT/ZeroUnlearn) does: one request at a time; every Adam step runs the whole model, projects every position
to the vocabulary, and projects the loss layer's output at every position once more; statistics take two passes over
the corpus a layer, one text at a time; the solve is dense, in float64. What the published code gets wrong is left
right here, so that results can be compared: statistics and V_u are taken on the unedited model, both moments are
uncentred, the projector is exact, and reads whose results the published code throws away are not made. Llama's module
names are taken from the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

Fact = tuple[str, str, Sequence[int], Sequence[int]]
"""(prompt, subject, answer ids, neutral ids)"""
Clock = Callable[[str], AbstractContextManager[Any]]


def token_position(tokenizer, text: str, subject: str) -> int:
    """The last token of the last mention of the subject."""
    end = text.rindex(subject) + len(subject)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (s, e) in enumerate(offsets) if s < end <= e)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    return ids, mask


def compute_z(
    model,
    tokenizer,
    prompt,
    subject,
    target,
    prefixes,
    layer,
    hparams,
    *,
    at_projection: bool,
    own_logits: bool = False,
) -> Tensor:
    """v0 + δ for one request; with `own_logits` the loss is read from what the model itself puts out."""
    texts = [prefix + prompt for prefix in ("", *prefixes)]
    rows = [tokenizer(text)["input_ids"] + list(target[:-1]) for text in texts]
    where = [token_position(tokenizer, text, subject) for text in texts]
    kl_position = token_position(tokenizer, f"{subject} is a", subject)
    ids, mask = padded([*rows, tokenizer(f"{subject} is a")["input_ids"]])
    wanted = torch.full_like(ids[:-1], -100)
    for i, row in enumerate(rows):
        wanted[i, len(row) - len(target) : len(row)] = torch.tensor(target)
    template = hparams.rewrite_module_tmp if at_projection else hparams.layer_module_tmp
    norm, head = model.get_submodule(hparams.ln_f_module), model.get_output_embeddings().weight
    depth = model.config.num_hidden_layers
    loss_layer = depth - 1 if hparams.v_loss_layer is None else max(hparams.v_loss_layer, layer)
    origin: list[Tensor] = []
    represented: list[Tensor] = []
    delta = torch.zeros(model.config.hidden_size, dtype=model.dtype, requires_grad=True)

    def add(_, __, output):
        hidden = output if isinstance(output, Tensor) else output[0]
        if not origin:
            origin.append(hidden[0, where[0]].detach().clone())
        hidden = hidden.clone()
        for i, p in enumerate([*where, kl_position]):
            hidden[i, p] += delta
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    def keep(_, __, output):
        represented[:] = [output if isinstance(output, Tensor) else output[0]]

    model.requires_grad_(False)
    optimiser = torch.optim.Adam([delta], lr=hparams.v_lr)
    reference = None
    handles = [
        model.get_submodule(template.format(layer)).register_forward_hook(add),
        model.get_submodule(hparams.layer_module_tmp.format(loss_layer)).register_forward_hook(keep),
    ]
    try:
        for step in range(hparams.v_num_grad_steps):
            optimiser.zero_grad()
            logits = model(input_ids=ids, attention_mask=mask).logits
            at_subject = logits[-1, kl_position].log_softmax(-1)
            if reference is None:
                reference = at_subject.detach().clone()
            log_p = (logits[:-1] if own_logits else norm(represented[0][:-1]) @ head.T).log_softmax(2)
            picked = log_p.gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
            nll = (-(picked * (wanted != -100)).sum(1) / len(target)).mean()
            if hparams.kl_of == "after":
                kl = (at_subject.exp() * (at_subject - reference)).sum()
            else:
                kl = (reference.exp() * (reference - at_subject)).sum()
            loss = nll + hparams.kl_factor * kl + hparams.v_weight_decay * delta.norm() / origin[0].norm() ** 2
            if loss < 0.05 or step == hparams.v_num_grad_steps - 1:
                break
            loss.backward()
            optimiser.step()
            bound = hparams.clamp_norm_factor * origin[0].norm()
            if delta.norm() > bound:
                with torch.no_grad():
                    delta.mul_(bound / delta.norm())
    finally:
        for handle in handles:
            handle.remove()
    return (origin[0] + delta).detach()


@torch.no_grad()
def mean_at_subject(model, tokenizer, prompt, subject, prefixes, name: str, *, inputs: bool) -> Tensor:
    """A module's input or output at the subject's last token: the mean of the bare prompt's and the prefixes' mean."""
    seen: list[Tensor] = []
    texts = [prefix + prompt for prefix in ("", *prefixes)]
    ids, mask = padded([tokenizer(text)["input_ids"] for text in texts])
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, args, output: seen.append(
            (args[0] if inputs else output if isinstance(output, Tensor) else output[0]).clone()
        )
    )
    try:
        model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    found = [seen[0][i, token_position(tokenizer, text, subject)] for i, text in enumerate(texts)]
    return torch.stack([found[0], torch.stack(found[1:]).mean(0)]).mean(0) if prefixes else found[0]


def mean_key(model, tokenizer, prompt, subject, prefixes, layer) -> Tensor:
    """K of one request, in a Llama."""
    return mean_at_subject(
        model, tokenizer, prompt, subject, prefixes, f"model.layers.{layer}.mlp.down_proj", inputs=True
    )


class _Stop(Exception):
    pass


@torch.no_grad()
def moments(model, tokenizer, texts: Sequence[str], layer: int, hparams) -> tuple[Tensor, Tensor]:
    """(E[k kᵀ], E[v kᵀ]) of one layer: two passes, one text at a time, each ending at the layer."""
    dtype = getattr(torch, hparams.mom2_dtype)
    seen: list[Tensor] = []

    def stop(_, args, output):
        seen[:] = [args[0], output]
        raise _Stop

    handle = model.get_submodule(hparams.rewrite_module_tmp.format(layer)).register_forward_hook(stop)
    totals: list[Tensor] = []
    try:
        for left in (0, 1):  # keys with keys, then outputs with keys
            total, count = torch.zeros(()), 0
            for text in texts:
                ids = tokenizer(text, truncation=True, max_length=hparams.stats_max_length)["input_ids"]
                if not ids:
                    continue
                with suppress(_Stop):
                    model(input_ids=torch.tensor([ids]))
                k, x = seen[0][0].to(dtype), seen[left][0].to(dtype)
                total = total + x.mT @ k
                count += len(k)
            totals.append(total / count)
    finally:
        handle.remove()
    return totals[0], totals[1]


def solve(W: Tensor, C: Tensor, VC: Tensor, K: Tensor, M: Tensor, R: Tensor, V: Tensor, hparams) -> Tensor:
    """W' = D W by dense matrices in float64; keys, outputs, residuals and V_u are columns, as in the paper."""
    W, C, VC, K, M, R, V = (x.double() for x in (W, C, VC, K, M, R, V))
    _, _, right = torch.linalg.svd(V.mT, full_matrices=False)
    P = (1 + hparams.projection_eps) * torch.eye(len(W), dtype=W.dtype) - right.mT @ right
    lam_w, lam_f, lam_r = hparams.wiki_KKT_lam, hparams.forget_KKT_lam, hparams.regularization_lam
    VK = lam_w * VC + lam_f * (M + R) @ K.mT
    KK = lam_w * C + lam_f * K @ K.mT
    A = P @ (VK + lam_r * W) @ W.mT
    B = W @ (KK + lam_r * torch.eye(len(KK), dtype=W.dtype)) @ W.mT
    return torch.linalg.solve(B.mT, A.mT).mT @ W


def unlearn(
    model, tokenizer, facts: Sequence[Fact], prefixes, C: dict[int, Tensor], hparams, *,
    VC: dict[int, Tensor] | None = None, clock: Clock = nullcontext, own_logits: bool = False, written: bool = False,
) -> dict[int, Tensor]:  # fmt: skip
    """Edit the model; the edited weights by layer, in float64.

    Args:
        model: changed in place.
        tokenizer: the model's.
        facts: the forget set.
        prefixes: contexts beside the bare prompt.
        C: E[k kᵀ] by layer.
        hparams: the run's.
        VC: E[v kᵀ] by layer; W C by default, which it equals.
        clock: called with a stage's name around each.
        own_logits: see `compute_z`.
        written: each layer's target is what its down projection writes, found on the weights as they are by then.
    """
    last = hparams.layers[-1]

    def find(layer: int, which: int, *, at_projection: bool) -> Tensor:
        found = [
            compute_z(
                model, tokenizer, fact[0], fact[1], fact[which], prefixes, layer, hparams,
                at_projection=at_projection, own_logits=own_logits,
            )
            for fact in facts
        ]  # fmt: skip
        return torch.stack(found).mT

    with clock("z"):
        z = find(hparams.layers[0] if written else last, 3, at_projection=written)
    with clock("sensitive"):
        V = {layer: find(layer, 2, at_projection=True) for layer in hparams.layers}
    edited = {}
    for i, layer in enumerate(hparams.layers):
        name = hparams.rewrite_module_tmp.format(layer)
        if written and i:
            z = find(layer, 3, at_projection=True)
        with clock("keys"):
            state = name if written else hparams.layer_module_tmp.format(last)
            outputs, keys, hidden = (
                torch.stack([
                    mean_at_subject(model, tokenizer, p, s, contexts, module, inputs=inputs) for p, s, _, _ in facts
                ]).mT
                for contexts, module, inputs in ((prefixes, name, False), (prefixes, name, True), ([], state, False))
            )  # fmt: skip
        with clock("solve"):
            stored = model.get_parameter(f"{name}.weight").detach()
            W = stored.mT if isinstance(model.get_submodule(name), Conv1D) else stored
            bias = getattr(model.get_submodule(name), "bias", None)
            b = torch.zeros_like(outputs[:, :1]) if bias is None else bias.detach()[:, None]
            R = (z - hidden) / (len(hparams.layers) - i)
            value = W @ C[layer].to(W.dtype) if VC is None else VC[layer]
            edited[layer] = solve(W, C[layer], value, keys, outputs - b, R, V[layer] - b, hparams)
        with clock("write"), torch.no_grad():
            stored.copy_(edited[layer].mT if W is not stored else edited[layer])
    return edited
