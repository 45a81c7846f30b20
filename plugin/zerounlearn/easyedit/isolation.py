"""Runs one of EasyEdit's methods so that nothing of it stays behind in the process, and nothing is found there.

The methods keep module globals between calls: sampled contexts, covariances by the model's name, AlphaEdit's
projector and its sum of keys, WISE's edit history. Each run here starts without any and puts back what was there.
They draw from the global generators, print what they do, and assume a peft of their time.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from zerounlearn.easyedit.editions.compat import PACKAGE
from zerounlearn.model.device import seeded

log = logging.getLogger(__name__)

_FRESH: dict[str, Any] = {
    "CONTEXT_TEMPLATES_CACHE": None,
    "COV_CACHE": {},
    "KZ_CACHE": {},
    "inv_mom2_cache": {},
    "P": None,
    "P_loaded": False,
    "cache_c": None,
    "cache_c_new": False,
    "edit_history": [],
    "merge_group_edit_history": [],
    "WISEload": False,
}
"""The globals of `easyeditor.models.*` that outlive a call, and what they are before the first."""

_lock = threading.RLock()


@contextmanager
def isolated(device: torch.device, seed: int) -> Iterator[None]:
    """Run the body with EasyEdit's globals as after its import, seeded generators, and its messages in the log.

    Generators (but for that of MPS, which is neither seeded nor restored), globals, streams and the tables changed
    here are as before afterwards. One body runs at a time.
    """
    with _lock, ExitStack() as stack:
        stack.enter_context(_seeded(device, seed))
        stack.enter_context(_fresh_globals())
        stack.enter_context(_adalora_without_schedule())
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(_ToLog()))
        yield


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (EasyEdit draws from the legacy state)
    with seeded(device, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def _fresh_globals() -> Iterator[None]:
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(f"{PACKAGE}.models.") and m is not None]
    before = [(m, {name: vars(m)[name] for name in _FRESH if name in vars(m)}) for m in modules]
    for module, values in before:
        vars(module).update({name: copy.deepcopy(_FRESH[name]) for name in values})
    try:
        yield
    finally:
        for module, values in before:
            for name in _FRESH:  # AlphaEdit makes two of them only when it runs
                vars(module).pop(name, None)
            vars(module).update(values)


@contextmanager
def _adalora_without_schedule() -> Iterator[None]:
    """Let EasyEdit's LoRA make its AdaLoRA configuration, which peft refuses without `total_step` since 0.14.

    The number is the length of a schedule of ranks that EasyEdit never steps: it changes nothing.
    """
    module: ModuleType | None = sys.modules.get(f"{PACKAGE}.models.lora.lora_main")
    config = getattr(module, "AdaLoraConfig", None)
    if module is None or config is None:
        yield
        return
    vars(module)["AdaLoraConfig"] = functools.partial(config, total_step=1)
    try:
        yield
    finally:
        vars(module)["AdaLoraConfig"] = config


class _ToLog(io.TextIOBase):
    """A text stream whose lines are log messages, for those who ask for them."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            log.debug("%s", line.rstrip())
        return len(text)
