"""A plain implementation to compare with: one request at a time, full forward, full logits at every step.

Written from design and paper, sharing no code with the package but the request and its hyperparameters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_position(tokenizer, text: str, subject: str) -> int:
    """The last token of the last mention of the subject."""
    end = text.rindex(subject) + len(subject)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (s, e) in enumerate(offsets) if s < end <= e)


def compute_z(model, tokenizer, prompt, subject, target, prefixes, layer, hparams, *, at_projection: bool) -> Tensor:
    """v0 + δ for one request."""
    texts = [prefix + prompt for prefix in ("", *prefixes)]
    rows = [tokenizer(text)["input_ids"] + list(target[:-1]) for text in texts]
    kl_row = tokenizer(f"{subject} is a")["input_ids"]
    positions = [token_position(tokenizer, text, subject) for text in texts]
    kl_position = token_position(tokenizer, f"{subject} is a", subject)
    longest = max(len(row) for row in [*rows, kl_row])
    ids = torch.zeros(len(rows) + 1, longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate([*rows, kl_row]):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    where = [*positions, kl_position]
    block = model.model.layers[layer]
    module = block.mlp.down_proj if at_projection else block
    origin: list[Tensor] = []
    delta = torch.zeros(model.config.hidden_size, dtype=model.dtype, requires_grad=True)

    def add(_, __, output):
        hidden = output if isinstance(output, Tensor) else output[0]
        if not origin:
            origin.append(hidden[0, where[0]].detach().clone())
        hidden = hidden.clone()
        for i, p in enumerate(where):
            hidden[i, p] = hidden[i, p] + delta
        return hidden

    optimiser = torch.optim.Adam([delta], lr=hparams.v_lr)
    reference = None
    handle = module.register_forward_hook(add)
    try:
        for step in range(hparams.v_num_grad_steps):
            optimiser.zero_grad()
            log_p = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
            nll = 0.0
            for i, row in enumerate(rows):
                first = len(row) - len(target)
                nll = nll - sum(log_p[i, first + j, t] for j, t in enumerate(target)) / len(target)
            nll = nll / len(rows)
            at_subject = log_p[-1, kl_position]
            if reference is None:
                reference = at_subject.detach().clone()
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
        handle.remove()
    return (origin[0] + delta).detach()


def mean_key(model, tokenizer, prompt, subject, prefixes, layer) -> Tensor:
    """K of one request: the mean of the bare prompt's key and the mean over the prefixes."""
    seen: list[Tensor] = []
    handle = model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        found = []
        for prefix in ("", *prefixes):
            seen.clear()
            with torch.no_grad():
                model(input_ids=torch.tensor([tokenizer(prefix + prompt)["input_ids"]]))
            found.append(seen[0][0, token_position(tokenizer, prefix + prompt, subject)])
    finally:
        handle.remove()
    return torch.stack([found[0], torch.stack(found[1:]).mean(0)]).mean(0) if prefixes else found[0]


def unlearn(model, tokenizer, facts, prefixes, C, hparams) -> dict[int, Tensor]:
    """Edited weights by layer, the dense way; `facts` holds (prompt, subject, answer ids, neutral ids)."""
    last = hparams.layers[-1]
    z = torch.stack([
        compute_z(model, tokenizer, p, s, t, prefixes, last, hparams, at_projection=False) for p, s, _, t in facts
    ])  # fmt: skip
    V = {
        layer: torch.stack([
            compute_z(model, tokenizer, p, s, a, prefixes, layer, hparams, at_projection=True) for p, s, a, _ in facts
        ])
        for layer in hparams.layers
    }  # fmt: skip
    edited = {}
    for i, layer in enumerate(hparams.layers):
        K = torch.stack([mean_key(model, tokenizer, p, s, prefixes, layer) for p, s, _, _ in facts]).double().mT
        hidden = []
        for p, s, _, _ in facts:
            out: list[Tensor] = []
            handle = model.model.layers[last].register_forward_hook(lambda _, __, o, out=out: out.append(o))
            with torch.no_grad():
                model(input_ids=torch.tensor([tokenizer(p)["input_ids"]]))
            handle.remove()
            hidden.append(out[0][0, token_position(tokenizer, p, s)])
        R = ((z - torch.stack(hidden)) / (len(hparams.layers) - i)).double().mT
        parameter = model.model.layers[layer].mlp.down_proj.weight
        W = parameter.detach().double()
        Q = torch.linalg.qr(V[layer].double().mT).Q
        P = torch.eye(W.shape[0], dtype=torch.float64) - Q @ Q.mT
        M, I = W @ K, torch.eye(W.shape[1], dtype=torch.float64)  # noqa: E741
        lam_w, lam_f, lam_r = hparams.wiki_KKT_lam, hparams.forget_KKT_lam, hparams.regularization_lam
        KK = lam_w * C[layer].double() + lam_f * K @ K.mT + lam_r * I
        VK = lam_w * W @ C[layer].double() + lam_f * (M + R) @ K.mT + lam_r * W
        D = torch.linalg.solve((W @ KK @ W.mT).mT, (P @ VK @ W.mT).mT).mT
        edited[layer] = D @ W
        with torch.no_grad():
            parameter.copy_(edited[layer])
    return edited
