"""Whatever fails, or is interrupted, leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from zerounlearn.model.hooks import attention_of, hooks_of, uninterrupted
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.weights import weight_of, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def restored_if_it_fails(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Put the parameters back bit for bit if the body raises, KeyboardInterrupt included, wherever they are kept.

    So are what is remembered of earlier edits, hooks, training modes, the attention's implementation, gradient flags
    and torch's gradient mode: an interrupt in the middle of putting them back elsewhere may have left them. A further
    Ctrl-C waits until then.
    """
    saved = {name: weight_of(model, name).clone() for name in names}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [(held, set(held)) for module in model.modules() for held in hooks_of(module)]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gradients = torch.is_grad_enabled()
    attention = attention_of(model)
    lineage = Lineage.of(model)
    remembered = {name: dict(value) for name, value in vars(lineage).items() if isinstance(value, dict)}
    try:
        yield
    except BaseException:
        with uninterrupted():
            write_weights(model, saved)
            vars(lineage).update(remembered)
            for module, mode in modes:
                module.training = mode
            for held, own in hooks:
                for key in [key for key in held if key not in own]:
                    del held[key]
            for name, flag in flags.items():
                model.get_parameter(name).requires_grad_(flag)
            for config, implementation in attention:
                config._attn_implementation = implementation
            torch.set_grad_enabled(gradients)
        raise
