"""Named things of one kind: methods, metrics, data sets, model families, attacks.

A `Registry` maps a name to an object. Entries are made where the object is written, by a decorator or by `add`; an
entry may be lazy, "module:attribute", so that listing a name imports nothing. Packages of somebody else's add theirs
through the entry-point group `zerounlearn.plugins`, each entry a function without arguments that is called once.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from zerounlearn.errors import ConfigError, RegistrationError, did_you_mean

log = logging.getLogger(__name__)

T = TypeVar("T")

PLUGINS = "zerounlearn.plugins"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One name of a registry.

    Attributes:
        name: how users write it.
        target: the object, or "module:attribute" to import it from.
        summary: one line that says what it is.
        source: where it was published: an arXiv number, a paper, or a package.
    """

    name: str
    target: T | str
    summary: str = ""
    source: str = ""


class Registry(Mapping[str, T]):
    """Objects of one kind by name; looking a name up imports what is lazy."""

    def __init__(self, kind: str, *modules: str) -> None:
        """An empty registry.

        Args:
            kind: what an entry is, for messages: "method".
            modules: our own modules whose import registers entries, "package.*" for all of a package; imported
                before the first look.
        """
        self.kind = kind
        self._modules = modules
        self._entries: dict[str, Entry[T]] = {}
        self._filled = False

    def add(self, name: str, target: T | str, *, summary: str = "", source: str = "") -> None:
        """Enter an object, or "module:attribute". The same again changes nothing.

        Raises:
            RegistrationError: the name means something else already.
        """
        entry = Entry(name, target, summary, source)
        current = self._entries.setdefault(name, entry)
        if current.target is not target and current.target != target:
            raise RegistrationError(
                f"the {self.kind} {name!r} is already {current.target!r}, not {target!r}: choose another name"
            )

    def register(self, name: str, *, summary: str = "", source: str = "") -> Callable[[T], T]:
        """Decorator form of `add`; without a summary, the first line of the object's docstring."""

        def enter(target: T) -> T:
            first = (getattr(target, "__doc__", None) or "").strip().split("\n")[0]
            self.add(name, target, summary=summary or first, source=source)
            return target

        return enter

    def remove(self, name: str) -> None:
        """Take an entry out again, if it is there."""
        self._entries.pop(name, None)

    def entry(self, name: str) -> Entry[T]:
        """The entry, without importing what is lazy.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        self._fill()
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} {name!r}: {did_you_mean(str(name), list(self._entries))}")
        return self._entries[name]

    def entries(self) -> list[Entry[T]]:
        """All entries in the order of registration."""
        self._fill()
        return list(self._entries.values())

    def __getitem__(self, name: str) -> T:
        """The object by its name.

        Raises:
            ConfigError: no such name. `get` and `in` do not raise.
        """
        entry = self.entry(name)
        if not isinstance(entry.target, str):
            return entry.target
        module, _, attribute = entry.target.partition(":")
        found: T = getattr(importlib.import_module(module), attribute)
        return found

    def get(self, name: str, default: T | None = None) -> T | None:  # type: ignore[override]
        """The object by its name, or `default`."""
        entry = None if name not in self else self.entry(name)
        return default if entry is None else self[entry.name]

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(self._entries)

    def __len__(self) -> int:
        self._fill()
        return len(self._entries)

    def _fill(self) -> None:
        if self._filled:
            return
        self._filled = True  # first: the modules below register here while they are imported
        for name in self._modules:
            package = importlib.import_module(name.removesuffix(".*"))
            if name.endswith(".*"):
                for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                    importlib.import_module(found.name)
        load_plugins()


_loaded: set[str] = set()


def load_plugins() -> None:
    """Call every function of the entry-point group once; one that fails is reported and left out."""
    for point in entry_points(group=PLUGINS):
        if point.value in _loaded:
            continue
        _loaded.add(point.value)
        try:
            point.load()()
        except Exception as error:  # somebody else's code: ours must go on without it
            log.warning("plugin %s (%s) cannot be used: %s: %s", point.name, point.value, type(error).__name__, error)
