"""Finds EasyEdit, in either edition, and imports it without its side effects.

The one entry point is `framework()`. What an import through it changes for the rest of the process: the
`easyeditor` modules are there, and the logger "easyeditor" lets INFO through. What it does not change: the
random states, the root logger, the environment, `sys.path`, other packages' view of what is installed, and
the current folder. EasyEdit's own log messages still propagate to whatever handlers the user installs.

What `BaseEditor.edit` itself writes is left alone: the checkout puts its metrics into ./logs/results.json.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal

import numpy as np
import torch
import transformers

from zerounlearn.easyedit.editions.legacy import (
    DEVICE_FUNCTION,
    UNUSABLE,
    UNUSABLE_REMEDY,
    device_name,
    modernise,
    rewrite_devices,
)
from zerounlearn.easyedit.editions.placeholders import Placeholder, guarded_builtins
from zerounlearn.errors import FrameworkError

log = logging.getLogger(__name__)

PACKAGE = "easyeditor"
HOME = "EASYEDIT_HOME"

Edition = Literal["wheel", "checkout"]

_ADVICE = (
    "Install the 2023 edition with\n"
    "    pip install --no-deps easyeditor && pip install 'zerounlearn[easyedit]'\n"
    "or take the current one with\n"
    f"    git clone https://github.com/zjunlp/EasyEdit && export {HOME}=$PWD/EasyEdit"
)

TESTED_TRANSFORMERS = "5.5.4"
"""With this release both editions were tried; it is also the one that EasyEdit's checkout pins."""

_FORCED_ENVIRONMENT = "CUDA_LAUNCH_BLOCKING"
"""Set to 1 by the checkout's import; it would make every later CUDA kernel of the process synchronous."""

_lock = threading.RLock()


@dataclass(frozen=True)
class Framework:
    """EasyEdit as imported: its package, which edition it is, and the folder of the package."""

    module: ModuleType
    edition: Edition
    location: Path


def framework() -> Framework:
    """Import EasyEdit once: what is already imported, else $EASYEDIT_HOME, else whatever is importable.

    A framework imported before the first call is used as it is: nothing is contained or adapted then.

    Raises:
        FrameworkError: EasyEdit is not there, $EASYEDIT_HOME does not hold it, or its import failed.
    """
    with _lock:
        module = sys.modules.get(PACKAGE)
        if module is not None:
            return _describe(module)
        return _describe(_import(_locate()))


def _describe(module: ModuleType) -> Framework:
    file = getattr(module, "__file__", None)
    if not file:
        raise FrameworkError(f"{module!r} was imported as {PACKAGE} but is no EasyEdit package. {_ADVICE}")
    location = Path(file).resolve().parent
    edition = _edition(location)
    if edition == "wheel" and not isinstance(getattr(module, "__loader__", None), _ModuleLoader):
        log.warning(
            "%s was imported before zerounlearn.easyedit, so its device strings stay as they are: "
            "the 2023 edition then runs on CUDA only; import zerounlearn.easyedit first",
            PACKAGE,
        )
    return Framework(module, edition, location)


def _edition(location: Path) -> Edition:
    # By content: both editions lack a usable version string.
    return "checkout" if (location / "util" / "device.py").is_file() else "wheel"


def _locate() -> ModuleSpec:
    home = os.environ.get(HOME)
    if home:
        spec = PathFinder.find_spec(PACKAGE, [str(Path(home).expanduser())])
        if spec is None or not spec.origin:
            raise FrameworkError(
                f"{HOME}={home!r} is not a checkout of EasyEdit: expected a folder containing {PACKAGE}/. {_ADVICE}"
            )
        return spec
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:  # no origin: some folder that merely has the name
        raise FrameworkError(f"EasyEdit is not importable. {_ADVICE}")
    return spec


def _import(spec: ModuleSpec) -> ModuleType:
    location = Path(str(spec.origin)).resolve().parent
    legacy = _edition(location) == "wheel"
    finder = _Finder(spec, legacy=legacy)
    sys.meta_path.insert(0, finder)
    try:
        with _contained():
            module = importlib.import_module(PACKAGE)
        _quieten()
        if legacy:
            modernise(sys.modules[f"{PACKAGE}.editors.editor"], sys.modules[f"{PACKAGE}.util.nethook"])
    except BaseException as error:
        # Otherwise the modules that did load would be found by, and break, the next attempt.
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        if isinstance(error, Exception):
            raise FrameworkError(
                f"EasyEdit at {location} cannot be imported: {type(error).__name__}: {error}. {_remedy(error)}"
            ) from error
        raise
    return module


def _remedy(error: Exception) -> str:
    """What helps against a failed import: EasyEdit reads names of transformers that later releases drop."""
    name = error.name or "" if isinstance(error, ImportError) else ""
    if name.partition(".")[0] != "transformers":
        return "If a package is missing, pip install 'zerounlearn[easyedit]'"
    return (
        f"It runs with transformers {TESTED_TRANSFORMERS}, and {transformers.__version__} is installed: "
        f"pip install 'transformers=={TESTED_TRANSFORMERS}'"
    )


class _Finder(MetaPathFinder):
    """Loads `easyeditor` and its submodules, and nothing else, with `_ModuleLoader`.

    It stays in `sys.meta_path`, since functions of EasyEdit import further submodules when they are
    called; it also spares `sys.path` the folder of the checkout.
    """

    def __init__(self, root: ModuleSpec, *, legacy: bool) -> None:
        self._root = root
        self._legacy = legacy

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        if self._legacy and fullname == UNUSABLE:
            return ModuleSpec(fullname, _UnusableLoader(), is_package=True)
        spec = self._root if fullname == PACKAGE else PathFinder.find_spec(fullname, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _ModuleLoader(spec.loader.name, spec.loader.path, legacy=self._legacy)
        return spec


class _ModuleLoader(SourceFileLoader):
    """Runs a module with `guarded_builtins`; for the wheel, also with its device strings rewritten."""

    def __init__(self, fullname: str, path: str, *, legacy: bool) -> None:
        super().__init__(fullname, path)
        self._legacy = legacy

    def get_code(self, fullname: str) -> CodeType | None:
        if not self._legacy:
            return super().get_code(fullname)
        # Not through the bytecode cache: a plain `import easyeditor` would later run what we put there.
        tree = rewrite_devices(self.get_data(self.path), self.path)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        extra = {DEVICE_FUNCTION: device_name} if self._legacy else {}
        module.__dict__["__builtins__"] = guarded_builtins(extra)
        super().exec_module(module)


class _UnusableLoader(Loader):
    """An empty package whose every attribute is a placeholder."""

    def exec_module(self, module: ModuleType) -> None:
        root = Placeholder(module.__name__, UNUSABLE_REMEDY)
        module.__dict__.update(__all__=[], __getattr__=root.__getattr__)


@contextmanager
def _contained() -> Iterator[None]:
    """Undo what EasyEdit's modules do to the whole process while they are imported.

    `torch.manual_seed` also queues a seed for accelerators that are not initialised yet, which no saved state
    can undo; for the time of the import it therefore seeds the CPU generator alone, which is restored.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    environment = os.environ.get(_FORCED_ENVIRONMENT)
    manual_seed = torch.manual_seed
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002 (the legacy state is the one EasyEdit seeds)
    torch.manual_seed = torch.default_generator.manual_seed
    try:
        yield
    finally:
        torch.manual_seed = manual_seed
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        root.handlers[:] = handlers
        root.setLevel(level)
        if environment is None:
            os.environ.pop(_FORCED_ENVIRONMENT, None)
        else:
            os.environ[_FORCED_ENVIRONMENT] = environment


def _quieten() -> None:
    """Make constructing an editor write no ./logs/run.log and add no handlers, without losing its messages.

    Every construction would add another file and stream handler to the same logger, so that the n-th editor
    reports everything n times.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{PACKAGE}.editors.") and hasattr(module, "make_logs"):
            module.__dict__["make_logs"] = _no_logs
    # EasyEdit relies on having set the root logger to INFO, which has been undone.
    logger = logging.getLogger(PACKAGE)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _no_logs() -> None:
    """Stands in for `make_logs`."""
