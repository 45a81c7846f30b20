"""Low-rank adapters on a model's linear layers, and a model that is as before once they are off again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zerounlearn.method.export import load_peft
from zerounlearn.model.device import seeded
from zerounlearn.model.hooks import uninterrupted
from zerounlearn.model.snapshot import Snapshot


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of all linear layers but the head."""
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]


@contextmanager
def adapted(
    model: PreTrainedModel,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int,
    what: str,
) -> Iterator[dict[str, nn.Module]]:
    """Adapters inside, each layer's by its name; outside the same modules and hooks as before, whatever happens.

    torch's generators are seeded inside. An adapter of a model in half precision is float32.

    Args:
        model: any decoder.
        names: of its linear layers.
        rank: of an adapter.
        alpha: the change is B A times this over `rank`.
        dropout: share of an adapter's inputs left out in training mode.
        seed: of A and of dropout.
        what: needs it, for the message.

    Raises:
        ConfigError: `peft` is not installed.
    """
    peft, snapshot = load_peft(what), Snapshot(model, ())
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(names),
        fan_in_fan_out=transposed,
        bias="none",
    )
    try:
        with seeded(model.device, seed):
            peft.inject_adapter_in_model(config, model)
            for name, parameter in model.named_parameters():
                if ".lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()
            yield {name: model.get_submodule(name) for name in names}
    finally:
        with uninterrupted():
            snapshot.restore()
