"""Where things are in a decoder: blocks, down projections, final norm and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zerounlearn.errors import LayoutError
from zerounlearn.model.hooks import uninterrupted
from zerounlearn.model.offload import Slot, computes_on, slot_of


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

    def device_of(self, layer: int) -> torch.device:
        """Where the down projection of an edited layer computes."""
        return computes_on(self.model, self.weight_names[layer])

    def parameter(self, layer: int) -> nn.Parameter:
        """An edited layer's parameter, in the checkpoint's orientation and dtype; on meta where it is offloaded."""
        return self.model.get_parameter(self.weight_names[layer])

    def inputs(self, layer: int) -> int:
        """m, the length of an edited layer's keys."""
        return self.parameter(layer).shape[0 if isinstance(self.projections[layer], Conv1D) else 1]

    def tensor(self, name: str) -> Tensor:
        """The value of any parameter of the model, in the checkpoint's orientation; not to be written to.

        Raises:
            LayoutError: it is on the meta device, and nothing loads it from anywhere.
        """
        parameter = self.model.get_parameter(name)
        return self._slot(name).get().to(parameter.dtype) if parameter.is_meta else parameter.detach()

    def check_writable(self) -> None:
        """Refuse weights that `write` could not change.

        Raises:
            LayoutError: an edited weight is on the meta device without a store that takes a new value.
        """
        for layer, name in self.weight_names.items():
            if self.parameter(layer).is_meta and not self._slot(name).writable:
                raise LayoutError(
                    f"{name} is offloaded to a {type(self._slot(name).source).__name__}, which takes no new values: "
                    "load the model without offloading this layer"
                )

    def read(self, layer: int) -> Tensor:
        """W (d, m), keys to values, where the layer computes; not to be written to. GPT-2's Conv1D is transposed."""
        weight = self.tensor(self.weight_names[layer]).to(self.device_of(layer))
        return weight.mT if isinstance(self.projections[layer], Conv1D) else weight

    def bias(self, layer: int) -> Tensor | None:
        """What an edited layer adds to W k (d,), where it computes; None where it adds nothing."""
        name = f"{self.weight_names[layer].removesuffix('.weight')}.bias"
        if getattr(self.projections[layer], "bias", None) is None:
            return None
        return self.tensor(name).to(self.device_of(layer))

    def factors(self, layer: int, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of a change of W, (d, k) and (k, m), as those of the stored parameter's, on the CPU."""
        turned = isinstance(self.projections[layer], Conv1D)
        first, second = (right.mT, left.mT) if turned else (left, right)
        return first.cpu().contiguous(), second.cpu().contiguous()

    def write(self, layer: int, W: Tensor) -> None:
        """Store W (d, m) in the weight's own orientation, device and dtype, offloaded or not."""
        self._put(layer, W.mT if isinstance(self.projections[layer], Conv1D) else W)

    @contextmanager
    def restored(self, layers: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Put the weights of `layers` back bit for bit if the body raises, KeyboardInterrupt included.

        Yields:
            Copies of the weights by name, in the checkpoint's orientation.
        """
        saved = {layer: self.tensor(self.weight_names[layer]).clone() for layer in layers}
        try:
            yield {self.weight_names[layer]: value for layer, value in saved.items()}
        except BaseException:
            with uninterrupted():
                for layer, value in saved.items():
                    self._put(layer, value)
            raise

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (..., v) of hidden states (..., d) of the last block, in float32 at least."""
        return self.project(self.norm(hidden))

    def project(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of hidden states that the final norm has seen already, as the model itself makes them."""
        if isinstance(self.head, nn.Embedding):  # EasyEdit's YAMLs name the embedding where the head is tied
            with align_module_device(self.head):  # whose own forward pass, which would load it, is not called
                weight = self.head.weight
                logits = F.linear(hidden.to(weight.device), weight)
        else:
            logits = self.head(hidden)
        logits = self._finished(logits)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _finished(self, logits: Tensor) -> Tensor:
        """What models do to the head's logits, by the names that their configurations have for it."""
        config = self.model.config.get_text_config()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    @torch.no_grad()
    def _put(self, layer: int, stored: Tensor) -> None:
        parameter = self.parameter(layer)
        if parameter.is_meta:
            self._slot(self.weight_names[layer]).put(stored)
        else:
            parameter.copy_(stored)

    def _slot(self, name: str) -> Slot:
        slot = slot_of(self.model, name)
        if slot is None:
            raise LayoutError(f"{name} is offloaded, and no hook of accelerate loads it: load the model whole")
        return slot


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's token ids go in."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return computes_on(model, f"{name}.weight")


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
