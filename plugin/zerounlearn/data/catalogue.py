"""All data sets by name.

Each is a function that gives entries, registered in its own file under `data/sets`; a package of somebody else's adds
its own (see `zerounlearn.registry`). A function whose first parameter is `source` reads from there; its other
parameters, keyword-only or not, are the data set's options, checked against their annotations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from zerounlearn.data.entry import Entry
from zerounlearn.data.records import Source
from zerounlearn.data.text import shown
from zerounlearn.errors import ConfigError, did_you_mean
from zerounlearn.registry import Registry

datasets: Registry[Callable[..., Sequence[Entry]]] = Registry(
    "data set",
    *(
        f"zerounlearn.data.sets.{name}"
        for name in ("embedded", "facts", "counterfact", "zsre", "mquake", "rwku", "tofu", "known_1000")
    ),
)
"""Loaders of data sets by name."""


def load(name: str, source: Source | None = None, **options: Any) -> list[Entry]:
    """The entries of a data set by name; `embedded`, the packaged facts, needs no source.

    Args:
        name: one of `datasets`.
        source: a local file or folder, or an address of the hub, see `records.Source`.
        options: the data set's own, such as `part`.

    Raises:
        ConfigError: the name, the source or an option does not go with it.
        RequestError: a file or a record is malformed.
        AssetError: the hub does not give it.
    """
    loader = datasets[name]
    parameters = dict(inspect.signature(loader).parameters)
    if "source" in parameters:
        if source is None:
            raise ConfigError(f"data set {name!r} needs a source: a local file or folder, 'hub', or 'hub:owner/name'")
        del parameters["source"]
        return [*loader(source, **_checked(name, loader, parameters, options))]
    if source is not None:
        raise ConfigError(f"data set {name!r} comes with its package: drop source={str(source)!r}")
    return [*loader(**_checked(name, loader, parameters, options))]


def _checked(
    name: str, loader: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options as the loader's annotations want them: names first, then values."""
    hints = get_type_hints(loader)
    checked = {}
    for option, value in options.items():
        if option not in parameters:
            hint = did_you_mean(str(option), list(parameters), f"it has {', '.join(parameters) or 'none'}")
            raise ConfigError(f"data set {name!r} has no option {option!r}: {hint}")
        try:
            checked[option] = TypeAdapter(hints.get(option, Any)).validate_python(value)
        except ValidationError as error:
            reason = "; ".join(dict.fromkeys(str(e["msg"]) for e in error.errors()))
            raise ConfigError(f"data set {name!r}: {option}={shown(value)}: {reason}") from None
    return checked
