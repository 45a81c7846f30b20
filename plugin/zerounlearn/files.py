"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from zerounlearn.errors import OutputError


@contextmanager
def whole_file(path: Path, mode: str, *, remedy: str) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` that takes its name when the body is through, and is gone if it fails.

    Raises:
        OutputError: the file cannot be written; `remedy` says what to do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; {remedy}") from error
    finally:
        with suppress(OSError):  # its folder may be what cannot be had
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path, "w", remedy="name another folder or free space") as stream:
        stream.write(text)
