"""Hyperparameters of EasyEdit's own methods: YAML files of ours into objects of the framework's classes."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from zerounlearn.config import read_settings
from zerounlearn.data.corpora import check_corpus
from zerounlearn.easyedit.editions.compat import PACKAGE, framework
from zerounlearn.errors import ConfigError, did_you_mean
from zerounlearn.model.device import resolved


@dataclass(frozen=True)
class Method:
    """What EasyEdit does not say about a method of its own."""

    hparams: str
    batch: bool = True
    side: Literal["left", "right"] = "right"
    template: bool = True
    """Whether it looks for the subject in the prompt."""
    statistics: bool = False
    wheel: Mapping[str, Any] | None = None
    """In the 2023 wheel too, where fields that came later have these values."""
    runs: str = ""
    """The method of EasyEdit's that it runs, where that has another name: it is a variant of ours."""
    own: Mapping[str, float] = field(default_factory=dict)
    """A variant's own hyperparameters and their defaults, as in ZeroUnlearn's published code."""


METHODS: dict[str, Method] = {
    "FT": Method("FTHyperParams", template=False, wheel={"objective_optimization": "prompt_last"}),
    "LoRA": Method(
        "LoRAHyperParams", side="left", template=False, wheel={"lora_type": "adalora", "model_parallel": False}
    ),
    "ROME": Method("ROMEHyperParams", batch=False, statistics=True, wheel={"fp16": False}),
    "R-ROME": Method("R_ROMEHyperParams", batch=False, statistics=True),
    "MEMIT": Method("MEMITHyperParams", statistics=True, wheel={}),
    "MEMIT_seq": Method("MEMITHyperParams", statistics=True, wheel={}, runs="MEMIT", own={"group_size": 0}),
    "MEMIT_rect": Method(
        "MEMITHyperParams", statistics=True, wheel={}, runs="MEMIT", own={"group_size": 0, "kept_percent": 40}
    ),
    "MEMIT_prune": Method("MEMITHyperParams", statistics=True, wheel={}, runs="MEMIT", own={"group_size": 0}),
    "EMMET": Method("EMMETHyperParams", statistics=True),
    "PMET": Method("PMETHyperParams", statistics=True),
    "AlphaEdit": Method("AlphaEditHyperParams", statistics=True),
    "WISE": Method("WISEHyperParams", batch=False, side="left", template=False),
    "GRACE": Method("GraceHyperParams", batch=False, side="left", template=False),
    "ULTRAEDIT": Method("UltraEditHyperParams", side="left", template=False),
}
ALIASES = {"UltraEdit": "ULTRAEDIT"}
_EDITIONS = {"wheel": "2023 edition (the wheel)", "checkout": "2026 edition (a checkout)"}


def load_framework_hparams(file: Path, overrides: Sequence[str] = ()) -> Any:
    """Hyperparameters of one of EasyEdit's own methods: an object of the framework's class.

    The file is read, and `key=value` overrides applied, as our own are. `device: auto` is accepted.

    Raises:
        ConfigError: the file cannot be read; the method is unknown or not in the edition at hand; a name is unknown
            or missing; or a value is one that cannot run here.
        FrameworkError: EasyEdit cannot be had.
    """
    path, values = read_settings(file, overrides)
    name = ALIASES.get(str(values.get("alg_name")), str(values.get("alg_name")))
    if name not in METHODS:
        raise ConfigError(f"{path}: alg_name={name!r}: expected one of {', '.join(METHODS)}")
    method, edition = METHODS[name], framework().edition
    if edition == "wheel" and method.wheel is None:
        raise ConfigError(
            f"{path}: alg_name={name!r}: EasyEdit's {_EDITIONS[edition]} does not have it, its {_EDITIONS['checkout']} "
            "does: export EASYEDIT_HOME=…/EasyEdit"
        )
    own = {key: values.pop(key, default) for key, default in method.own.items()}
    _check_own(str(path), name, own, values)
    values["alg_name"] = method.runs or name
    values["device"] = resolved(values.get("device", "auto"))
    kind = getattr(importlib.import_module(f"{PACKAGE}.util.alg_dict"), method.hparams)
    values = _checked_names(str(path), values, kind, (method.wheel or {}) if edition == "wheel" else {})
    _check_values(str(path), name, values)
    built = _built(str(path), values, kind)
    vars(built).update(own, alg_name=name)
    return built


def _checked_names(where: str, values: dict[str, Any], kind: type, later: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without fields that this edition does not have and would treat alike anyway."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    extra = {"alpha", "beta", "gamma"} if "act_ratio" in fields else set()  # WISE's file has them as act_margin
    known = (set(fields) - extra) | ({"act_margin"} if extra else set())
    kept = {}
    for name, value in values.items():
        if name in known:
            kept[name] = value
        elif name not in later:
            hint = did_you_mean(name, sorted(known))
            raise ConfigError(f"{where}: unknown hyperparameter {name!r} of {kind.__name__}: {hint}")
        elif value != later[name]:
            raise ConfigError(
                f"{where}: {name}={value!r}: EasyEdit's {_EDITIONS['wheel']} does {later[name]!r} alone; set that, or "
                "export EASYEDIT_HOME=…/EasyEdit"
            )
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING} & known
    missing = sorted(required - set(kept))
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} is missing: {kind.__name__} has no default for it")
    return kept


def _check_values(where: str, name: str, values: Mapping[str, Any]) -> None:
    """Refuse what would fail, or change the model in ways that are not undone, once the model is loaded."""
    refused = {
        "fp16": (True, "load the model in the precision it is to have"),
        "half": (True, "it would cast the whole model"),
        "model_parallel": (True, "the model is given, and stays where it is"),
        "retrieve": (False, "merging needs the framework's own wrapper around the model at each call"),
    }
    for key, (value, reason) in refused.items():
        if values.get(key) is value:
            raise ConfigError(f"{where}: {key}={value!r}: {reason}; set it to {not value}")
    layers = values.get("layers", [])
    if not isinstance(layers, list) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise ConfigError(f"{where}: layers={layers!r}: expected a list of layer numbers, counted from 0")
    if not layers and "layers" in values and name != "LoRA":
        raise ConfigError(f"{where}: layers=[]: name at least one layer to edit")
    modules = values.get("rewrite_module_tmps")
    if modules is not None and modules != [values["rewrite_module_tmp"]]:
        raise ConfigError(
            f"{where}: rewrite_module_tmps={modules!r}: there are statistics of rewrite_module_tmp alone; list just it"
        )
    for key in ("num_steps", "v_num_grad_steps", "n_iter", "batch_size", "batch_size_once"):
        if key in values and not (type(values[key]) is int and values[key] >= 1):
            raise ConfigError(f"{where}: {key}={values[key]!r}: expected a whole number >= 1")
    if METHODS[name].statistics:
        check_corpus(str(values["mom2_dataset"]))


def _check_own(where: str, name: str, own: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    size, percent = own.get("group_size", 0), own.get("kept_percent", 100)
    if type(size) is not int or size < 0:
        raise ConfigError(f"{where}: group_size={size!r}: expected a whole number >= 0; 0 edits all requests at once")
    if type(percent) not in (int, float) or not 0 < percent <= 100:
        raise ConfigError(f"{where}: kept_percent={percent!r}: expected a number > 0 and <= 100")
    if name == "MEMIT_seq" and values.get("mom2_update_weight") == 0:
        raise ConfigError(f"{where}: mom2_update_weight=0: MEMIT_seq weighs earlier keys against it; expected > 0")


def _built(where: str, values: Mapping[str, Any], kind: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # their classes read a file, and some rename what is in it
        file = Path(folder) / "hparams.yaml"
        file.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        try:
            return kind.from_hparams(str(file))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {kind.__name__} does not accept it: {error}") from error
