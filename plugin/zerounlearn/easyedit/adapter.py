"""EasyEdit's contract for a method: `apply(model, tok, requests, hparams, ...) -> (model, original weights)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.request import Request, from_easyedit
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import LayoutError
from zerounlearn.method.base import Method
from zerounlearn.method.edit import Edit


def apply_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: Method,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    retain: Sequence[Request] | None = None,
    **_: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Forget a batch of requests by the method that `hparams` are of, as EasyEdit's MEMIT would edit them.

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
        retain: facts to keep; by default what the hyperparameters stand for.

    Returns:
        The edited model and {parameter name: original tensor}.

    Raises:
        LayoutError: the original weights are asked for and belong to an offloaded layer.
        ZeroUnlearnError: see `Method.apply`; the weights are then as they were.
    """
    wanted = {"return_orig_weights": return_orig_weights, "keep_original_weight": keep_original_weight}
    return edit_model(model, tok, requests, hparams, copy=copy, retain=retain, **wanted)[:2]


def edit_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: Method,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    retain: Sequence[Request] | None = None,
    **_: Any,
) -> tuple[PreTrainedModel, dict[str, Tensor], Edit]:
    """As `apply_to_model`, and the edit."""
    parsed = from_easyedit(requests, tok)
    hparams = hparams.located(model, tok)
    gives_back = return_orig_weights and (framework().edition == "checkout" or keep_original_weight)
    if gives_back:
        _check_reachable(model, hparams)
    if copy:
        model = deepcopy(model)
    edit = hparams.apply(model, tok, parsed, retain=retain)
    edit.forgot(parsed)
    return model, edit.before if gives_back else {}, edit


def _check_reachable(model: PreTrainedModel, hparams: Method) -> None:
    """EasyEdit puts weights back into the parameters, which for an offloaded one does nothing, silently."""
    offloaded = [name for name in hparams.weight_names(model) if model.get_parameter(name).is_meta]
    if offloaded:
        raise LayoutError(
            f"{offloaded[0]} is offloaded, and EasyEdit could not put it back: call ZeroUnlearnEditor.unlearn, or load "
            "the edited layers into memory"
        )
