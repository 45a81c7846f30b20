"""Enters methods into EasyEdit's tables and takes them out again.

Nothing here runs on import. EasyEdit keeps one table of methods (`from ..util.alg_dict import *` hands the
same dict to every module) and decides by an Enum's static method which of them may edit a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from zerounlearn.easyedit.editions.compat import Framework
from zerounlearn.errors import RegistrationError

_CHECK = "is_batchable_method"


@dataclass(frozen=True)
class Method:
    """What EasyEdit has to know about a method.

    `apply` follows EasyEdit's contract: (model, tok, requests, hparams, copy, return_orig_weights,
    keep_original_weight, **kwargs) -> (model, {parameter name: original tensor}).
    """

    apply: Callable[..., Any]
    hparams: type
    batchable: bool = True


@dataclass
class _Entries:
    """What `register` has put into one framework, so that `unregister` takes out that and no more."""

    applies: dict[str, Callable[..., Any]] = field(default_factory=dict)
    hparams: dict[str, type] = field(default_factory=dict)
    batchable: set[str] = field(default_factory=set)
    original: Any = None
    wrapper: Any = None


_entries: dict[ModuleType, _Entries] = {}


def register(framework: Framework, methods: Mapping[str, Method]) -> None:
    """Make `methods` selectable by `alg_name` and their hparams classes importable from `easyeditor`.

    Registering the same methods again changes nothing; further ones may be added by further calls.

    Raises:
        RegistrationError: one of the names already means something else; nothing is registered then.
    """
    package, table, batch_editor = framework.module, _table(framework), _batch_editor(framework)
    for name, method in methods.items():
        _check(f"the method {name!r}", table.get(name), method.apply)
        attribute = method.hparams.__name__
        _check(f"{package.__name__}.{attribute}", vars(package).get(attribute), method.hparams)

    entries = _entries.setdefault(package, _Entries())
    if entries.wrapper is None:
        entries.original = vars(batch_editor)[_CHECK]
        entries.wrapper = _extended(getattr(batch_editor, _CHECK), entries.batchable)
        setattr(batch_editor, _CHECK, entries.wrapper)
    for name, method in methods.items():
        if name not in table:
            table[name] = entries.applies[name] = method.apply
        if method.batchable:
            entries.batchable.add(name)
        attribute = method.hparams.__name__
        if attribute not in vars(package):
            setattr(package, attribute, method.hparams)
            entries.hparams[attribute] = method.hparams


def unregister(framework: Framework) -> None:
    """Put `framework` back as it was before the first `register`; without one, do nothing.

    What somebody else has since put in place of an entry of ours stays.
    """
    entries = _entries.pop(framework.module, None)
    if entries is None:
        return
    table, batch_editor = _table(framework), _batch_editor(framework)
    for name, apply in entries.applies.items():
        if table.get(name) is apply:
            del table[name]
    for attribute, hparams in entries.hparams.items():
        if vars(framework.module).get(attribute) is hparams:
            delattr(framework.module, attribute)
    entries.batchable.clear()  # also ends our part in a check that somebody else has wrapped since
    if vars(batch_editor)[_CHECK] is entries.wrapper:
        setattr(batch_editor, _CHECK, entries.original)


def _check(what: str, current: object, ours: object) -> None:
    if current is not None and current is not ours:
        raise RegistrationError(f"{what} is already {current!r}, not {ours!r}: unregister that, or choose another name")


def _table(framework: Framework) -> dict[str, Callable[..., Any]]:
    # import_module, not attributes: star imports let other names shadow a submodule.
    table: dict[str, Callable[..., Any]] = _submodule(framework, "util.alg_dict").ALG_DICT
    used: dict[str, Callable[..., Any]] = _submodule(framework, "editors.editor").ALG_DICT
    if used is not table:
        raise RegistrationError(
            f"{framework.module.__name__}: editors.editor.ALG_DICT is no longer util.alg_dict.ALG_DICT, so "
            "the editor would not find a method entered there: undo whatever replaced one of the two"
        )
    return table


def _batch_editor(framework: Framework) -> type:
    batch_editor: type = _submodule(framework, "editors.batch_editor").BatchEditor
    return batch_editor


def _submodule(framework: Framework, name: str) -> ModuleType:
    return importlib.import_module(f"{framework.module.__name__}.{name}")


def _extended(original: Callable[[str], bool], names: set[str]) -> staticmethod[[str], bool]:
    def is_batchable_method(alg_name: str) -> bool:
        return alg_name in names or original(alg_name)

    return staticmethod(is_batchable_method)
