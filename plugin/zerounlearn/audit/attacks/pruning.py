"""Weights set to nought: an edit that lives in small weights, or beside those that ordinary text uses, is cut away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from zerounlearn.audit.matrices import changed, matrices
from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import input_device
from zerounlearn.model.tokens import encode

_WINDOW = 256


def smallest_to_nought(W: Tensor, importance: Tensor, share: float, *, by_row: bool) -> Tensor:
    """W (out, in) without the `share` of its entries that matter least, in each row or in the whole matrix.

    Args:
        W: any floating dtype.
        importance: of each entry (out, in).
        share: 0 to 1; at least one entry stays.
        by_row: an equal number in each row.
    """
    given = importance if by_row else importance.flatten()[None]
    gone = int(share * given.shape[1])
    if not gone:
        return W
    threshold = given.kthvalue(gone, dim=1, keepdim=True).values
    return W.masked_fill((given <= threshold).view_as(W), 0)


@attack(
    "pruning",
    label="Pruning",
    access=Access.WEIGHTS,
    quick={"shares": (0.3,), "tokens": 512},
    standard={"shares": (0.1, 0.3, 0.5), "tokens": 2048},
    source="arXiv 2502.05209; Wanda: 2306.11695",
)
def pruning(target: Target, *, shares: tuple[float, ...], tokens: int) -> Iterator[Outcome]:
    """Shares of every linear layer's weights set to nought, by magnitude and by Wanda's |W|·‖x‖ on ordinary text."""
    names = matrices(target.model)
    yield _pruned(target, names, "magnitude", shares, lambda _, W: W.abs(), by_row=False)
    if target.texts:
        norms = input_norms(target, names, tokens)
        yield _pruned(target, norms, "wanda", shares, lambda name, W: W.abs() * norms[name].to(W), by_row=True)


def _pruned(
    target: Target,
    names: Iterable[str],
    variant: str,
    shares: tuple[float, ...],
    importance: Callable[[str, Tensor], Tensor],
    *,
    by_row: bool,
) -> Outcome:
    tries = {}
    for share in sorted(shares):

        def change(name: str, W: Tensor, share: float = share) -> Tensor:
            return smallest_to_nought(W, importance(name, W), share, by_row=by_row)

        with changed(target.model, names, change):
            tries[share] = target.plain()
    return target.along(variant, tries, "share pruned")


@torch.no_grad()
def input_norms(target: Target, modules: Mapping[str, nn.Module], tokens: int) -> dict[str, Tensor]:
    """‖x‖ of each input (in,) over ordinary text, in float32, of the modules that such text goes through."""
    squares: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen = args[0].detach().flatten(0, -2).float().square().sum(0)
            squares[name] = squares[name] + seen if name in squares else seen

        return hook

    with ExitStack() as stack:
        stack.enter_context(frozen(target.model))
        for name, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(keep(name)))
        left = tokens
        for text in target.texts:
            row = encode(target.tokenizer, text)[: min(_WINDOW, left)]
            if row:
                target.model(input_ids=torch.tensor([row], device=input_device(target.model)), use_cache=False)
            left -= len(row)
            if left <= 0:
                break
    return {name: total.sqrt() for name, total in squares.items()}
