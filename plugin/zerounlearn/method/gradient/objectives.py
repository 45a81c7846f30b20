r"""The published objectives as functions of log-probabilities or hidden states; every one is to be minimised.

======  =====  =======================================================================
symbol  shape  meaning
======  =====  =======================================================================
log_p   (n,)   log π_θ(y|x), summed over the tokens of the answer y
log_r   (n,)   the same under the model as it was before unlearning, π_ref
sizes   (n,)   \|y\|, tokens per answer
======  =====  =======================================================================
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def ascent(log_p: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """E[log π_θ(y|x)]: gradient ascent on the answers' NLL.

    Jang et al. 2023 (arXiv 2210.01504), eq. 1: the NLL is summed over tokens. With `likelihood` of a retain set added
    it is the gradient difference of Maini et al. 2024 (TOFU, arXiv 2401.06121), after Liu et al. 2022.
    Unbounded below: only the number of steps ends it.
    """
    return log_p.mean()


def ascent_from_prompt(log_p: Float[Tensor, "n t"], counted: Bool[Tensor, "n t"]) -> Float[Tensor, ""]:
    """E[mean of log π_θ(y_j|x) over the tokens counted]: each token as if it came first, right after the prompt.

    The loss of the GA baseline in ZeroUnlearn's published code (baselines/GA/ga_main.py), that of ROME's FT baseline
    with its sign changed. Equal to `ascent` for answers of one token.
    """
    return ((log_p * counted).sum(-1) / counted.sum(-1)).mean()


def likelihood(log_p: Float[Tensor, " n"], sizes: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """E[−log π_θ(y|x) / |y|]: the NLL per token of what is to be kept.

    Maini et al. 2024 (TOFU, arXiv 2401.06121), the retain term of the gradient difference: per token, so that a long
    text does not outweigh a short answer.
    """
    return -(log_p / sizes).mean()


def token_likelihood(log_p: Float[Tensor, " n"], sizes: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """−Σ log π_θ(y|x) / Σ |y|: the NLL of what is to be kept, a mean over all tokens of a batch.

    As language models are trained, and as the retain term of NPO_grad_diff in ZeroUnlearn's published code has it
    (baselines/NPO/npo_main.py).
    """
    return -log_p.sum() / sizes.sum()


def divergence(logits: Float[Tensor, "m v"], reference: Float[Tensor, "m v"]) -> Float[Tensor, ""]:
    """E[KL(π_ref ‖ π_θ)] over m token positions: keeps the distribution that the model had, right or wrong.

    The KL retain term of Maini et al. 2024 (TOFU, arXiv 2401.06121, "KL minimization") and Zhang et al. 2024.
    """
    return F.kl_div(logits.log_softmax(-1), reference.log_softmax(-1), reduction="batchmean", log_target=True)


def npo(log_p: Float[Tensor, " n"], log_r: Float[Tensor, " n"], beta: float) -> Float[Tensor, ""]:
    """−(2/β) E[log σ(−β log(π_θ/π_ref))], which is bounded below by 0.

    Zhang et al. 2024 (arXiv 2404.05868), the loss L_NPO. Its gradient is that of `ascent` with each answer weighted by
    2 π_θ^β / (π_θ^β + π_ref^β): 1 at the start and for β → 0, and 0 once the answer is forgotten.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_p - log_r)).mean()


def simnpo(
    log_p: Float[Tensor, " n"], sizes: Float[Tensor, " n"], beta: float, gamma: float = 0.0
) -> Float[Tensor, ""]:
    """−(2/β) E[log σ(−(β/|y|) log π_θ(y|x) − γ)]: NPO by the answer's own probability per token.

    Fan et al. 2024 (arXiv 2410.07163), the loss ℓ_SimNPO. A larger margin γ asks for lower probabilities. For β → 0 and
    γ = 0 its gradient is that of E[log π_θ / |y|].
    """
    return -2 / beta * F.logsigmoid(-beta * log_p / sizes - gamma).mean()


def dpo(
    preferred: Float[Tensor, " n"],
    preferred_r: Float[Tensor, " n"],
    dispreferred: Float[Tensor, " n"],
    dispreferred_r: Float[Tensor, " n"],
    beta: float,
) -> Float[Tensor, ""]:
    """−E[log σ(β log(π_θ/π_ref)(y_w|x) − β log(π_θ/π_ref)(y_l|x))]; log 2 where the model is the reference.

    Rafailov et al. 2023 (arXiv 2305.18290), eq. 7. The sensitive answer is y_l; y_w is the neutral target, or for IdkPO
    a text like "I don't know.", as in TOFU's and NPO's comparisons.

    Args:
        preferred: log π_θ(y_w|x).
        preferred_r: log π_ref(y_w|x).
        dispreferred: log π_θ(y_l|x).
        dispreferred_r: log π_ref(y_l|x).
        beta: larger weighs the same change of log-probability more.
    """
    return -F.logsigmoid(beta * ((preferred - preferred_r) - (dispreferred - dispreferred_r))).mean()


def misdirection(hidden: Float[Tensor, "m d"], target: Float[Tensor, "*m d"]) -> Float[Tensor, ""]:
    """E‖h − target‖² over m token positions, both terms of RMU.

    Li et al. 2024 (WMDP, arXiv 2403.03218), section 4: the target is c·u, one for all, on what is to be forgotten, and
    the frozen model's own hidden state on what is to be kept.
    """
    return (hidden - target).square().sum(-1).mean()


def random_direction(size: int, *, generator: torch.Generator) -> Float[Tensor, " d"]:
    """RMU's u: entries drawn uniformly from [0, 1), then scaled to ‖u‖ = 1; on the generator's device."""
    u = torch.rand(size, generator=generator, device=generator.device)
    return u / torch.linalg.vector_norm(u)
