"""Digests that stand in the books for what must not: a fact, a key, a file; and the one spelling that is hashed."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerounlearn.data.request import Request
from zerounlearn.data.text import nfc
from zerounlearn.errors import ConfigError

KEY_VARIABLE = "ZEROUNLEARN_LEDGER_KEY"
_SHORTEST_KEY = 16
"""Bytes; a shorter key could be found by trying."""
_CHECKED = b"zerounlearn ledger: key check"


def canonical(value: Any) -> str:
    """JSON in one spelling: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fact_digest(request: Request, key: bytes | None) -> str:
    """64 hexadecimal digits over prompt, subject and answer in Unicode's form NFC: HMAC-SHA256, or SHA-256 without key.

    Without a key, whoever guesses the fact can check the guess.
    """
    parts = {"prompt": request.prompt, "subject": request.subject, "answer": request.answer}
    text = canonical({name: nfc(value) for name, value in parts.items()}).encode()
    return hashlib.sha256(text).hexdigest() if key is None else hmac.new(key, text, hashlib.sha256).hexdigest()


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


def read_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The key in a file, else in the environment variable `KEY_VARIABLE`, else none; white space around it is dropped.

    Raises:
        ConfigError: the file cannot be read, or the key is shorter than 16 bytes.
    """
    what = f"the key file {str(file)!r}" if file is not None else KEY_VARIABLE
    try:
        given = file.read_bytes() if file is not None else environment.get(KEY_VARIABLE, "").encode()
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}") from error
    key = given.strip()
    if not key and file is None:
        return None
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(f"{what} holds {len(key)} bytes: make one of {_SHORTEST_KEY} or more, `openssl rand -hex 32`")
    return key
