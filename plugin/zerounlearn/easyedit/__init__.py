"""The EasyEdit plugin: importing this package registers ZeroUnlearn, and the gradient methods, with the framework.

    import zerounlearn.easyedit
    from easyeditor import BaseEditor, ZeroUnlearnHyperParams

Reading order: `editions`, `register`, `hparams`, `adapter`, `editor`; `method_config`, `methods` and their helpers for
the framework's own methods.
"""

from __future__ import annotations

from zerounlearn.easyedit.adapter import apply_to_model
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.hparams import ZeroUnlearnGDHyperParams, ZeroUnlearnHyperParams, easyedit_classes
from zerounlearn.easyedit.register import Method
from zerounlearn.easyedit.register import register as _register
from zerounlearn.easyedit.register import unregister as _unregister

METHODS = {name: Method(apply_to_model, hparams) for name, hparams in easyedit_classes().items()}


def register() -> None:
    """Enter our methods into EasyEdit's tables; a second call changes nothing."""
    _register(framework(), METHODS)


def unregister() -> None:
    """Put EasyEdit back as it was before `register`."""
    _unregister(framework())


register()

from zerounlearn.easyedit.editor import ZeroUnlearnEditor  # noqa: E402  (its base class exists only now)

__all__ = [
    "METHODS",
    "ZeroUnlearnEditor",
    "ZeroUnlearnGDHyperParams",
    "ZeroUnlearnHyperParams",
    "register",
    "unregister",
]
