"""The EasyEdit plugin: importing this package registers ZeroUnlearn, and its baselines, with the framework.

    import zerounlearn.easyedit
    from easyeditor import BaseEditor, ZeroUnlearnHyperParams

Reading order: `legacy` and `placeholders`, `compat`, `register`, `adapter`, `editor`.
"""

from __future__ import annotations

from zerounlearn.easyedit.adapter import apply_baseline_to_model, apply_zerounlearn_to_model
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.easyedit.register import Method
from zerounlearn.easyedit.register import register as _register
from zerounlearn.easyedit.register import unregister as _unregister
from zerounlearn.methods.gradient import config as _baselines
from zerounlearn.methods.zerounlearn import config as _hparams
from zerounlearn.methods.zerounlearn.config import ZeroUnlearnGDHyperParams, ZeroUnlearnHyperParams

METHODS = {name: Method(apply_zerounlearn_to_model, hparams) for name, hparams in _hparams.METHODS.items()} | {
    name: Method(apply_baseline_to_model, hparams) for name, hparams in _baselines.METHODS.items()
}


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
