"""Say what was done without saying what was forgotten: keyed digests in the place of prompts, subjects and answers.

Where a text is known to be secret (a field of a report), it becomes its digest: HMAC-SHA256 under a key that its owner
holds, so that the owner can tell which fact it was, and nobody else can guess. Where a secret may stand in any text (a
log line, an error), its words are blotted out one by one; a word too many does no harm there.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

from zerounlearn.data.records import read_records
from zerounlearn.errors import ConfigError, ZeroUnlearnError
from zerounlearn.model.tokens import unspaced

KEY_VARIABLE = "ZEROUNLEARN_KEY"
BLOT = "▮"
_KEY_BYTES = 16
_MAKE = "`openssl rand -hex 32 > FILE` makes one"
_DIGITS = 16
# What the records of facts call their fields.
_FIELDS = frozenset(
    (
        "prompt",
        "subject",
        "answer",
        "neutral",
        "paraphrases",
        "neighbours",
        "neighbors",
        "others",
        "question",
        "relation",
    )
)
_LONG = 4
_CUT = re.compile(r"\w+(?=\.\.\.)|(?<=\.\.\.)\w+")
"""What is left of a word that a message cut."""


def read_key(file: Path | None, *, needed: bool = False) -> bytes | None:
    """The key in a file, else in the environment's ZEROUNLEARN_KEY, without white space around it.

    Raises:
        ConfigError: it cannot be read, or is too short to keep a secret; or there is none, and it is needed.
    """
    what = f"the key file {str(file)!r}" if file is not None else KEY_VARIABLE
    try:
        key = (os.environ.get(KEY_VARIABLE, "").encode() if file is None else file.read_bytes()).strip()
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror or error}") from None
    if not key and file is None and not needed:
        return None
    if not key and file is None:
        raise ConfigError(f"a key is needed: give --key-file FILE, or set {KEY_VARIABLE}; {_MAKE}")
    if len(key) < _KEY_BYTES:
        raise ConfigError(f"{what} holds {len(key)} bytes, and {_KEY_BYTES} are the fewest that keep a secret; {_MAKE}")
    return key


class Redaction:
    """What must not be said, and the key under which it has names.

    Args:
        key: at least 16 bytes, the owner's.
        texts: the secret: prompts, subjects, answers, or a whole file of them.
    """

    def __init__(self, key: bytes, texts: Iterable[str]) -> None:
        self._key = key
        words = {word for text in texts for word in re.findall(r"\w+", text) if _tells(word)}
        patterns = [
            re.escape(word) if len(word) >= _LONG or _unspaced(word) else rf"(?:\b|(?<=\\[nrt])){re.escape(word)}\b"
            for word in sorted(words, key=len, reverse=True)
        ]
        self._words = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    @classmethod
    def of_files(cls, key: bytes, *files: Path | None) -> Redaction:
        """Of all texts in files of facts; also of one that cannot be read as such, so that no error repeats it."""
        texts: list[str] = []
        for file in filter(None, files):
            try:
                raw = file.read_bytes().decode("utf-8", "ignore")
            except OSError:
                continue
            texts += [raw, re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), raw)]
            try:
                texts += [text for record in read_records(file) for text in _texts(record.fields)]
            except ZeroUnlearnError:
                continue
        return cls(key, texts)

    def digest(self, text: str) -> str:
        """16 hexadecimal digits of HMAC-SHA256, which stand for a text."""
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_DIGITS]

    def blotted(self, text: str) -> str:
        """A text without the secret's words."""
        text = _CUT.sub(BLOT, text)
        return self._words.sub(BLOT, text) if self._words is not None else text

    def values(self, value: Any) -> Any:
        """The same for every text in a value, as in a report's hyperparameters; keys of mappings stay."""
        if isinstance(value, str):
            return self.blotted(value)
        if isinstance(value, Mapping):
            return {name: self.values(part) for name, part in value.items()}
        return [self.values(part) for part in value] if isinstance(value, (list, tuple)) else value

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Blot the secret out of what the body prints, logs, warns of and raises.

        For a program's main thread: log records and warnings are caught for the whole process meanwhile.
        """
        make = logging.getLogRecordFactory()
        show = warnings.showwarning

        def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
            made = make(*args, **kwargs)
            made.msg, made.args = self.blotted(made.getMessage()), ()
            if made.exc_info:
                made.exc_text = self.blotted(logging.Formatter().formatException(made.exc_info))
            return made

        def warn(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
            show(self.blotted(str(message)), category, filename, lineno, *rest)

        logging.setLogRecordFactory(record)
        warnings.showwarning = warn  # type: ignore[assignment]
        try:
            with redirect_stdout(_Blotting(sys.stdout, self)), redirect_stderr(_Blotting(sys.stderr, self)):
                yield
        except Exception as error:
            error.args = tuple(self.blotted(part) if isinstance(part, str) else part for part in error.args)
            error.__cause__, error.__suppress_context__ = None, True
            raise
        finally:
            logging.setLogRecordFactory(make)
            warnings.showwarning = show


class _Blotting:
    """A text stream that lets no secret through."""

    def __init__(self, stream: IO[str], redaction: Redaction) -> None:
        self._stream, self._redaction = stream, redaction

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected a text, not {type(text).__name__}")
        self._stream.write(self._redaction.blotted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would go past
            raise AttributeError(name)
        return getattr(self._stream, name)


def _tells(word: str) -> bool:
    """Whether a word may tell something: long, or a name, a number, or of a script without spaces."""
    if word.lower() in _FIELDS:
        return False
    return (
        len(word) >= _LONG
        or (len(word) > 1 and (word[0].isupper() or any(c.isdigit() for c in word)))
        or _unspaced(word)
    )


def _unspaced(word: str) -> bool:
    return any(map(unspaced, word))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
