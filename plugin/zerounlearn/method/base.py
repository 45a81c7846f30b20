"""What every method of unlearning is.

A method is a configuration class in the registry `methods`, under the name that EasyEdit's `alg_name` has for it. An
instance forgets by `apply`, which changes the model and returns an `Edit`: what changed, how to take it back bit for
bit, how to put it on again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zerounlearn.config import Flag, Whole, option, settings
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError
from zerounlearn.method.edit import Edit
from zerounlearn.model.families import Templates, templates_of
from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class UnlearningMethod(ABC):
    """What a method can do; `Method` is one whose configuration is ours, EasyEdit's own are others."""

    alg_name: str
    model_name: Any
    device: Any
    seed: int
    wraps_modules: ClassVar[bool] = False
    """Whether the edited model has modules that no checkpoint can hold."""
    saves_edits: ClassVar[bool] = True
    """Whether `Edit.save` can write what `apply` gives."""

    @classmethod
    @abstractmethod
    def from_hparams(cls, path: str | Path, overrides: Sequence[str] = ()) -> Any:
        """The run that a file describes; `key=value` overrides beat it.

        Raises:
            ConfigError: a name is unknown, or a value is wrong.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values."""

    @abstractmethod
    def seeded(self, seed: int) -> Any:
        """A copy that draws by another seed."""

    @abstractmethod
    def check(self, skeleton: PreTrainedModel) -> None:
        """Check what can be checked on a model without weights: templates, layers, files.

        Raises:
            ZeroUnlearnError: something does not fit.
        """

    def check_retain(self, shown: bool) -> None:
        """Refuse a study's `retain: true` (or its absence) where it would mean nothing.

        Raises:
            ConfigError: the method has no use for a retain set, or cannot do without.
        """
        if shown:
            raise ConfigError(f"retain=true: {self.alg_name} has no retain term, so it would change nothing: drop it")

    @property
    def names_retain_set(self) -> bool:
        """Whether the configuration itself says which facts to keep."""
        return False

    def check_given(self, given: bool) -> None:
        """Refuse a retain set that is at hand (or its absence) where it would mean nothing.

        Raises:
            ConfigError: the method has no use for a retain set, or cannot do without.
        """
        if given:
            raise ConfigError(f"{self.alg_name} has no retain term, so a retain set would change nothing: drop it")

    def located(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        """The run with all that it leaves to be found on the model; by default there is nothing of that kind."""
        return self

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Have on disk what many runs share; by default there is nothing."""

    @abstractmethod
    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The parameters that the method may write to; a model without weights will do.

        Raises:
            ZeroUnlearnError: the model does not have them.
        """

    def retained(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        held_out: Collection[str] = (),
    ) -> list[Request]:
        """The facts to keep that the configuration stands for, for this forget set; by default there are none."""
        return []

    def fingerprints(self, model: PreTrainedModel) -> dict[str, str]:
        """Digests of what the edit is based on, by what they are of, for a report."""
        return {}

    def versions(self) -> dict[str, str]:
        """Versions of what the method runs on, beside those of every run."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What the result depends on beside `to_dict`: the content of files that the configuration names."""
        return {}

    @abstractmethod
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        retain: Sequence[Request] | None = None,
        held_out: Collection[str] = (),
    ) -> Edit:
        """Forget `requests`, in place.

        Args:
            model: a decoder.
            tokenizer: the model's; its padding side does not matter.
            requests: the forget set.
            retain: facts to keep; by default what the configuration stands for.
            held_out: prompts that measure something, which an automatic retain set must not hold.

        Raises:
            ZeroUnlearnError: before any weight is changed, or with the weights restored, bit for bit.
        """


@settings
class Method(Templates, UnlearningMethod):
    """What all methods depend on; an instance is a run."""

    model_name: Any = option("", "Checkpoint folder or hub name, or a (model, tokenizer) pair.")
    layers: list[Whole] = option([], "Layers to edit, counted from 0.")
    alg_name: str = option("", "The name under which the method is registered, here and with EasyEdit.")
    device: Any = option("auto", "A CUDA index, 'cpu', 'cuda:1', 'mps', or 'auto': CUDA where there is any.")
    seed: Whole = option(0, "Drives every random choice, through generators of its own.", ge=0)

    max_length: Whole = option(40, "EasyEdit's truncation length for its metrics.", ge=1)
    batch_size: Whole = option(1, "Requests applied at once by EasyEdit's `batch_edit`.", ge=1)
    model_parallel: Flag = option(False, "EasyEdit's device_map='auto'.")
    fp16: Flag = option(False, "EasyEdit's switch for loading float16 weights.")

    def validate(self) -> None:
        """As for all; the method's name, templates and layers."""
        own = type(self).defaults()["alg_name"]
        if self.alg_name != own:
            raise ConfigError(f"alg_name={self.alg_name!r}: these are the hyperparameters of {own!r}")
        for name in ("rewrite_module_tmp", "layer_module_tmp"):
            check_template(name, getattr(self, name))
        for name in ("ln_f_module", "lm_head_module"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a module's name")
        if not isinstance(self.model_name, (str, tuple)):
            raise ConfigError(f"model_name={self.model_name!r}: expected a name, or a (model, tokenizer) pair")
        if not isinstance(self.device, (str, int, torch.device)) or isinstance(self.device, bool):
            raise ConfigError(f"device={self.device!r}: expected 'auto', 'cpu', 'cuda:0', or a CUDA index")

    @classmethod
    def _built(cls, values: dict[str, Any], overrides: Mapping[str, Any], where: str) -> Any:
        built = super()._built(values, overrides, where)
        if not built.model_name:
            raise ConfigError(
                f"{where}: model_name is missing: a checkpoint folder, a hub name, or a (model, tokenizer) pair"
            )
        return built

    def seeded(self, seed: int) -> Any:
        """A copy that draws by another seed."""
        return self.replace(seed=seed)

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The parameters of `layers` that the method writes to; for a method that chooses others, see there."""
        if not self.layers:
            return []
        template = templates_of(model, self, ["rewrite_module_tmp"])["rewrite_module_tmp"]
        return [f"{template.format(layer)}.weight" for layer in self.layers]


methods: Registry[type[UnlearningMethod]] = Registry(
    "method", "zerounlearn.method.zerounlearn.config", "zerounlearn.method.gradient.*"
)


def load_method(path: str | Path, overrides: Sequence[str] = ()) -> UnlearningMethod:
    """The run that a hyperparameter file describes; its `alg_name` (or an override's) names the method.

    Raises:
        ConfigError: the name is no method's, or a value is wrong.
    """
    from zerounlearn.config import parsed_overrides, read_settings

    file, values = read_settings(path)
    name = {**values, **parsed_overrides(overrides)}.get("alg_name", "ZeroUnlearn")
    if not isinstance(name, str):
        raise ConfigError(f"{file}: alg_name={name!r}: expected the name of a method")
    # EasyEdit's own files write some names in other cases, as ULTRAEDIT.
    known = {one.lower(): one for one in methods}
    try:
        kind = methods[known.get(name.lower(), name)]
    except ConfigError as error:
        raise ConfigError(f"{file}: alg_name={name!r}: {error}") from None
    return kind.from_hparams(path, overrides)


def check_template(name: str, value: str | None) -> None:
    """Refuse a template that does not have `{}` once, or is no format.

    Raises:
        ConfigError: naming it.
    """
    if value is not None and (value.count("{}") != 1 or value.count("{") != 1 or value.count("}") != 1):
        raise ConfigError(f"{name}={value!r}: expected one {{}} for the layer's number")
