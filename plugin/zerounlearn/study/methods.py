"""Methods of a study by label: their hyperparameters, what can be checked early, and an application that is undone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.config import read_settings, resolved
from zerounlearn.data.corpora import check_corpus, open_corpus
from zerounlearn.data.request import EOS, Request
from zerounlearn.data.retain import check_retain_set, retain_set
from zerounlearn.easyedit import methods as framework_methods
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.methods import Applied
from zerounlearn.errors import ConfigError, ZeroUnlearnError
from zerounlearn.methods.gradient import config as _baselines
from zerounlearn.methods.gradient.config import BaselineHyperParams, RetainingHyperParams
from zerounlearn.methods.zerounlearn import config as _ours
from zerounlearn.methods.zerounlearn.config import ZeroUnlearnHyperParams
from zerounlearn.methods.zerounlearn.method import layout_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage
from zerounlearn.statistics.collect import second_moments
from zerounlearn.study.material import Material, digest
from zerounlearn.study.spec import MethodSpec, ModelSpec

# The study says these, alike for all methods, or they say where and not what.
_NOT_SETTINGS = ("model_name", "device", "seed", "stats_dir", "retain_path")


@dataclass(frozen=True)
class Method:
    """A row of a study: what its file says, and the hyperparameters that come of it."""

    spec: MethodSpec
    algorithm: str
    hparams: Any

    @classmethod
    def load(cls, spec: MethodSpec, model: ModelSpec) -> Method:
        """Read the hyperparameters.

        Raises:
            ZeroUnlearnError: they are wrong, named with the method's label.
        """
        try:
            return cls._load(spec, model)
        except ZeroUnlearnError as error:
            raise type(error)(f"methods.{spec.label}: {error}") from error

    @classmethod
    def _load(cls, spec: MethodSpec, model: ModelSpec) -> Method:
        device = resolved_device(model.device)
        overrides = [*spec.overrides, f"model_name={json.dumps(model.name)}", f"device={json.dumps(device)}"]
        name = read_settings(spec.hparams, overrides)[1].get("alg_name")
        if name in _ours.METHODS:
            return cls(spec, str(name), _ours.load_hparams(spec.hparams, overrides))
        if name in _baselines.METHODS:
            return cls(spec, str(name), _check_retain(spec, _baselines.load_hparams(spec.hparams, overrides)))
        if spec.retain:
            raise ConfigError(f"retain=true: {name!r} is a method of the framework, which takes no retain set: drop it")
        hparams = framework_methods.load_framework_hparams(Path(spec.hparams), overrides)
        return cls(spec, str(hparams.alg_name), hparams)

    @property
    def of_framework(self) -> bool:
        """Whether EasyEdit wrote it."""
        return not isinstance(self.hparams, (ZeroUnlearnHyperParams, BaselineHyperParams))

    def settings(self) -> dict[str, Any]:
        """The hyperparameters as plain values, but for what the study says itself."""
        own = self.hparams
        values: Mapping[str, Any] = vars(own) if self.of_framework else own.to_dict()
        plain = json.loads(json.dumps({k: v for k, v in values.items() if k not in _NOT_SETTINGS}, default=str))
        return {**plain, "retain": self.spec.retain}

    def identity(self) -> dict[str, Any]:
        """All that the method's result depends on, but for model, draw and seed."""
        found = self.settings()
        if getattr(self.hparams, "mom2_adjustment", False):
            found["corpus"] = open_corpus(self.hparams.mom2_dataset).name  # changes with the file's content
        kept = Path(getattr(self.hparams, "retain_set", ""))
        if kept.is_file():
            found["retained"] = digest(kept.read_text(encoding="utf-8"))
        if self.of_framework:
            found["edition"] = framework().edition
        return found

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check layers, templates and corpus on a model without weights.

        Raises:
            ZeroUnlearnError: something does not fit, named with the method's label.
        """
        templates = ("rewrite_module_tmp", "layer_module_tmp", "ln_f_module", "lm_head_module")
        try:
            if isinstance(self.hparams, ZeroUnlearnHyperParams):
                check_retain_set(self.hparams.retain_set)
            if getattr(self.hparams, "mom2_adjustment", False):
                check_corpus(self.hparams.mom2_dataset)
            if all(hasattr(self.hparams, name) for name in (*templates, "layers")):
                Layout.of(skeleton, self.hparams.layers, **{name: getattr(self.hparams, name) for name in templates})
            else:  # one of the framework's that wraps modules, and names them in its own way
                framework_methods.check(self.hparams, skeleton)
        except ZeroUnlearnError as error:
            raise type(error)(f"methods.{self.spec.label}: {error}") from error

    @property
    def _needs_statistics(self) -> bool:
        return isinstance(self.hparams, ZeroUnlearnHyperParams) and self.hparams.mom2_adjustment

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Have the second moments on disk, which all cells share and none is charged for."""
        if self._needs_statistics:
            corpus = open_corpus(self.hparams.mom2_dataset)
            second_moments(layout_of(model, self.hparams), tokenizer, self.hparams, corpus)

    def seeded(self, seed: int) -> Any:
        """The hyperparameters with a cell's seed, where they have one."""
        hparams = copy(self.hparams)
        if hasattr(hparams, "seed"):
            hparams.seed = seed
        return hparams


def apply(
    method: Method,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    seed: int,
) -> Applied:
    """Forget the draw's facts through the framework's table of methods, with the neutral target.

    A retain set that the hyperparameters of ours stand for (`retain_set: auto`) holds no prompt that is measured.

    Args:
        method: which one.
        model: changed in place.
        tokenizer: its tokenizer.
        material: the draw; its retain set is for methods that were declared `retain: true`.
        seed: of the method's own random choices.

    Raises:
        ZeroUnlearnError: the method failed; the weights are as they were.
    """
    from zerounlearn.easyedit import register  # the package enters our methods into the framework's table

    register()
    hparams = method.seeded(seed)
    if method.of_framework:
        return framework_methods.apply(model, tokenizer, material.requests, hparams, neutral=EOS, seed=seed)
    table = importlib.import_module(f"{framework().module.__name__}.util.alg_dict").ALG_DICT
    records = [
        {"prompt": f"{r.before}{{}}{r.after}", "subject": r.subject, "ground_truth": r.answer, "target_new": ""}
        for r in material.requests
    ]
    kept: Sequence[Request] = material.retain if method.spec.retain else []
    if isinstance(hparams, ZeroUnlearnHyperParams) and not method.spec.retain:
        kept = retain_set(
            model, tokenizer, material.requests, hparams.retain_set, held_out=material.asked, seed=hparams.seed
        )
    remembered = deepcopy(Lineage.of(model))  # what the method learns of the model must not reach the next cell
    edited, originals = table[method.algorithm](
        model, tokenizer, records, hparams, return_orig_weights=True, keep_original_weight=True, retain=kept
    )
    return Applied(edited, lambda: _put_back(edited, originals, remembered))


def _put_back(model: nn.Module, originals: Mapping[str, Tensor], remembered: Lineage) -> None:
    with torch.no_grad():
        for name, value in originals.items():
            model.get_parameter(name).copy_(value)
    vars(Lineage.of(model)).update(vars(remembered))


def resolved_device(word: str) -> str:
    """'auto' as a device of this machine.

    Raises:
        ConfigError: torch knows no such device.
    """
    try:
        return str(torch.device(resolved(word)))
    except RuntimeError:
        raise ConfigError(f"model.device={word!r}: expected 'auto', 'cpu', 'cuda:0' or another device") from None


def _check_retain(spec: MethodSpec, hparams: BaselineHyperParams) -> BaselineHyperParams:
    """A retain term has something to work on, and a retain set a term; all methods get the study's own set."""
    if not isinstance(hparams, RetainingHyperParams):
        if spec.retain:
            raise ConfigError(
                f"retain=true: {hparams.alg_name} has no retain term, so it would change nothing: drop it"
            )
        return hparams
    if hparams.retain_path is not None:
        raise ConfigError(
            f"retain_path={hparams.retain_path!r}: a study draws the retain set itself: write retain: true instead"
        )
    if bool(hparams.retain_weight) != spec.retain:
        remedy = "set retain: true, or set: {retain_weight: 0}" if hparams.retain_weight else "drop retain: true"
        raise ConfigError(
            f"retain_weight={hparams.retain_weight:g} with retain={str(spec.retain).lower()} means nothing: {remedy}"
        )
    return hparams
