"""Our methods' hyperparameters under EasyEdit's rules: named `…HyperParams`, and open to assignment.

EasyEdit and its users assign to hyperparameters (`hparams.batch_size = 4`); our configurations are frozen. The classes
here are theirs, and check every assignment.
"""

from __future__ import annotations

from typing import Any

from zerounlearn.method.base import Method, methods
from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
from zerounlearn.model.device import resolved


class _Assignable:
    """Every assignment is a replacement of the whole, so that types, ranges and relations are checked again."""

    device: Any

    def __setattr__(self, name: str, value: Any) -> None:
        checked = self.replace(**{name: value})  # type: ignore[attr-defined]
        vars(self).update(vars(checked))

    def validate(self) -> None:
        """As for all; 'auto' becomes a device that EasyEdit knows."""
        object.__setattr__(self, "device", resolved(self.device))
        super().validate()  # type: ignore[misc]


class ZeroUnlearnHyperParams(_Assignable, ZeroUnlearn):
    """`ZeroUnlearn` as EasyEdit wants it."""


class ZeroUnlearnGDHyperParams(_Assignable, ZeroUnlearnGD):
    """`ZeroUnlearnGD` as EasyEdit wants it."""


def easyedit_classes() -> dict[str, type[Method]]:
    """A class for each of our methods, by the name that EasyEdit's `alg_name` has for it."""
    ours: dict[str, type[Method]] = {"ZeroUnlearn": ZeroUnlearnHyperParams, "ZeroUnlearn-GD": ZeroUnlearnGDHyperParams}
    for entry in methods.entries():
        kind, name = entry.target, entry.name  # a text is of EasyEdit's own, or of a plugin that is not loaded yet
        if name not in ours and isinstance(kind, type) and issubclass(kind, Method):
            ours[name] = type(f"{name.replace('-', '')}HyperParams", (_Assignable, kind), {"__doc__": kind.__doc__})
    return ours
