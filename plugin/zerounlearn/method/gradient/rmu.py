"""RMU (arXiv 2403.03218)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerounlearn.config import Number, Whole, option, settings
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import methods
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.base import ForgetSet, RetainingMethod, Term
from zerounlearn.method.gradient.sequences import Reader, Sample, chunks
from zerounlearn.model.layout import Layout


@methods.register("RMU", source="arXiv 2403.03218")
@settings
class RMU(RetainingMethod):
    """Representation misdirection: the hidden states of what is to be forgotten go somewhere else."""

    alg_name: str = option("RMU", "The name under which EasyEdit knows the method.")
    layers: list[Whole] = option(
        [], "Layers to train, up to rmu_layer; by default it and the two below; 'all' as ever."
    )
    retain_weight: Number = option(1200.0, "Weight of the retain term (α, published for a 7B model).", ge=0)
    rmu_layer: Whole | None = option(None, "ℓ, the layer whose output is steered; by default the last of `layers`.")
    steering_coefficient: Number = option(6.5, "c, the norm that the hidden states are steered to.", gt=0)

    @classmethod
    def _renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """As for all; of the layers to train and the steered one, either tells the other."""
        everything = values.get("layers") == "all"
        given = super()._renamed(values)
        layers, steered = given.get("layers"), given.get("rmu_layer")
        if layers is None and isinstance(steered, (int, float)) and not isinstance(steered, bool):
            given["layers"] = list(range(max(0, int(steered) - 2), int(steered) + 1))
        elif steered is None and isinstance(layers, (list, tuple)) and layers:
            given["rmu_layer"] = max(layers, key=lambda layer: layer if isinstance(layer, (int, float)) else -1)
        elif steered is None and (layers is None or everything):
            raise ConfigError("rmu_layer is missing: name the layer whose output is to be steered, counted from 0")
        return given

    def validate(self) -> None:
        """As for all, and that there is a gradient for every layer that is trained."""
        super().validate()
        if self.rmu_layer is None or self.rmu_layer < 0:
            raise ConfigError(f"rmu_layer={self.rmu_layer!r}: expected a layer, counted from 0")
        above = [layer for layer in self.layers if layer > self.rmu_layer]
        if above:
            raise ConfigError(
                f"layers={self.layers}: {above} cannot change the output of rmu_layer={self.rmu_layer}: drop them"
            )

    def forget_term(self, forget: ForgetSet) -> Term:
        """The hidden states after `rmu_layer` are steered to a random direction of a given norm."""
        block = self._block(forget.layout)
        generator = torch.Generator().manual_seed(self.seed)
        size = forget.layout.model.config.get_text_config().hidden_size
        target = self.steering_coefficient * objectives.random_direction(size, generator=generator)

        def loss(batch: list[int]) -> Tensor:
            hidden = _wide(forget.reader.output_of(block, [forget.answers[i] for i in batch]))
            return objectives.misdirection(hidden, target.to(hidden))

        return Term(len(forget.answers), loss)

    def retain_term(self, reader: Reader, layout: Layout, samples: Sequence[Sample]) -> Term:
        """What is to be kept has the hidden states that it had."""
        block = self._block(layout)
        before: list[Tensor] = []
        with torch.no_grad():
            for part in chunks(samples, self.minibatch_size):
                before += reader.output_of(block, part).split([len(sample.ids) - 1 for sample in part])

        def loss(batch: list[int]) -> Tensor:
            hidden = reader.output_of(block, [samples[i] for i in batch])
            return objectives.misdirection(_wide(hidden), _wide(torch.cat([before[i] for i in batch])))

        return Term(len(samples), loss)

    def _block(self, layout: Layout) -> nn.Module:
        if self.rmu_layer is None or self.rmu_layer >= len(layout.blocks):
            raise ConfigError(
                f"rmu_layer={self.rmu_layer}: this model's layers are numbered 0 to {len(layout.blocks) - 1}"
            )
        return layout.blocks[self.rmu_layer]


def _wide(hidden: Tensor) -> Tensor:
    """Squares of half-precision hidden states overflow float16, and lose small differences in bfloat16."""
    return hidden if hidden.dtype == torch.float64 else hidden.float()
