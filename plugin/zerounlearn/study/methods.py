"""Methods of a study by label: what its file says of each, and an application to a draw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.errors import ConfigError, ZeroUnlearnError
from zerounlearn.method.base import UnlearningMethod, load_method
from zerounlearn.method.edit import Edit
from zerounlearn.model.device import resolved
from zerounlearn.model.fingerprint import value_digest
from zerounlearn.study.material import Material
from zerounlearn.study.spec import MethodSpec, ModelSpec

# The study says these, alike for all methods, or they say where and not what.
_NOT_SETTINGS = ("model_name", "device", "seed", "stats_dir", "retain_path")


@dataclass(frozen=True)
class Row:
    """A row of a study: what its file says, and the method that comes of it."""

    spec: MethodSpec
    method: UnlearningMethod

    @classmethod
    def load(cls, spec: MethodSpec, model: ModelSpec) -> Row:
        """Read the hyperparameters.

        Raises:
            ZeroUnlearnError: they are wrong, named with the method's label.
        """
        device = resolved_device(model.device)
        overrides = [*spec.overrides, f"model_name={json.dumps(model.name)}", f"device={json.dumps(device)}"]
        try:
            method = load_method(spec.hparams, overrides)
            method.check_retain(spec.retain)
        except ZeroUnlearnError as error:
            raise type(error)(f"methods.{spec.label}: {error}") from error
        return cls(spec, method)

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain values, but for what the study says itself."""
        values = {name: value for name, value in self.method.to_dict().items() if name not in _NOT_SETTINGS}
        return {**json.loads(json.dumps(values, default=str)), "retain": self.spec.retain}

    def identity(self) -> dict[str, Any]:
        """All that the method's result depends on, but for model, draw and seed."""
        return self.settings() | {name: value_digest(value) for name, value in self.method.identity().items()}

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check layers, templates and corpus on a model without weights.

        Raises:
            ZeroUnlearnError: something does not fit, named with the method's label.
        """
        try:
            self.method.check(skeleton)
        except ZeroUnlearnError as error:
            raise type(error)(f"methods.{self.spec.label}: {error}") from error

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material, seed: int) -> Edit:
        """Forget the draw's facts, with the neutral target.

        A retain set that the hyperparameters stand for (`retain_set: auto`) holds no prompt that is measured.

        Args:
            model: changed in place.
            tokenizer: its tokenizer.
            material: the draw; its retain set is for methods that were declared `retain: true`.
            seed: of the method's own random choices.

        Raises:
            ZeroUnlearnError: the method failed; the weights are as they were.
        """
        retain = material.retain if self.spec.retain else None
        return self.method.seeded(seed).apply(
            model, tokenizer, material.requests, retain=retain, held_out=material.asked
        )


def resolved_device(word: str) -> str:
    """'auto' as a device of this machine.

    Raises:
        ConfigError: torch knows no such device.
    """
    try:
        return str(torch.device(resolved(word)))
    except RuntimeError:
        raise ConfigError(f"model.device={word!r}: expected 'auto', 'cpu', 'cuda:0' or another device") from None
