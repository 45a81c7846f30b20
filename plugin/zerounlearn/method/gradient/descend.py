"""The loop that all baselines share: AdamW on the chosen weights, which are put back if anything fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.request import Request, check_apart, check_requests
from zerounlearn.errors import ConfigError, IllPosedError, LayoutError
from zerounlearn.method.edit import Edit
from zerounlearn.method.gradient.adamw import MasterAdamW
from zerounlearn.method.gradient.base import ForgetSet, GradientMethod, RetainingMethod, Term, answer_samples
from zerounlearn.method.gradient.sequences import Reader, Sample, text_samples
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.clock import Clock
from zerounlearn.model.hooks import frozen, restored

log = logging.getLogger(__name__)


def unlearn_by_gradient(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: GradientMethod,
    *,
    retain: Sequence[Request] = (),
    texts: Sequence[str] = (),
) -> Edit:
    """Forget `requests`, in place. If anything fails, the weights are as they were, bit for bit.

    The model runs in evaluation mode: dropout would make the run depend on a global random state.

    Args:
        model: a decoder; the weights that `hparams.layers` chooses are changed.
        tokenizer: the model's; its padding side does not matter.
        requests: the forget set.
        hparams: the method and its run.
        retain: facts to keep.
        texts: ordinary text to keep, beside the facts or in their place.

    Raises:
        ConfigError: the method's retain term has nothing to work on, or the method has none and was given a set.
        RequestError, LayoutError: before any weight is changed.
        IllPosedError: the loss, its gradient or a weight is no longer finite; the weights are restored.
    """
    requests = check_requests(requests)
    hparams.check_given(bool(retain or texts))
    check_apart(requests, retain)
    layout = find_layout(model, hparams)
    written = _written(model, hparams)
    edit = Edit(hparams.alg_name, hparams.to_dict(), losses={"forget": []})
    with restored(list(written.values())) as originals, frozen(model), torch.enable_grad():
        with hparams.training(model, written, edit) as trained:
            for parameter in trained.values():
                parameter.requires_grad_(True)
            clock = Clock(edit.seconds, model)
            with clock("reference"):
                reader = Reader(model, tokenizer)
                answers = answer_samples(tokenizer, requests, end=hparams.end_token)
                forget = ForgetSet(
                    reader, layout, tokenizer, requests, answers, hparams.minibatch_size, hparams.end_token
                )
                terms = {"forget": (1.0, hparams.forget_term(forget))}
                if isinstance(hparams, RetainingMethod) and hparams.retain_weight:
                    kept = _kept(tokenizer, hparams, retain, texts, len(requests))
                    terms["retain"] = (hparams.retain_weight, hparams.retain_term(reader, layout, kept))
                    edit.losses["retain"] = []
            with clock("descent"):
                _descend(terms, trained, hparams, edit)
        edit.record(model, dict(zip(written, originals, strict=True)))
    return edit


def _kept(
    tokenizer: PreTrainedTokenizerBase,
    hparams: RetainingMethod,
    retain: Sequence[Request],
    texts: Sequence[str],
    requests: int,
) -> list[Sample]:
    """What is to be kept; in its own order, no more of it than a pass over the forget set comes to."""
    kept = answer_samples(tokenizer, retain, end=hparams.end_token)
    kept += text_samples(tokenizer, texts, hparams.text_max_length)
    if not kept:
        raise ConfigError(f"{hparams.alg_name}: none of the {len(texts)} retain texts has two tokens")
    return kept if hparams.shuffle else kept[: -(-requests // hparams.minibatch_size) * hparams.minibatch_size]


def _descend(
    terms: dict[str, tuple[float, Term]],
    chosen: dict[str, nn.Parameter],
    hparams: GradientMethod,
    edit: Edit,
) -> None:
    optimiser = MasterAdamW(list(chosen.values()), lr=hparams.lr, weight_decay=hparams.weight_decay)
    count = terms["forget"][1].count
    batches = {name: _batches(term, hparams, count) for name, (_, term) in terms.items()}
    steps = hparams.step_count(count)
    for step in tqdm(range(steps), desc=hparams.alg_name, unit="step", disable=None):
        losses = {name: term.of(next(batches[name])) for name, (_, term) in terms.items()}
        for name, loss in losses.items():
            edit.losses[name].append(float(loss.detach()))
            _check_finite(f"{name} loss", edit.losses[name][-1], step, steps, hparams)
        total = torch.stack([terms[name][0] * loss for name, loss in losses.items()]).sum()
        norm = optimiser.take_gradients(total, hparams.max_grad_norm or float("inf"))
        _check_finite("gradient's norm", float(norm), step, steps, hparams)
        optimiser.step()
    for name, parameter in chosen.items():
        if not torch.isfinite(parameter).all():
            raise IllPosedError(
                f"{hparams.alg_name}: {name} does not fit {parameter.dtype} after {steps} steps: lower "
                f"lr={hparams.lr:g}, or load the model in bfloat16 or float32"
            )
    last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in edit.losses.items())
    log.info("%s: losses of the last of %d steps: %s", hparams.alg_name, steps, last)


def _batches(term: Term, hparams: GradientMethod, requests: int) -> Iterator[list[int]]:
    size = hparams.minibatch_size
    if not hparams.shuffle:
        return term.in_order(size, restart=-(-requests // size))
    # A generator a term: the forget set comes in the same order with and without a retain set.
    return term.batches(size, generator=torch.Generator().manual_seed(hparams.seed))


def _check_finite(what: str, value: float, step: int, steps: int, hparams: GradientMethod) -> None:
    if value - value == 0:
        return
    remedy = (
        f"lower lr={hparams.lr:g}, or take fewer steps"
        if step
        else "the model was not finite to begin with: reload the checkpoint, or load it in float32"
    )
    raise IllPosedError(f"{hparams.alg_name}: the {what} is {value} at step {step} of {steps}: {remedy}")


def _written(model: PreTrainedModel, hparams: GradientMethod) -> dict[str, nn.Parameter]:
    """The parameters that the run writes to, by name."""
    written = {name: model.get_parameter(name) for name in hparams.weight_names(model)}
    for name, parameter in written.items():
        if not parameter.is_floating_point():
            raise LayoutError(f"{name} is quantised: load the model in float32, bfloat16 or float16")
        if parameter.is_meta:
            raise LayoutError(f"{name} is offloaded: load the model whole, without offloading")
    return written
