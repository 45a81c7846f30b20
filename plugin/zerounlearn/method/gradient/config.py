"""Hyperparameters of the gradient methods: what they share, and one small class a method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from zerounlearn.config import Number, Whole, option, settings
from zerounlearn.data.chat import marked_as_chat
from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import EOS, PAD, Request
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import Edit, Method, methods, restored_if_it_fails

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RetainLoss = Literal["nll", "kl"]


@settings
class GradientMethod(Method):
    """What every gradient method depends on. `layers: all` is kept as an empty list."""

    layers: list[Whole] = option(
        [], "Layers whose `rewrite_module_tmp` weight is trained; empty or 'all': every parameter."
    )
    steps: Whole = option(20, "Steps of AdamW.", ge=1)
    lr: Number = option(1e-4, "AdamW's learning rate.", gt=0)
    weight_decay: Number = option(0.0, "AdamW's decay; larger pulls the trained weights towards 0.", ge=0)
    max_grad_norm: Number = option(1.0, "The gradient's norm is cut to this; 0 leaves it as it is.", ge=0)
    minibatch_size: Whole = option(8, "Requests per step, and as many retain items; bounds memory.", ge=1)

    @classmethod
    def _renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        given = super()._renamed(values)
        if given.get("layers") == "all":
            given["layers"] = []
        return given

    def validate(self) -> None:
        """As for all methods, and the layers' order."""
        super().validate()
        if self.layers != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers={self.layers}: expected layers counted from 0, in ascending order, or 'all'")

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check templates, layers and the retain file on a model without weights.

        Raises:
            ZeroUnlearnError: something does not fit.
        """
        from zerounlearn.method.zerounlearn.method import find_layout

        find_layout(skeleton, self)
        self.kept_facts()

    def kept_facts(self) -> list[Request]:
        """The facts to keep that the configuration names; this method has none."""
        return []

    def retained(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        held_out: Collection[str] = (),
    ) -> list[Request]:
        """The facts in `retain_path`, where the method has a retain term."""
        return marked_as_chat(tokenizer, self.kept_facts())

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The down projections of `layers`, or every parameter."""
        return super().weight_names(model) if self.layers else [name for name, _ in model.named_parameters()]

    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        retain: Sequence[Request] | None = None,
        held_out: Collection[str] = (),
    ) -> Edit:
        """See `Method.apply`; by default the facts in `retain_path` are kept, where the method has a retain term."""
        from zerounlearn.method.gradient.descend import unlearn_by_gradient

        kept = self.kept_facts() if retain is None else retain
        with restored_if_it_fails(model, self.weight_names(model)):
            outcome = unlearn_by_gradient(model, tokenizer, requests, self, retain=kept)
            edit = Edit(self.alg_name, self.to_dict(), seconds=outcome.seconds, losses=outcome.losses)
            edit.record(model, outcome.originals)
            return edit


@settings
class RetainingMethod(GradientMethod):
    """Those of a method with a second term, on what is to be kept."""

    retain_weight: Number = option(
        1.0, "Weight of the retain term; larger keeps more, 0 goes without a retain set.", ge=0
    )
    retain_path: str | None = option(None, "A file like a forget set, of facts to keep; see `load_facts`.")
    text_max_length: Whole = option(128, "Retain texts are cut to this many tokens.", ge=2)

    def check_retain(self, shown: bool) -> None:
        """Refuse a retain term without a set to work on, and a set without a term.

        Raises:
            ConfigError: naming what to set.
        """
        if self.retain_path is not None:
            raise ConfigError(
                f"retain_path={self.retain_path!r}: a study draws the retain set itself: write retain: true instead"
            )
        if bool(self.retain_weight) != shown:
            remedy = "set retain: true, or set: {retain_weight: 0}" if self.retain_weight else "drop retain: true"
            raise ConfigError(
                f"retain_weight={self.retain_weight:g} with retain={str(shown).lower()} means nothing: {remedy}"
            )

    def kept_facts(self) -> list[Request]:
        """The facts in `retain_path`.

        Raises:
            ZeroUnlearnError: the file is missing, or a record is wrong.
        """
        return [fact.request for fact in load_facts(self.retain_path)] if self.retain_path else []


@settings
class RetainingAnswers(RetainingMethod):
    """Those of a method that keeps what the model says, rather than its hidden states."""

    retain_loss: RetainLoss = option("nll", "'nll' of the retain answers, or 'kl' from the model as it was.")


@methods.register("GA", source="arXiv 1906.12330, 2210.01504")
@settings
class GA(GradientMethod):
    """Gradient ascent, without anything to keep."""

    alg_name: str = option("GA", "The name under which EasyEdit knows the method.")


@methods.register("GradDiff", source="arXiv 2203.12817, 2401.06121")
@settings
class GradDiff(RetainingAnswers):
    """Gradient difference: ascent on the forget set, descent on the retain set."""

    alg_name: str = option("GradDiff", "The name under which EasyEdit knows the method.")


@methods.register("NPO", source="arXiv 2404.05868")
@settings
class NPO(RetainingAnswers):
    """Negative preference optimisation."""

    alg_name: str = option("NPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; for β → 0 this is gradient ascent.", gt=0)


@methods.register("SimNPO", source="arXiv 2410.07163")
@settings
class SimNPO(RetainingAnswers):
    """NPO without a reference model, by the answer's probability per token."""

    alg_name: str = option("SimNPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(2.5, "Inverse temperature.", gt=0)
    gamma: Number = option(0.0, "Margin; larger asks for lower probabilities.", ge=0)


@methods.register("DPO-Unlearn", source="arXiv 2305.18290")
@settings
class DPO(RetainingAnswers):
    """Preference of the neutral target over the sensitive answer.

    Not named DPO: a current EasyEdit has an editing method and a class of that name.
    """

    alg_name: str = option("DPO-Unlearn", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; larger stays closer to the model as it was.", gt=0)
    neutral_target: str = option("eos", "What is preferred where a request does not say: 'eos', 'pad', or a text.")

    def validate(self) -> None:
        """As for all, and the neutral target."""
        super().validate()
        if not self.neutral_target.strip():
            raise ConfigError(f"neutral_target={self.neutral_target!r}: expected 'eos', 'pad' or a text")


@methods.register("IdkPO", source="arXiv 2305.18290, 2401.06121")
@settings
class IdkPO(RetainingAnswers):
    """Preference of "I don't know." over the sensitive answer."""

    alg_name: str = option("IdkPO", "The name under which EasyEdit knows the method.")
    beta: Number = option(0.1, "Inverse temperature; larger stays closer to the model as it was.", gt=0)
    idk_text: str = option("I don't know.", "The preferred answer to every request.")

    def validate(self) -> None:
        """As for all, and the preferred answer."""
        super().validate()
        if not self.idk_text.strip() or self.idk_text in (EOS, PAD):
            raise ConfigError(f"idk_text={self.idk_text!r}: expected a text; a token is preferred by 'DPO-Unlearn'")


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
