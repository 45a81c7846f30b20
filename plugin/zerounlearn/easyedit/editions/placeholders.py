"""Stand-ins for the packages that EasyEdit imports at the top of its modules and text-only work never calls.

EasyEdit's modules are executed with an `__import__` of their own (see `guarded_builtins`), which answers with
a `Placeholder` when, and only when, one of a fixed list of packages is not installed. Nobody else can see it:
nothing enters `sys.modules` and nothing outside EasyEdit is searched differently, so
`find_spec("torchvision")` and the availability checks of transformers and datasets keep telling the truth.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from zerounlearn.errors import FrameworkError

OPTIONAL: Mapping[str, str] = MappingProxyType(
    {
        "PIL": "pip install pillow",
        "av": "pip install av",
        "cv2": "pip install opencv-python",
        "einops": "pip install einops",
        "fairscale": "pip install fairscale",
        "higher": "pip install higher",
        "hydra": "pip install hydra-core",
        "iopath": "pip install iopath",
        "matplotlib": "pip install matplotlib",
        "nltk": "pip install nltk",
        "openai": "pip install openai",
        "peft": "pip install peft",
        "qwen_vl_utils": "pip install qwen-vl-utils",
        "rouge": "pip install rouge",
        "scipy": "pip install scipy",
        "sentence_transformers": "pip install sentence-transformers",
        "sklearn": "pip install scikit-learn",
        "timm": "pip install timm",
        "torchvision": "pip install torchvision",
        "zhipuai": "pip install zhipuai",
    }
)
"""Package as imported -> the command that installs it."""


class Placeholder:
    """Anything taken from an absent package: it can be named, subscripted and subclassed, but not used.

    EasyEdit names these objects in annotations, in `isinstance` and as base classes while it is imported;
    calling one or setting one of its attributes means that the package itself is needed.
    """

    def __init__(self, path: str, remedy: str) -> None:
        # Through __dict__, because __setattr__ below stands for use of the package.
        self.__dict__.update(_placeholder_path=path, _placeholder_remedy=remedy)

    def __getattr__(self, name: str) -> Placeholder:
        # Protocol probes (copy, pickle, inspect, `__path__`, `__version__`) must get their ordinary "no".
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        values = self.__dict__
        return Placeholder(f"{values['_placeholder_path']}.{name}", values["_placeholder_remedy"])

    def __getitem__(self, key: object) -> Placeholder:
        return self

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        def refuse(instance: object, *args: object, **kwargs: object) -> NoReturn:
            self._refuse()

        return (type(self.__dict__["_placeholder_path"], (), {"__new__": refuse}),)

    def __instancecheck__(self, instance: object) -> bool:
        return False

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        self._refuse()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise FrameworkError(
            "EasyEdit used {_placeholder_path}, which is not available here: {_placeholder_remedy}".format(
                **self.__dict__
            )
        )


def guarded_builtins(
    extra: Mapping[str, object] = MappingProxyType({}), optional: Mapping[str, str] = OPTIONAL
) -> dict[str, Any]:
    """The `__builtins__` of a module that may import absent packages of `optional`; `extra` is added to it.

    Only "there is no such package" is answered with a placeholder: an installed package is always the one
    used, and if it is broken or lacks a submodule its own error passes.
    """

    def guarded_import(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        try:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        except ModuleNotFoundError as error:
            package = name.partition(".")[0]
            if level or error.name != package or package not in optional:
                raise
            # As `import` itself does: the last part for `from a.b import c`, the first for `import a.b`.
            return Placeholder(name if fromlist else package, optional[package])

    return {**vars(builtins), "__import__": guarded_import, **extra}
