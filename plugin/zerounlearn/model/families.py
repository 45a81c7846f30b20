"""Model families: where the modules that unlearning touches stand in each, by the `model_type` of its configuration.

A family is one row. What a hyperparameter file says of these names beats the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zerounlearn.config import Settings, option, settings
from zerounlearn.errors import LayoutError, did_you_mean
from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@settings
class Templates(Settings):
    """Names of a decoder's modules, as EasyEdit's YAML files have them; None takes the family's."""

    rewrite_module_tmp: str | None = option(None, "The edited module of a layer, its MLP's down projection.")
    layer_module_tmp: str | None = option(None, "A layer.")
    mlp_module_tmp: str | None = option(None, "EasyEdit's name for a layer's MLP; nothing here reads it.")
    attn_module_tmp: str | None = option(None, "EasyEdit's name for a layer's attention; nothing here reads it.")
    ln_f_module: str | None = option(None, "The final norm.")
    lm_head_module: str | None = option(None, "The head, or the embedding where they are tied.")


families: Registry[Templates] = Registry("model family")

_LLAMA = Templates(
    rewrite_module_tmp="model.layers.{}.mlp.down_proj",
    layer_module_tmp="model.layers.{}",
    mlp_module_tmp="model.layers.{}.mlp",
    attn_module_tmp="model.layers.{}.self_attn",
    ln_f_module="model.norm",
    lm_head_module="lm_head",
)
_GPT2 = Templates(
    rewrite_module_tmp="transformer.h.{}.mlp.c_proj",
    layer_module_tmp="transformer.h.{}",
    mlp_module_tmp="transformer.h.{}.mlp",
    attn_module_tmp="transformer.h.{}.attn",
    ln_f_module="transformer.ln_f",
    lm_head_module="lm_head",
)
for _name, _summary, _templates in (
    ("llama", "Llama 2 and 3, SmolLM2 and others of Llama's architecture", _LLAMA),
    ("mistral", "Mistral", _LLAMA),
    ("qwen2", "Qwen 2 and 2.5", _LLAMA),
    ("qwen3", "Qwen 3", _LLAMA),
    ("gemma", "Gemma 1", _LLAMA),
    ("gemma2", "Gemma 2: gradient methods only, a norm follows its MLP", _LLAMA),
    ("gpt2", "GPT-2", _GPT2),
):
    families.add(_name, _templates, summary=_summary)


def templates_of(model: PreTrainedModel, given: Any) -> dict[str, str]:
    """The module names of a model: those given, else its family's.

    Raises:
        LayoutError: a name is not given, and the model's family is none of `families`.
    """
    names = {name: getattr(given, name, None) for name in Templates.fields()}
    missing = [name for name, value in names.items() if value is None]
    kind = str(getattr(model.config, "model_type", ""))
    family = families.get(kind)
    if family is None and any(name in _NEEDED for name in missing):
        raise LayoutError(
            f"{missing[0]} is not given, and {kind!r} is no model family known here: name the module in the "
            f"hyperparameters; families: {did_you_mean(kind, list(families))}"
        )
    return {name: value if value is not None else getattr(family, name, "") for name, value in names.items()}


_NEEDED = ("rewrite_module_tmp", "layer_module_tmp", "ln_f_module", "lm_head_module")
