"""EasyEdit's contract for a method: `apply(model, tok, requests, hparams, ...) -> (model, original weights)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.corpora import open_corpus
from zerounlearn.data.fact import load_forget_set
from zerounlearn.data.request import Request, from_easyedit
from zerounlearn.data.retain import retain_set
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import LayoutError
from zerounlearn.methods.gradient.config import BaselineHyperParams, RetainingHyperParams
from zerounlearn.methods.gradient.descend import unlearn_by_gradient
from zerounlearn.methods.zerounlearn.config import ZeroUnlearnHyperParams
from zerounlearn.methods.zerounlearn.method import find_layout, unlearn


def apply_zerounlearn_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: ZeroUnlearnHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    retain: Sequence[Request] | None = None,
    **_: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Forget a batch of requests, as EasyEdit's MEMIT would edit them.

    Args:
        model: changed in place unless `copy`.
        tok: the model's tokenizer; its padding side does not matter.
        requests: EasyEdit's dictionaries; `ground_truth` is the sensitive answer, `target_new` the neutral
            target (empty, or the end-of-text token's spelling, for the run's own).
        hparams: the run.
        copy: edit a deep copy instead.
        return_orig_weights: give the original weights back.
        keep_original_weight: the 2023 edition's switch: without it MEMIT, and so we, return no weights there
            and the edit stays.
        retain: facts to keep; by default what `hparams.retain_set` stands for.

    Returns:
        The edited model and {parameter name: original tensor}.

    Raises:
        LayoutError: the original weights are asked for and belong to an offloaded layer.
        ZeroUnlearnError: see `zerounlearn.methods.zerounlearn.method.unlearn`; the weights are then as they were.
    """
    parsed = from_easyedit(requests, tok)
    if _gives_back(return_orig_weights, keep_original_weight):
        _check_reachable(model, hparams)
    if copy:
        model = deepcopy(model)
    corpus = open_corpus(hparams.mom2_dataset) if hparams.mom2_adjustment else None
    if retain is None:
        retain = retain_set(model, tok, parsed, hparams.retain_set, seed=hparams.seed)
    outcome = unlearn(model, tok, parsed, hparams, corpus, retain=retain)
    return model, outcome.originals if _gives_back(return_orig_weights, keep_original_weight) else {}


def apply_baseline_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: BaselineHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    retain: Sequence[Request] | None = None,
    texts: Sequence[str] = (),
    **_: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Forget a batch of requests by one of the field's own methods; `hparams` says which.

    Arguments and result as for `apply_zerounlearn_to_model`, and:

    Args:
        retain: facts to keep; by default those in `hparams.retain_path`, if it names a file.
        texts: ordinary text to keep.

    Raises:
        ZeroUnlearnError: see `unlearn_by_gradient`; the weights are then as they were.
    """
    parsed = from_easyedit(requests, tok)
    if retain is None:
        path = hparams.retain_path if isinstance(hparams, RetainingHyperParams) else None
        retain = [fact.request for fact in load_forget_set(path)] if path else []
    if copy:
        model = deepcopy(model)
    outcome = unlearn_by_gradient(model, tok, parsed, hparams, retain=retain, texts=texts)
    return model, outcome.originals if _gives_back(return_orig_weights, keep_original_weight) else {}


def _check_reachable(model: PreTrainedModel, hparams: ZeroUnlearnHyperParams) -> None:
    """EasyEdit puts weights back into the parameters, which for an offloaded one does nothing, silently."""
    layout = find_layout(model, hparams)
    offloaded = [layout.weight_names[layer] for layer in hparams.layers if layout.parameter(layer).is_meta]
    if offloaded:
        raise LayoutError(
            f"{offloaded[0]} is offloaded, and EasyEdit could not put it back: call ZeroUnlearnEditor.unlearn, or load "
            "the edited layers into memory"
        )


def _gives_back(return_orig_weights: bool, keep_original_weight: bool) -> bool:
    return return_orig_weights and (framework().edition == "checkout" or keep_original_weight)
