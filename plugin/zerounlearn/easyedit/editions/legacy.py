"""What EasyEdit's 2023 edition (the wheel on PyPI) needs to run on any device under today's transformers.

The changes are made in memory, while the wheel's own modules are compiled or right after; its files are never
touched. The git checkout of 2026 needs none of this and gets none of it.
"""

from __future__ import annotations

import ast
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

DEVICE_FUNCTION = "zerounlearn_device_name"
"""Name, among the builtins of the wheel's modules, under which the rewritten code finds `device_name`."""

UNUSABLE = "easyeditor.trainer.blip2_models"
"""Image models whose import fails: transformers 5 has no `apply_chunking_to_forward` in `modeling_utils`."""

UNUSABLE_REMEDY = "the wheel's image models need transformers 4.30; use a checkout of EasyEdit (EASYEDIT_HOME)"


def device_name(device: object) -> str:
    """What the wheel meant by f"cuda:{device}": 0 -> "cuda:0"; "cpu", "cuda:1" and torch devices stay.

    None and "" are the accelerator if there is one, as in the checkout's `normalize_device`.
    """
    text = "" if device is None else str(device).strip()
    if not text:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{text}" if text.isdigit() else text


class _DeviceStrings(ast.NodeTransformer):
    """f"cuda:{x}", and nothing else, becomes a call of `device_name`."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        match node.values:
            case [ast.Constant(value="cuda:"), ast.FormattedValue(conversion=-1, format_spec=None) as field]:
                call = ast.Call(ast.Name(DEVICE_FUNCTION, ast.Load()), [field.value], [])
                return ast.copy_location(call, node)
            case _:
                return node


def rewrite_devices(source: str | bytes, filename: str = "<string>") -> ast.Module:
    """The parsed source with every device f-string rewritten; line numbers stay those of the file."""
    tree = ast.parse(source, filename)
    return ast.fix_missing_locations(_DeviceStrings().visit(tree))


class _Loaded(type):
    """Makes `isinstance(tok, CheckpointTokenizer)` mean "was loaded by it", as EasyEdit's check intends."""

    loaded: ClassVar[WeakSet[Any]] = WeakSet()

    def __instancecheck__(cls, instance: object) -> bool:
        return instance in cls.loaded


class CheckpointTokenizer(metaclass=_Loaded):
    """Takes the place of `LlamaTokenizer` in the wheel's editor and loads what the checkpoint says it is.

    Under transformers 5 `LlamaTokenizer` builds a SentencePiece-like pipeline around any vocabulary: given
    a byte-level one (Llama-3, SmolLM2) it drops every space, silently and with the token count unchanged.
    The checkout uses AutoTokenizer, which reads the checkpoint's own tokenizer.json.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(*args, **kwargs)
        _Loaded.loaded.add(tokenizer)
        return tokenizer


def _single_precision(auto: Any) -> type:
    """`auto`, loading in float32 unless told otherwise.

    Transformers 5 takes the checkpoint's dtype; the wheel was written for float32, the checkout asks for it.
    """

    class SinglePrecision:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            if not {"dtype", "torch_dtype"} & kwargs.keys():
                kwargs["dtype"] = torch.float32
            return auto.from_pretrained(*args, **kwargs)

    return SinglePrecision


def _tuple_trace(trace: Any) -> type:
    """The wheel's `nethook.Trace`, to which a decoder layer's output is a tuple, as it was in transformers 4.

    MEMIT reads and edits `output[0]` of a layer; of the bare tensor that layers now return, that would be
    the first sequence of the batch. The model itself still receives the tensor.
    """

    class TupleTrace(trace):
        def __init__(self, module: Any, layer: Any = None, *args: Any, **kwargs: Any) -> None:
            target = module if layer is None else module.get_submodule(layer)
            is_decoder_layer = isinstance(target, GradientCheckpointingLayer)
            wrapped: list[bool] = []

            def wrap(_module: Any, _inputs: Any, output: Any) -> Any:
                wrapped.append(isinstance(output, torch.Tensor))
                return (output,) if wrapped[-1] else output

            def unwrap(_module: Any, _inputs: Any, output: Any) -> Any:
                return output[0] if wrapped.pop() else output

            outer = [target.register_forward_hook(wrap)] if is_decoder_layer else []
            super().__init__(module, layer, *args, **kwargs)
            outer += [target.register_forward_hook(unwrap)] if is_decoder_layer else []
            self._outer_hooks = outer

        def close(self) -> None:
            super().close()
            for hook in self._outer_hooks:
                hook.remove()

    return TupleTrace


def modernise(editor: ModuleType, nethook: ModuleType) -> None:
    """Replace, in the wheel's two modules only, the names that transformers 5 gives another meaning."""
    editor.__dict__.update(
        LlamaTokenizer=CheckpointTokenizer,
        LlamaForCausalLM=_single_precision(LlamaForCausalLM),
        AutoModelForCausalLM=_single_precision(AutoModelForCausalLM),
    )
    nethook.__dict__.update(Trace=_tuple_trace(nethook.Trace))
