"""Texts of records: which are blank, which characters no output can hold, and where one text names another.

Names are compared by canonical equivalence (NFC), never changed: a prompt stays the user's, character by character.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 80
_shorten.maxlevel, _shorten.maxdict = 2, 3
_shorten.maxlist = _shorten.maxtuple = _shorten.maxset = 3

# What XML, and so the figures of a report, cannot hold: control characters but tab and line ends, surrogates that
# stand alone, noncharacters. Of the second control block only NEL is a line end.
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")

# Scripts that put no space between words (or, as Korean, none between a name and its particle).
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\uff66-\uffdc\U00020000-\U0003ffff]"
)


def shown(value: Any) -> str:
    """A value as messages show it: about a line at most, however large it is."""
    return _shorten.repr(value)


def nfc(text: str) -> str:
    """The composed form, in which canonically equivalent texts are equal."""
    return unicodedata.normalize("NFC", text)


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: white space, control and format characters (zero width) alone."""
    return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def refused_character(text: str) -> str | None:
    """Name and place of the first character that no output can hold, if there is one."""
    match = _REFUSED.search(text)
    if match is None:
        return None
    kind = "half of a surrogate pair" if "\ud800" <= match.group() <= "\udfff" else "a control character"
    kind = "no character" if match.group() in "\ufffe\uffff" else kind
    return f"U+{ord(match.group()):04X} at position {match.start()}, {kind}"


def mentions(text: str, name: str, *, whole: bool, ignore_case: bool = False) -> list[tuple[int, int]]:
    """Spans of `text` that are canonically equivalent to `name`, from left to right.

    Args:
        text: searched; its offsets are those of the spans.
        name: what is looked for; an empty one is nowhere.
        whole: only where no letter or digit continues it; in scripts without spaces between words, everywhere.
        ignore_case: whatever its case.
    """
    if not name:
        return []
    # Canonical decomposition works character by character, but for the order of combining marks: the offsets of the
    # characters that begin a sequence are right, and no others count.
    offsets = {0: 0}
    length = 0
    for i, character in enumerate(text):
        length += len(unicodedata.normalize("NFD", character))
        offsets[length] = i + 1
    pattern = re.escape(unicodedata.normalize("NFD", name))
    spans = []
    for match in re.finditer(pattern, unicodedata.normalize("NFD", text), re.IGNORECASE if ignore_case else 0):
        start, end = offsets.get(match.start()), offsets.get(match.end())
        if start is None or end is None or not _separable(text, start) or not _separable(text, end):
            continue
        if not whole or not (_joined(text, start) or _joined(text, end)):
            spans.append((start, end))
    return spans


def _separable(text: str, at: int) -> bool:
    """Whether the characters on both sides of a place do not compose into one."""
    if at in (0, len(text)):
        return True
    before = text[max(0, at - 2) : at]  # of a Korean syllable, three letters compose
    return not unicodedata.combining(text[at]) and nfc(before + text[at]) == nfc(before) + nfc(text[at])


def _joined(text: str, at: int) -> bool:
    """Whether one word goes across a place."""
    if at in (0, len(text)):
        return False
    left, right = text[at - 1], text[at]
    if unicodedata.combining(left):  # of the letter before it
        left = next((c for c in reversed(text[:at]) if not unicodedata.combining(c)), left)
    words = all(c.isalnum() or c == "_" for c in (left, right))
    return words and not _UNSPACED.match(left) and not _UNSPACED.match(right)
