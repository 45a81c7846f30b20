"""Model families: where the modules that unlearning touches stand in each, by the `model_type` of its configuration.

A family is one row. A decoder that has none is looked through (`structure`), so a row is needed only where that leaves
a doubt. What a hyperparameter file says of these names beats both, and must be the same modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from zerounlearn.config import Settings, option, settings
from zerounlearn.errors import LayoutError
from zerounlearn.model.structure import name_of_blocks, name_of_head, name_of_norm, name_of_projection
from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@settings
class Templates(Settings):
    """Names of a decoder's modules, as EasyEdit's YAML files have them; None is found on the model."""

    rewrite_module_tmp: str | None = option(None, "The edited module of a layer, its MLP's down projection.")
    layer_module_tmp: str | None = option(None, "A layer.")
    mlp_module_tmp: str | None = option(None, "EasyEdit's name for a layer's MLP; nothing here reads it.")
    attn_module_tmp: str | None = option(None, "EasyEdit's name for a layer's attention; nothing here reads it.")
    ln_f_module: str | None = option(None, "The final norm.")
    lm_head_module: str | None = option(None, "The head, or the embedding where they are tied.")


families: Registry[Templates] = Registry("model family")


def _row(blocks: str, projection: str, attention: str, norm: str, head: str = "lm_head") -> Templates:
    """A family whose MLP holds the down projection."""
    layer = f"{blocks}.{{}}"
    return Templates(
        rewrite_module_tmp=f"{layer}.{projection}",
        layer_module_tmp=layer,
        mlp_module_tmp=f"{layer}.{projection.rpartition('.')[0]}",
        attn_module_tmp=f"{layer}.{attention}",
        ln_f_module=norm,
        lm_head_module=head,
    )


_LLAMA = _row("model.layers", "mlp.down_proj", "self_attn", "model.norm")
for _name, _summary, _templates in (
    ("llama", "Llama 2 and 3, SmolLM2 and others of Llama's architecture", _LLAMA),
    ("mistral", "Mistral", _LLAMA),
    ("qwen2", "Qwen 2 and 2.5", _LLAMA),
    ("qwen3", "Qwen 3", _LLAMA),
    ("gemma", "Gemma 1", _LLAMA),
    ("gemma2", "Gemma 2: a norm follows its MLP", _LLAMA),
    ("gemma3_text", "Gemma 3, text alone: a norm follows its MLP", _LLAMA),
    ("phi", "Phi 1, 1.5 and 2", _row("model.layers", "mlp.fc2", "self_attn", "model.final_layernorm")),
    ("phi3", "Phi 3 and 4", _LLAMA),
    ("gpt2", "GPT-2", _row("transformer.h", "mlp.c_proj", "attn", "transformer.ln_f")),
    ("gptj", "GPT-J", _row("transformer.h", "mlp.fc_out", "attn", "transformer.ln_f")),
    (
        "gpt_neox",
        "GPT-NeoX and Pythia",
        _row("gpt_neox.layers", "mlp.dense_4h_to_h", "attention", "gpt_neox.final_layer_norm", "embed_out"),
    ),
    ("olmo", "OLMo 1", _LLAMA),
    ("olmo2", "OLMo 2: a norm follows its MLP", _LLAMA),
    ("olmo3", "OLMo 3: a norm follows its MLP", _LLAMA),
    ("falcon", "Falcon", _row("transformer.h", "mlp.dense_4h_to_h", "self_attention", "transformer.ln_f")),
    ("starcoder2", "StarCoder 2", _row("model.layers", "mlp.c_proj", "self_attn", "model.norm")),
    ("glm", "GLM", _LLAMA),
    ("glm4", "GLM-4: a norm follows its MLP", _LLAMA),
    ("granite", "Granite: a scale follows its MLP", _LLAMA),
    ("cohere", "Cohere's Command R", _LLAMA),
):
    families.add(_name, _templates, summary=_summary)

NEEDED = ("rewrite_module_tmp", "layer_module_tmp", "ln_f_module", "lm_head_module")
"""Where things are in a decoder, as far as a layout has to know it."""


def templates_of(model: PreTrainedModel, given: Any, wanted: Sequence[str] = NEEDED) -> dict[str, str]:
    """The module names of a model: those given, else its family's, else what its structure says.

    Args:
        model: a decoder, with its weights or without.
        given: what has some of `Templates` as attributes, and maybe `layers`.
        wanted: the names asked for.

    Raises:
        LayoutError: a name is not given, and neither the families nor the structure say it; or the one given is of
            another module than they say.
    """
    family = families.get(str(getattr(model.config, "model_type", "")))
    return {name: _name_of(model, name, given, getattr(family, name, None)) for name in wanted}


def _name_of(model: PreTrainedModel, field: str, given: Any, row: str | None) -> str:
    """One of `templates_of`'s names; `row` is the family's."""
    own, layers = getattr(given, field, None), getattr(given, "layers", ())
    if own is None:
        return row if row and _modules(model, row, layers) else _STRUCTURE[field](model, layers)
    there = _modules(model, own, layers)
    try:
        expected = _STRUCTURE[field](model, layers)
    except LayoutError as error:
        if there:  # what the structure leaves open is the caller's to say
            return str(own)
        raise LayoutError(f"{field}={own!r} is no module of {type(model).__name__}; {error}") from None
    if there and there != _modules(model, expected, layers) and not _is_tied_head(model, field, there[0]):
        raise LayoutError(
            f"{field}={own!r} is not what the structure of {type(model).__name__} says it is, {expected!r}: leave it "
            "out, or write that"
        )
    return str(own)  # `Layout.of` says of one that is not there what is


def _modules(model: PreTrainedModel, template: str, layers: Sequence[int]) -> list[nn.Module]:
    """The modules of a template, of the first block where no layer is named; empty if any is not there."""
    try:
        return [model.get_submodule(name) for name in dict.fromkeys(template.format(layer) for layer in layers or (0,))]
    except AttributeError:
        return []


def _is_tied_head(model: PreTrainedModel, field: str, module: nn.Module) -> bool:
    """Whether it is the embedding whose weight the head has; offloaded, each has one of its own."""
    if field != "lm_head_module" or module is not model.get_input_embeddings():
        return False
    same = getattr(model.get_output_embeddings(), "weight", None) is module.weight
    return same or bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _projection(model: PreTrainedModel, layers: Sequence[int]) -> str:
    blocks = name_of_blocks(model)
    return f"{blocks}.{{}}.{name_of_projection(model, blocks, layers)}"


_STRUCTURE: Mapping[str, Callable[[PreTrainedModel, Sequence[int]], str]] = {
    "rewrite_module_tmp": _projection,
    "layer_module_tmp": lambda model, _: f"{name_of_blocks(model)}.{{}}",
    "ln_f_module": lambda model, _: name_of_norm(model, name_of_blocks(model)),
    "lm_head_module": lambda model, _: name_of_head(model),
}
"""What a model's structure says of each name."""
