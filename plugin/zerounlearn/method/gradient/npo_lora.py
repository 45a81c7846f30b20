"""Negative preference optimisation of low-rank adapters, which are merged into the weights at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zerounlearn.config import Number, Whole, option, settings
from zerounlearn.core.factors import added
from zerounlearn.errors import IllPosedError
from zerounlearn.method.base import methods
from zerounlearn.method.edit import Edit
from zerounlearn.method.export import load_peft
from zerounlearn.method.gradient.adapters import adapted, linear_layers
from zerounlearn.method.gradient.npo import NPO, PUBLISHED
from zerounlearn.model.families import templates_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WHAT = "alg_name='NPO-LoRA'"


@methods.register("NPO-LoRA", source="arXiv 2404.05868, 2106.09685")
@settings
class NPOLoRA(NPO):
    """NPO of low-rank adapters on every linear layer but the head, merged into the weights; needs `peft`."""

    alg_name: str = option("NPO-LoRA", "The name under which EasyEdit knows the method.")
    preset: Literal["default", "paper"] = option(
        "default", "'paper': the run of ZeroUnlearn's published code (arXiv 2605.18879), with a retain term."
    )
    layers: list[Whole] = option([], "Layers whose linear parts get an adapter; empty or 'all': every layer.")
    lora_rank: Whole = option(8, "Rank of an adapter, and so of a weight's change.", ge=1)
    lora_alpha: Number = option(32.0, "The change is B A times this over `lora_rank`; larger learns faster.", gt=0)
    lora_dropout: Number = option(
        0.05, "Share of an adapter's inputs left out at each step, drawn by the seed.", ge=0, lt=1
    )

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {},
        "paper": {**PUBLISHED, "epochs": 5, "lr": 1e-4, "weight_decay": 0.01, "retain_loss": "nll_tokens"},
    }
    ALIASES: ClassVar[Mapping[str, str]] = {"lora_r": "lora_rank"}

    def check(self, skeleton: PreTrainedModel) -> None:
        """As for all, and that `peft` is there."""
        super().check(skeleton)
        load_peft(_WHAT)

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The weights of all linear layers but the head, in the blocks of `layers` or everywhere."""
        block = templates_of(model, self, ["layer_module_tmp"])["layer_module_tmp"]
        inside = tuple(f"{block.format(layer)}." for layer in self.layers)
        return [f"{name}.weight" for name in linear_layers(model) if not inside or name.startswith(inside)]

    @contextmanager
    def training(
        self, model: PreTrainedModel, written: Mapping[str, nn.Parameter], edit: Edit
    ) -> Iterator[dict[str, nn.Parameter]]:
        """The adapters' parameters; they are off the model again when this leaves, whatever happens.

        Raises:
            ConfigError: `peft` is not installed.
            IllPosedError: a merged weight does not fit its dtype.
        """
        names = [name.removesuffix(".weight") for name in written]
        with adapted(
            model,
            names,
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            seed=self.seed,
            what=_WHAT,
        ) as adapters:
            yield {name: p for name, p in model.named_parameters() if ".lora_" in name}
            edit.factors = {f"{name}.weight": _factors(layer) for name, layer in adapters.items()}
        for name, (left, right) in edit.factors.items():
            _merge(written[name], left, right, f"{self.alg_name}: {name}", self.lr)


def _factors(adapter: Any) -> tuple[Tensor, Tensor]:
    """An adapter's change as thin factors, left (rows, r) and right (r, columns), in the weight's own orientation."""
    a, b = (getattr(adapter, part)["default"].weight.detach().float().cpu() for part in ("lora_A", "lora_B"))
    b = b * adapter.scaling["default"]
    return (a.mT.contiguous(), b.mT.contiguous()) if isinstance(adapter.get_base_layer(), Conv1D) else (b, a)


@torch.no_grad()
def _merge(weight: nn.Parameter, left: Tensor, right: Tensor, what: str, lr: float) -> None:
    """Add the change as `Edit.apply` would."""
    weight.copy_(added(weight, left, right))
    if not torch.isfinite(weight).all():
        raise IllPosedError(
            f"{what} does not fit {weight.dtype}: lower lr={lr:g}, or load the model in bfloat16 or float32"
        )
