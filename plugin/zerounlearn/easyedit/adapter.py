"""EasyEdit's contract for a method: `apply(model, tok, requests, hparams, ...) -> (model, original weights)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.assets.corpora import open_corpus
from zerounlearn.easyedit.compat import framework
from zerounlearn.method.hparams import ZeroUnlearnHyperParams
from zerounlearn.method.request import from_easyedit
from zerounlearn.method.unlearn import unlearn


def apply_zerounlearn_to_model(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    hparams: ZeroUnlearnHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
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

    Returns:
        The edited model and {parameter name: original tensor}.

    Raises:
        ZeroUnlearnError: see `zerounlearn.method.unlearn.unlearn`; the weights are then as they were.
    """
    parsed = from_easyedit(requests, tok)
    if copy:
        model = deepcopy(model)
    corpus = open_corpus(hparams.mom2_dataset) if hparams.mom2_adjustment else None
    outcome = unlearn(model, tok, parsed, hparams, corpus)
    kept = return_orig_weights and (framework().edition == "checkout" or keep_original_weight)
    return model, outcome.originals if kept else {}
