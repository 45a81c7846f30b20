"""Hooks that are always undone, and weights that are always put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class _Stopped(Exception):
    """Raised by a hook to leave a forward pass early; never seen outside this module."""


@contextmanager
def inputs_of(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the first positional input of each module, keyed as given."""
    seen: dict[int, Tensor] = {}

    def save(key: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[key] = args[0].detach()

        return hook

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(save(key)))
        yield seen


@contextmanager
def outputs_of(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect a copy of the output of each module, keyed as given; what calls it may change its own in place."""
    seen: dict[int, Tensor] = {}

    def save(key: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            seen[key] = output.detach().clone()

        return hook

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.enter_context(module.register_forward_hook(save(key)))
        yield seen


def forward_until(model: nn.Module, last: nn.Module, **inputs: Any) -> None:
    """Run a forward pass that ends as soon as `last` has run: later layers cost nothing."""

    def stop(*_: Any) -> None:
        raise _Stopped

    with suppress(_Stopped), last.register_forward_hook(stop):
        model(**inputs)


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """Where a module keeps what runs before and after its forward pass, each by a key of its own."""
    kept = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")
    return [vars(module)[name] for name in kept]


def attention_of(module: nn.Module) -> list[tuple[PreTrainedConfig, str | None]]:
    """Each configuration that a module's attention reads, once, and the implementation that it names."""
    found = (getattr(part, "config", None) for part in module.modules())
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
    return [(config, config._attn_implementation) for config in configs.values()]


def first_tensor(output: Any) -> Tensor:
    """The hidden state of a block's output, which is a tensor or a tuple that begins with one."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C waiting until the body is through, in the main thread; for putting things back as a whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(*waiting[0])


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Put the parameters back bit for bit if the body raises, KeyboardInterrupt included."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield saved
    except BaseException:
        with uninterrupted(), torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
        raise


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; both as before outside."""
    modes = [(module, module.training) for module in model.modules()]
    flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    try:
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield
    finally:
        with uninterrupted():
            # by name: loading an offloaded weight makes a new parameter each time
            for name, flag in flags.items():
                model.get_parameter(name).requires_grad_(flag)
            for module, mode in modes:
                module.training = mode
