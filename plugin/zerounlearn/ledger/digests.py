"""Digests that stand in the books for a key and a file; and the one spelling that is hashed."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from zerounlearn.errors import ConfigError

_CHECKED = b"zerounlearn ledger: key check"


def canonical(value: Any) -> str:
    """JSON in one spelling: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_check(key: bytes | None) -> str:
    """What a ledger keeps to recognise its key by; empty for none."""
    return "" if key is None else hmac.new(key, _CHECKED, hashlib.sha256).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    seen = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                seen.update(block)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return seen.hexdigest()
