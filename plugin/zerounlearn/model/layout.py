"""Where things are in a decoder: blocks, down projections, final norm and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zerounlearn.errors import LayoutError


@dataclass(frozen=True)
class Layout:
    """The modules of a decoder that unlearning touches, found by EasyEdit's module templates."""

    model: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    projections: dict[int, nn.Module]
    weight_names: dict[int, str]
    norm: nn.Module
    head: nn.Module

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        layers: Sequence[int],
        *,
        rewrite_module_tmp: str,
        layer_module_tmp: str,
        ln_f_module: str,
        lm_head_module: str,
    ) -> Layout:
        """Look every module up, before anything is hooked or changed.

        Raises:
            LayoutError: a template matches nothing, a layer is out of range, or a weight to be edited is quantised.
        """
        depth = 0
        while _find(model, layer_module_tmp.format(depth)) is not None:
            depth += 1
        if depth == 0:
            raise LayoutError(
                f"layer_module_tmp={layer_module_tmp!r} matches no module of {type(model).__name__}; "
                f"its repeated modules are {_repeated(model)}"
            )
        outside = [layer for layer in layers if not 0 <= layer < depth]
        if outside:
            raise LayoutError(
                f"layers={list(layers)}: {outside} is outside this model, whose {depth} layers are numbered "
                f"0 to {depth - 1}"
            )
        named = {"ln_f_module": ln_f_module, "lm_head_module": lm_head_module}
        named |= {f"rewrite_module_tmp (layer {i})": rewrite_module_tmp.format(i) for i in layers}
        found = {field: _find(model, name) for field, name in named.items()}
        for field, module in found.items():
            if module is None:
                raise LayoutError(f"{field}: no module {named[field]!r} in {type(model).__name__}")
        projections = {i: model.get_submodule(rewrite_module_tmp.format(i)) for i in layers}
        for i, module in projections.items():
            _check_editable(module, rewrite_module_tmp.format(i))
        return cls(
            model=model,
            blocks=tuple(model.get_submodule(layer_module_tmp.format(i)) for i in range(depth)),
            projections=projections,
            weight_names={i: f"{rewrite_module_tmp.format(i)}.weight" for i in layers},
            norm=model.get_submodule(ln_f_module),
            head=model.get_submodule(lm_head_module),
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return input_device(self.model)

    def parameter(self, layer: int) -> nn.Parameter:
        """The stored parameter of an edited layer, in the checkpoint's orientation and dtype."""
        return self.model.get_parameter(self.weight_names[layer])

    def read(self, layer: int) -> Tensor:
        """W (d, m), keys to values; a view of the parameter, GPT-2's Conv1D transposed."""
        weight = self.parameter(layer).detach()
        return weight.mT if isinstance(self.projections[layer], Conv1D) else weight

    @torch.no_grad()
    def write(self, layer: int, W: Tensor) -> None:
        """Store W (d, m) in the parameter's own orientation, device and dtype."""
        stored = W.mT if isinstance(self.projections[layer], Conv1D) else W
        self.parameter(layer).copy_(stored)

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (..., v) in float32 of hidden states (..., d) of the last block."""
        hidden = self.norm(hidden)
        if isinstance(self.head, nn.Embedding):  # EasyEdit's YAMLs name the embedding where the head is tied
            return F.linear(hidden, self.head.weight).float()
        logits: Tensor = self.head(hidden)
        return logits.float()


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's token ids go in."""
    weight: Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight.device


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _repeated(model: nn.Module) -> list[str]:
    """Templates that would match, for the error message."""
    return [f"{name}.{{}}" for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and name][:3]


def _check_editable(module: nn.Module, name: str) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        kind = type(module).__name__ if weight is None else f"{type(module).__name__} with {weight.dtype} weights"
        raise LayoutError(
            f"{name} is a {kind}: quantised (4/8-bit) weights cannot be edited in place; load the model in "
            "float32, bfloat16 or float16"
        )
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise LayoutError(f"{name} has {weight.dtype} weights: load the model in float32, bfloat16 or float16")
