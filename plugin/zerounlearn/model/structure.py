"""Where a decoder's parts are, found by what its modules are and not by what they are called.

The blocks are the longest list of modules that each write hidden states; a block's down projection is the linear
module beside its attention that writes them; the final norm stands beside the list; the head is the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from zerounlearn.errors import LayoutError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMEDY = "name it in the hyperparameters"
_SHOWN = 8  # modules that a message names


def hidden_size(model: PreTrainedModel) -> int:
    """d, the length of the model's hidden states."""
    return int(model.config.get_text_config().hidden_size)


def name_of_blocks(model: PreTrainedModel) -> str:
    """The list of the model's blocks, as "model.layers".

    Raises:
        LayoutError: no list, or more than one, could be it.
    """
    d = hidden_size(model)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    fitting = {n: len(m) for n, m in outer.items() if all(_writers(block, d) for block in m)}
    longest = [name for name, length in fitting.items() if length == max(fitting.values())]
    if len(longest) != 1:
        raise LayoutError(
            f"layer_module_tmp: in {type(model).__name__} {len(longest) or 'no'} lists of modules could "
            f"be its blocks (looked for: the longest list whose modules each hold a linear module that writes {d} "
            f"numbers; lists there: {_named([f'{n} of {len(m)}' for n, m in lists.items()])}): {_REMEDY}"
        )
    return longest[0]


def name_of_projection(model: PreTrainedModel, blocks: str, layers: Sequence[int]) -> str:
    """The down projection within each of these blocks, as "mlp.down_proj".

    Args:
        model: a decoder, on any device.
        blocks: see `name_of_blocks`.
        layers: the blocks looked at; those that the model does not have are left out, none means all.

    Raises:
        LayoutError: no module of a block, or more than one, could be it; or the block is a mixture of experts.
    """
    modules = cast(nn.ModuleList, model.get_submodule(blocks))
    chosen = [layer for layer in layers if 0 <= layer < len(modules)] or range(len(modules))
    found = {layer: _projection(model, modules[layer], f"{blocks}.{layer}") for layer in chosen}
    names = sorted(set(found.values()))
    if len(names) != 1:
        raise LayoutError(
            f"rewrite_module_tmp: layers {list(found)} of {type(model).__name__} have down projections "
            f"under several names ({_named(names)}): edit layers of one kind"
        )
    return names[0]


def name_of_norm(model: PreTrainedModel, blocks: str) -> str:
    """The norm between the last block and the head.

    Raises:
        LayoutError: no module beside the blocks, or more than one, could be it.
    """
    above, _, own = blocks.rpartition(".")
    d = hidden_size(model)
    beside = list(model.get_submodule(above).named_children())
    norms = [name for name, module in beside if _is_norm(module, d)]
    if len(norms) > 1:  # an embedding's norm stands before the blocks
        behind = [name for name, _ in beside][[name for name, _ in beside].index(own) :]
        norms = [name for name in norms if name in behind]
    if len(norms) != 1:
        raise LayoutError(
            f"ln_f_module: {len(norms) or 'no'} modules beside {blocks} of {type(model).__name__} could "
            f"be its final norm (looked for: a norm of {d} numbers; modules there: "
            f"{_named([f'{n} ({type(m).__name__})' for n, m in beside])}): {_REMEDY}"
        )
    return f"{above}.{norms[0]}" if above else norms[0]


def name_of_head(model: PreTrainedModel) -> str:
    """The module that makes logits.

    Raises:
        LayoutError: the model has none.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head and head is not None), None)
    if name is None:
        raise LayoutError(
            f"lm_head_module: {type(model).__name__}.get_output_embeddings() names none of its modules: "
            f"{_REMEDY}; modules there: {_named([name for name, _ in model.named_children()])}"
        )
    return name


def _projection(model: PreTrainedModel, block: nn.Module, where: str) -> str:
    d = hidden_size(model)
    kinds = {name: type(module).__name__.lower() for name, module in block.named_modules() if name}
    attention = [name for name, kind in kinds.items() if "attention" in kind or "attn" in kind]
    experts = _experts(block, d, attention)
    if experts:
        raise LayoutError(
            f"{where}.{experts} of {type(model).__name__} is a mixture of experts: a fact lies in the down projections "
            "of those that a router chooses, and each would need keys and statistics of its own, which is not "
            "supported: edit layers with one MLP, if the model has any, take a dense model, or a gradient method "
            "without `layers`"
        )
    outside = [name for name in _writers(block, d) if not _within(name, attention)]
    if len(outside) > 1:
        outside = [name for name in outside if _widths(block.get_submodule(name))[0] != d]
    if len(outside) != 1 or not attention:
        linear = [name for name, module in block.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        raise LayoutError(
            f"rewrite_module_tmp: {where} ({type(block).__name__}) is not one attention and one MLP (looked for: an "
            f"attention, found: {_named(attention)}; beside it one linear module that writes {d} numbers, found: "
            f"{_named(outside)}; linear modules there: {_named(linear)}): {_REMEDY}"
        )
    return outside[0]


def _writers(block: nn.Module, d: int) -> list[str]:
    """Names of the linear modules that write d numbers."""
    return [
        name
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and _widths(module)[1] == d
    ]


def _widths(linear: nn.Module) -> tuple[int, int]:
    """How many numbers a linear module reads and writes; a quantised weight is packed, and these are not."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    return int(linear.nx), int(linear.nf)  # type: ignore[arg-type]


def _experts(block: nn.Module, d: int, attention: Collection[str]) -> str:
    """The module outside the attention that holds experts, a list of them or as one tensor; empty if there is none."""
    for name, module in block.named_modules():
        if _within(name, attention) or not name:
            continue
        if isinstance(module, nn.ModuleList) and any(_writers(part, d) for part in module):
            return name
        if any(p.ndim == 3 and min(p.shape) > 1 for p in module.parameters(recurse=False)):
            return name
    return ""


def _within(name: str, parents: Collection[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents if parent)


def _is_norm(module: nn.Module, d: int) -> bool:
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    return shapes == {(d,)} or (not shapes and "norm" in type(module).__name__.lower())


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
