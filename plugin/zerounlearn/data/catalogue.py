"""All data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerounlearn.data.entry import Entry
from zerounlearn.data.records import Source
from zerounlearn.data.sets.counterfact import load_counterfact, load_embedded
from zerounlearn.data.sets.known_1000 import load_known
from zerounlearn.data.sets.mquake import load_mquake
from zerounlearn.data.sets.rwku import load_rwku
from zerounlearn.data.sets.tofu import load_tofu
from zerounlearn.data.sets.zsre import load_zsre
from zerounlearn.errors import ConfigError

EMBEDDED = "embedded"
LOADERS: Mapping[str, Callable[..., Sequence[Entry]]] = {
    "counterfact": load_counterfact,
    "mcf": load_counterfact,
    "zsre": load_zsre,
    "mquake": load_mquake,
    "rwku": load_rwku,
    "tofu": load_tofu,
    "known_1000": load_known,
}


def load(name: str, source: Source | None = None, **options: Any) -> list[Entry]:
    """The entries of a data set by name; `embedded`, the packaged facts, needs no source.

    Args:
        name: `embedded` or one of `LOADERS`.
        source: a local file or folder, or an address of the hub, see `records.Source`.
        options: the loader's own, such as `part`.

    Raises:
        ConfigError: the name, the source or an option does not go with it.
        RequestError: a file or a record is malformed.
        AssetError: the hub does not give it.
    """
    if name == EMBEDDED:
        if source is not None or options:
            raise ConfigError(f"data set 'embedded' is packaged: drop {'source' if source else sorted(options)[0]!r}")
        return [*load_embedded()]
    if name not in LOADERS:
        raise ConfigError(f"no data set {name!r}: expected one of {', '.join([EMBEDDED, *LOADERS])}")
    if source is None:
        raise ConfigError(f"data set {name!r} needs a source: a local file or folder, 'hub', or 'hub:owner/name'")
    loader = LOADERS[name]
    allowed = [option for option in inspect.signature(loader).parameters if option != "source"]
    if unknown := sorted(set(options) - set(allowed)):
        raise ConfigError(f"data set {name!r} has no option {unknown[0]!r}: it has {', '.join(allowed) or 'none'}")
    return [*loader(source, **options)]
