"""What MEMIT_seq, MEMIT_rect and MEMIT_prune add to EasyEdit's MEMIT, which they run group by group.

MEMIT solves for the change of a layer against λC + K Kᵀ. MEMIT_seq adds the keys K_p of the groups before, so that
they keep what they were mapped to; MEMIT_rect drops the entries of each group's change that are small by their
weight's measure; MEMIT_prune lowers the large singular values of the change of all groups together.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.core.restraint import damped, largest_relative
from zerounlearn.easyedit.editions.compat import PACKAGE

Records = list[dict[str, Any]]


@contextmanager
def variant(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: Any, weights: Sequence[nn.Parameter]
) -> Iterator[Callable[[Records], None]]:
    """Run MEMIT in the body, and call what is yielded after each group; any other method goes unchanged.

    Args:
        model: the model that is edited.
        tokenizer: as the method is given it.
        hparams: of the run; `alg_name` says which variant.
        weights: those that the method writes to.
    """
    before = (
        [weight.detach().clone() for weight in weights] if hparams.alg_name in ("MEMIT_rect", "MEMIT_prune") else []
    )
    if hparams.alg_name == "MEMIT_seq":
        with _with_earlier_keys(model, tokenizer, hparams) as after_group:
            yield after_group
    elif hparams.alg_name == "MEMIT_rect":

        def drop_small(_: Records) -> None:
            for weight, old in zip(weights, before, strict=True):
                _restrain(weight, old, lambda W, D: D * largest_relative(W, D, float(hparams.kept_percent)))
                old.copy_(weight)

        yield drop_small
    else:
        yield lambda _: None
    if hparams.alg_name == "MEMIT_prune":
        for weight, old in zip(weights, before, strict=True):
            _restrain(weight, old, damped)


@torch.no_grad()
def _restrain(weight: nn.Parameter, old: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Put `change(W, D)` in the place of D = weight − W; entries that it leaves alone keep their bits."""
    place = "cpu" if weight.device.type == "mps" else weight.device  # which knows no float64
    W, now = old.to(place, torch.float64), weight.to(place, torch.float64)
    D = now - W
    wanted = change(W, D)
    weight.copy_(torch.where(wanted == D, now, W + wanted).to(weight))


@contextmanager
def _with_earlier_keys(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: Any
) -> Iterator[Callable[[Records], None]]:
    """MEMIT finds C + K_pᵀK_p/λ where it looks for C, with the keys K_p (n, m) of the groups before."""
    main = importlib.import_module(f"{PACKAGE}.models.memit.memit_main")
    original = vars(main)["get_cov"]
    earlier: dict[str, Tensor] = {}

    def get_cov(model: Any, tok: Any, layer_name: str, *args: Any, **kwargs: Any) -> Tensor:
        C: Tensor = original(model, tok, layer_name, *args, **kwargs)
        if layer_name not in earlier:
            return C
        return C.double() + earlier[layer_name].to(C.device) / hparams.mom2_update_weight

    @torch.no_grad()
    def remember(records: Records) -> None:
        # Of the edited model, as published: what later edits must leave alone is what it now answers by.
        contexts = main.get_context_templates(model, tokenizer)
        for layer in hparams.layers:
            name = hparams.rewrite_module_tmp.format(layer)
            K = main.compute_ks(model, tokenizer, records, hparams, layer, contexts).cpu().double()
            earlier[name] = earlier.get(name, 0) + K.mT @ K

    vars(main)["get_cov"] = get_cov
    try:
        yield remember
    finally:
        vars(main)["get_cov"] = original
