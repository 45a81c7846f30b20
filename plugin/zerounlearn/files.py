"""Files and folders that are there whole or not at all, and never in the place of somebody else's."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from zerounlearn.errors import OutputError
from zerounlearn.version import __version__

MARKER = ".zerounlearn.json"
"""In every folder that `whole_folder` wrote: the only folders that it replaces."""

_numbers = itertools.count()
"""Tell apart what one process stages at the same time."""


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


def check_folder(path: Path, *, overwrite: bool = False, inputs: Mapping[str, Path] | None = None) -> None:
    """Refuse an output folder before any work, and write nothing.

    Args:
        path: where a result is to stand.
        overwrite: whether an earlier result of this package may be replaced.
        inputs: what the run reads, by what it is: "the model", "--forget".

    Raises:
        OutputError: it is or holds the current folder or an input, is a link, a file, a mount point or a folder that
            this package did not write, holds an earlier result (without `overwrite`), or cannot be written.
    """
    what, place = f"the output {str(path)!r}", path.absolute()
    _check_name(place, what)
    if path.is_symlink():
        raise OutputError(f"{what} is a link: name the folder itself")
    place = place.resolve()
    here = Path.cwd().resolve()
    if place == here or place in here.parents:
        raise OutputError(f"{what} is the current folder or holds it: name a new folder")
    for label, given in (inputs or {}).items():
        source = given.resolve()
        if source.exists() and place.is_dir() and (source == place or place in source.parents):
            raise OutputError(f"{what} holds {label}, {str(given)!r}: name another folder")
        if source.is_dir() and source in place.parents and label == "the model":
            raise OutputError(f"{what} lies in {label}'s own folder, {str(given)!r}: name a folder beside it")
    _check_place(place, what)
    if not place.exists():
        return
    if not place.is_dir():
        raise OutputError(f"{what} is a file: name a folder")
    if os.path.ismount(place):
        raise OutputError(f"{what} is a mount point: name a folder in it")
    if any(place.iterdir()):
        if not (place / MARKER).is_file():
            raise OutputError(f"{what} exists, is not empty and was not written by zerounlearn: name another folder")
        if not overwrite:
            raise OutputError(f"{what} exists and is not empty: name another folder or pass --overwrite")


def check_file(path: Path, what: str, *, replaceable: bool, inputs: Mapping[str, Path] | None = None) -> None:
    """Refuse an output file before any work, and write nothing.

    Args:
        path: where a result is to stand.
        what: what messages call it: "--edit-only".
        replaceable: whether a file that is there may be replaced.
        inputs: what the run reads, by what it is.

    Raises:
        OutputError: it is a folder, an input, lies in the model's folder, is there and may not be replaced, or cannot
            be written.
    """
    named, place = f"{what} {str(path)!r}", path.absolute().resolve()
    if not path.name or place.is_dir():
        raise OutputError(f"{named} is a folder: name a file")
    _check_name(place, named)
    for label, given in (inputs or {}).items():
        source = given.resolve()
        if source == place:
            raise OutputError(f"{named} is {label}: name another file")
        if source.is_dir() and source in place.parents and label == "the model":
            raise OutputError(f"{named} lies in {label}'s own folder, {str(given)!r}: name a file beside it")
    _check_place(place, named)
    if place.exists() and not replaceable:
        raise OutputError(f"{named} exists: name another file, or pass --overwrite where it is an edit")


def _check_name(place: Path, what: str) -> None:
    """Whether every part of the folder's path, and what staging makes of its name, is short enough."""
    longest = 255
    with suppress(OSError, ValueError, AttributeError):
        longest = os.pathconf("/", "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in (*place.parts, _beside(place, 999_999, "new").name)):
        raise OutputError(f"{what} has too long a name: {longest} bytes are the most, with what staging adds")


def _check_place(place: Path, what: str) -> None:
    """Whether the nearest folder above that is there can be written to."""
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise OutputError(f"{what} cannot be written: {str(above)!r} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{what} cannot be written: no permission in {str(above)!r}")


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False, inputs: Mapping[str, Path] | None = None) -> Iterator[Path]:
    """A new folder beside `path` that takes its name when the body is through, and is gone if it fails.

    An earlier result keeps its name until the new one is whole; killed at any moment, one of the two is there under
    the name, or put back under it by the next call. What killed runs have left is cleared.

    Raises:
        OutputError: see `check_folder`; or the place was taken meanwhile, and the message says where the result lies.
    """
    check_folder(path, overwrite=overwrite, inputs=inputs)
    place = path.absolute().resolve()
    number = next(_numbers)
    staged = _beside(place, number, "new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        recover(place)
        staged.mkdir()
    except OSError as error:
        raise OutputError(f"the output {str(path)!r} cannot be written: {error}") from error
    try:
        yield staged
        marker = {"written_by": "zerounlearn", "version": __version__}
        (staged / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    except BaseException as error:
        _remove(staged)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(f"the output {str(path)!r} cannot be written: {error}") from error
        raise
    _take_name(staged, place, _beside(place, number, "old"), overwrite=overwrite)


def _take_name(staged: Path, place: Path, old: Path, *, overwrite: bool) -> None:
    """Rename the finished folder; where its name was taken meanwhile, to a free one beside it."""
    try:
        if overwrite and (place / MARKER).is_file() and not place.is_symlink():
            os.rename(place, old)
        os.rename(staged, place)  # an empty folder gives way, any other does not
    except OSError as error:
        if old.exists() and not place.exists():
            os.rename(old, place)
        kept = next(free for n in range(1, 1000) if not (free := place.with_name(f"{place.name}-{n}")).exists())
        os.rename(staged, kept)
        reason = "has been filled meanwhile" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else f"is lost: {error}"
        raise OutputError(f"the output {str(place)!r} {reason}; the result is in {str(kept)!r}") from error
    _remove(old)


def recover(place: Path) -> None:
    """Clear what killed runs of this machine left beside `place`; put a result back that was between two names."""
    if not place.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(place.name)}\.{re.escape(_host())}\.(\d+)\.\d+\.(new|old)")
    found = [(m, folder) for folder in place.parent.iterdir() if (m := pattern.fullmatch(folder.name))]
    left = [(match[2], folder) for match, folder in found if not _alive(int(match[1]))]
    for kind in ("new", "old"):  # a finished new one is the later
        for _, folder in filter(lambda item: item[0] == kind, left):
            if not place.exists() and (folder / MARKER).is_file():
                os.rename(folder, place)
            else:
                _remove(folder)


def _beside(place: Path, number: int, kind: str) -> Path:
    return place.parent / f".{place.name}.{_host()}.{os.getpid()}.{number}.{kind}"


def _host() -> str:
    return re.sub(r"\W", "-", socket.gethostname())[:32]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(folder: Path) -> None:
    """Delete a folder of our own naming; what cannot be deleted stays."""
    shutil.rmtree(folder, ignore_errors=True)
