"""What metrics of text count, in every script: words, and single characters where a script puts no spaces."""

from __future__ import annotations

import unicodedata

from zerounlearn.model.tokens import unspaced


def words(text: str) -> list[str]:
    """The units that ROUGE compares, in lower case and in the Unicode form NFC.

    English is cut as `rouge-score` cuts it, into runs of a to z and 0 to 9. In other scripts a word is a run of
    letters, marks and digits; in Chinese, Japanese, Thai and their like each character counts. Signs
    (punctuation, an emoji) count for nothing.
    """
    text = unicodedata.normalize("NFC", text).lower()
    units: list[str] = []
    joins = False
    for char in text:
        letter = unicodedata.category(char)[0] in "LNM"
        alone = letter and unspaced(char)
        if letter and not alone and joins:
            units[-1] += char
        elif letter:
            units.append(char)
        joins = letter and not alone
    return units


def characters(text: str) -> list[str]:
    """Every character but white space, for a text that has no words (an emoji, "→")."""
    return [char for char in unicodedata.normalize("NFC", text) if not char.isspace()]


def apart(word: str) -> list[str]:
    """A word of a tokenizer for scripts with spaces: single characters where there are none, the rest as it is."""
    parts: list[str] = []
    joins = False
    for char in word:
        alone = unspaced(char)
        if joins and not alone:
            parts[-1] += char
        else:
            parts.append(char)
        joins = not alone
    return parts
