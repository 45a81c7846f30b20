"""What next-token distributions cost, and the slope of that in the hidden states, some logits at a time.

Each loss depends on one hidden state only, so its slope is found together with it: logits of a few positions
become probabilities and then the slope in place, and none are kept for going back.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_positions


def read_losses(
    layout: Layout,
    hidden: Tensor,
    token: Tensor,
    unlikely: Tensor,
    reference: Tensor | None = None,
    *,
    kl_of: Literal["after", "before"] = "after",
) -> Tensor:
    """Each read's loss (t,), in float32 or float64: of the first k −log p(token), or −u log(1 − p(token)) where u > 0.

    The second is the unlikelihood of Welleck et al. 2020 (arXiv 1908.04319). Of the others it is
    KL(p ‖ reference), as in ROME and the published code, or with `kl_of` "before" KL(reference ‖ p).

    Args:
        layout: the model whose final norm and head make logits.
        hidden: the last block's hidden states (t, d); gradients flow to them alone.
        token: ids (k,).
        unlikely: u (k,), 0 for the plain loss.
        reference: log-probabilities (t − k, v) of the model before; None where t = k.
        kl_of: whose distribution the KL averages over.
    """
    return _Losses.apply(layout.norm(hidden), layout, token, unlikely, reference, kl_of == "after")


@torch.no_grad()
def log_probabilities(layout: Layout, hidden: Tensor) -> Tensor:
    """Of every token after hidden states (t, d) of the last block: (t, v)."""
    return layout.logits(hidden).log_softmax(-1)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        layout: Layout,
        token: Tensor,
        unlikely: Tensor,
        reference: Tensor | None,
        of_after: bool,
    ) -> Tensor:
        wanted = states.requires_grad
        most = good_positions(states.device, layout.model.config.get_text_config().vocab_size)
        losses, slopes = [], []
        begin = 0
        for part in states.detach().chunk(-(-len(states) // most)):
            targets = slice(begin, min(begin + len(part), len(token)))
            kept = slice(max(begin - len(token), 0), max(begin + len(part) - len(token), 0))
            begin += len(part)
            with torch.set_grad_enabled(wanted):
                x = part.requires_grad_(wanted)
                logits = layout.project(x)
            log_p = logits.detach().log_softmax(-1)
            at, u = token[targets].to(log_p.device), unlikely[targets].to(log_p)
            k = len(at)
            loss, scale = _target_losses(log_p[:k], at, u)
            losses.append(loss)
            expected = reference[kept].to(log_p) if reference is not None else log_p[:0]
            divergence, kept_slope = _divergence(log_p[k:], expected, of_after=of_after)
            losses.append(divergence)
            if wanted:
                slope = log_p.exp_()
                slope[k:] = kept_slope
                slope[:k] *= scale[:, None]
                slope[:k].scatter_add_(1, at[:, None], -scale[:, None])
                slopes.append(torch.autograd.grad(logits, x, slope.to(logits.dtype))[0])
        ctx.slopes = torch.cat(slopes) if wanted else None
        return torch.cat(losses).to(states.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.slopes * gradients[0][:, None].to(ctx.slopes.dtype), None, None, None, None, None)


def _divergence(log_p: Tensor, expected: Tensor, *, of_after: bool) -> tuple[Tensor, Tensor]:
    """KL (t,) between log-probabilities after and before, both (t, v), and its slope (t, v) in the logits after.

    KL(p ‖ q) = Σ p (log p − log q) has the slope p (log p − log q − KL); KL(q ‖ p) has p − q.
    """
    if not of_after:
        probability = expected.exp()
        return (probability * (expected - log_p)).sum(-1), log_p.exp() - probability
    probability, gap = log_p.exp(), log_p - expected
    divergence = (probability * gap).sum(-1)
    return divergence, probability * (gap - divergence[:, None])


def _target_losses(log_p: Tensor, token: Tensor, unlikely: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (k,) of log-probabilities (k, v), and s (k,): the slope in the logits is s (p − e_token)."""
    own = log_p.gather(1, token[:, None])[:, 0]
    plain = unlikely == 0
    if bool(plain.all()):
        return -own, torch.ones_like(own)
    others = log_p.scatter(1, token[:, None], float("-inf")).logsumexp(-1)
    return (
        torch.where(plain, -own, -unlikely * others),
        torch.where(plain, 1.0, -unlikely * (own - others).exp()),
    )
