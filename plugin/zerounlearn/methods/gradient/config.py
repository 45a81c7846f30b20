"""Hyperparameters of the baselines: what they share, and one small class a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from zerounlearn.config import Settings, option, read_settings, resolved
from zerounlearn.data.request import EOS, PAD
from zerounlearn.errors import ConfigError

RetainLoss = Literal["nll", "kl"]

_POSITIVE = ("lr", "beta", "steering_coefficient")
_AT_LEAST_0 = ("weight_decay", "max_grad_norm", "seed", "gamma", "retain_weight")
_COUNTS = {"steps": 1, "minibatch_size": 1, "max_length": 1, "batch_size": 1, "text_max_length": 2}


@dataclass
class BaselineHyperParams(Settings):
    """What every baseline depends on; unknown names are refused, and `validate` runs before any work.

    `layers: all` is kept as an empty list.
    """

    model_name: Any = option("", "Checkpoint folder or hub name, or a (model, tokenizer) pair.")
    layers: list[int] = option(
        [], "Layers whose `rewrite_module_tmp` weight is trained; empty or 'all': every parameter."
    )
    alg_name: str = option("", "The name under which EasyEdit knows the method.")
    device: Any = option("auto", "A CUDA index, 'cpu', 'cuda:1', 'mps', or 'auto': CUDA where there is any.")

    steps: int = option(20, "Steps of AdamW.")
    lr: float = option(1e-4, "AdamW's learning rate.")
    weight_decay: float = option(0.0, "AdamW's decay; larger pulls the trained weights towards 0.")
    max_grad_norm: float = option(1.0, "The gradient's norm is cut to this; 0 leaves it as it is.")
    minibatch_size: int = option(8, "Requests per step, and as many retain items; bounds memory.")
    seed: int = option(0, "Drives every random choice, through generators of its own.")

    rewrite_module_tmp: str = option("model.layers.{}.mlp.down_proj", "The trained module of a layer.")
    layer_module_tmp: str = option("model.layers.{}", "A layer.")
    ln_f_module: str = option("model.norm", "The final norm.")
    lm_head_module: str = option("lm_head", "The head, or the embedding where they are tied.")

    max_length: int = option(40, "EasyEdit's truncation length for its metrics.")
    batch_size: int = option(1, "Requests applied at once by EasyEdit's `batch_edit`.")
    model_parallel: bool = option(False, "EasyEdit's device_map='auto'.")
    fp16: bool = option(False, "EasyEdit's switch for loading float16 weights.")

    def __post_init__(self) -> None:
        self.device = resolved(self.device)
        if self.layers == "all":  # type: ignore[comparison-overlap]
            self.layers = []
        self.validate()

    def validate(self) -> None:
        """Check types, ranges and relations.

        Raises:
            ConfigError: with the field, its value and what is expected.
        """
        super().validate()
        fields = {f.name: f for f in dataclasses.fields(self)}
        if self.layers != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers={self.layers}: expected layers counted from 0, in ascending order, or 'all'")
        for name in fields.keys() & set(_POSITIVE):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number > 0")
        for name in fields.keys() & set(_AT_LEAST_0):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number >= 0")
        for name in fields.keys() & set(_COUNTS):
            if not getattr(self, name) >= _COUNTS[name]:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a whole number >= {_COUNTS[name]}")
        if self.alg_name != fields["alg_name"].default:
            ours = fields["alg_name"].default
            raise ConfigError(f"alg_name={self.alg_name!r}: these are the hyperparameters of {ours!r}")
        for name in ("rewrite_module_tmp", "layer_module_tmp"):
            if getattr(self, name).count("{}") != 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one {{}} for the layer's number")
        if not self.model_name:
            raise ConfigError("model_name is missing: a checkpoint folder, a hub name, or a (model, tokenizer) pair")


@dataclass
class RetainingHyperParams(BaselineHyperParams):
    """Those of a method with a second term, on what is to be kept."""

    retain_weight: float = option(1.0, "Weight of the retain term; larger keeps more, 0 goes without a retain set.")
    retain_path: str | None = option(None, "A file like a forget set, of facts to keep; see `load_forget_set`.")
    text_max_length: int = option(128, "Retain texts are cut to this many tokens.")


@dataclass
class RetainingAnswersHyperParams(RetainingHyperParams):
    """Those of a method that keeps what the model says, rather than its hidden states."""

    retain_loss: RetainLoss = option("nll", "'nll' of the retain answers, or 'kl' from the model as it was.")

    def validate(self) -> None:
        """As for all, and the retain loss."""
        super().validate()
        if self.retain_loss not in get_args(RetainLoss):
            raise ConfigError(f"retain_loss={self.retain_loss!r}: expected one of {', '.join(get_args(RetainLoss))}")


@dataclass
class GAHyperParams(BaselineHyperParams):
    """Gradient ascent, without anything to keep."""

    alg_name: str = option("GA", "The name under which EasyEdit knows the method.")


@dataclass
class GradDiffHyperParams(RetainingAnswersHyperParams):
    """Gradient difference: ascent on the forget set, descent on the retain set."""

    alg_name: str = option("GradDiff", "The name under which EasyEdit knows the method.")


@dataclass
class NPOHyperParams(RetainingAnswersHyperParams):
    """Negative preference optimisation."""

    alg_name: str = option("NPO", "The name under which EasyEdit knows the method.")
    beta: float = option(0.1, "Inverse temperature; for β → 0 this is gradient ascent.")


@dataclass
class SimNPOHyperParams(RetainingAnswersHyperParams):
    """NPO without a reference model, by the answer's probability per token."""

    alg_name: str = option("SimNPO", "The name under which EasyEdit knows the method.")
    beta: float = option(2.5, "Inverse temperature.")
    gamma: float = option(0.0, "Margin; larger asks for lower probabilities.")


@dataclass
class DPOUnlearnHyperParams(RetainingAnswersHyperParams):
    """Preference of the neutral target over the sensitive answer.

    Not named DPO: a current EasyEdit has an editing method and a class of that name.
    """

    alg_name: str = option("DPO-Unlearn", "The name under which EasyEdit knows the method.")
    beta: float = option(0.1, "Inverse temperature; larger stays closer to the model as it was.")
    neutral_target: str = option("eos", "What is preferred where a request does not say: 'eos', 'pad', or a text.")

    def validate(self) -> None:
        """As for all, and the neutral target."""
        super().validate()
        if not self.neutral_target.strip():
            raise ConfigError(f"neutral_target={self.neutral_target!r}: expected 'eos', 'pad' or a text")


@dataclass
class IdkPOHyperParams(RetainingAnswersHyperParams):
    """Preference of "I don't know." over the sensitive answer."""

    alg_name: str = option("IdkPO", "The name under which EasyEdit knows the method.")
    beta: float = option(0.1, "Inverse temperature; larger stays closer to the model as it was.")
    idk_text: str = option("I don't know.", "The preferred answer to every request.")

    def validate(self) -> None:
        """As for all, and the preferred answer."""
        super().validate()
        if not self.idk_text.strip() or self.idk_text in (EOS, PAD):
            raise ConfigError(f"idk_text={self.idk_text!r}: expected a text; a token is preferred by 'DPO-Unlearn'")


@dataclass
class RMUHyperParams(RetainingHyperParams):
    """Representation misdirection: the hidden states of what is to be forgotten go somewhere else."""

    alg_name: str = option("RMU", "The name under which EasyEdit knows the method.")
    layers: list[int] = option(
        None, "Layers to train, up to rmu_layer; by default it and the two below; 'all' as ever."
    )
    retain_weight: float = option(1200.0, "Weight of the retain term (α, published for a 7B model).")
    rmu_layer: int | None = option(None, "ℓ, the layer whose output is steered; by default the last one in `layers`.")
    steering_coefficient: float = option(6.5, "c, the norm that the hidden states are steered to.")

    def __post_init__(self) -> None:
        whole = isinstance(self.rmu_layer, (int, float)) and not isinstance(self.rmu_layer, bool)
        if self.layers is None and whole:
            last = int(self.rmu_layer or 0)
            self.layers = list(range(max(0, last - 2), last + 1))
        elif self.rmu_layer is None and isinstance(self.layers, (list, tuple)) and self.layers:
            self.rmu_layer = max(self.layers)
        if self.layers is None or self.rmu_layer is None:
            raise ConfigError("rmu_layer is missing: name the layer whose output is to be steered, counted from 0")
        super().__post_init__()

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


METHODS: dict[str, type[BaselineHyperParams]] = {
    "GA": GAHyperParams,
    "GradDiff": GradDiffHyperParams,
    "NPO": NPOHyperParams,
    "SimNPO": SimNPOHyperParams,
    "DPO-Unlearn": DPOUnlearnHyperParams,
    "IdkPO": IdkPOHyperParams,
    "RMU": RMUHyperParams,
}


def load_hparams(path: str | Path, overrides: Sequence[str] = ()) -> BaselineHyperParams:
    """Hyperparameters of the baseline that the file's `alg_name` (or an override) names.

    Raises:
        ConfigError: the name is none of ours, or see `from_hparams`.
    """
    name = read_settings(path, overrides)[1].get("alg_name")
    if name not in METHODS:
        raise ConfigError(f"alg_name={name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name].from_hparams(path, overrides)
