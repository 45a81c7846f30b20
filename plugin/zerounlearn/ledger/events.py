"""The chain: every event carries the hash of the one before, so none can be changed, dropped or moved unseen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from typing import Any

from zerounlearn.errors import RequestError
from zerounlearn.ledger.digests import canonical

NOTHING = "0" * 64
"""The hash before the first event."""


@dataclass(frozen=True)
class Event:
    """One line of the books.

    Attributes:
        number: 1, 2, 3, … without a gap.
        at: when it was written, UTC in ISO 8601.
        kind: what happened, see `state`.
        body: what it says, canonical JSON.
        previous: the hash of the event before.
        hash: SHA-256 over all of these, 64 hexadecimal digits.
    """

    number: int
    at: str
    kind: str
    body: str
    previous: str
    hash: str

    @classmethod
    def after(cls, last: Event | None, kind: str, body: Mapping[str, Any]) -> Event:
        """The next event, written now."""
        fields: dict[str, Any] = {
            "number": last.number + 1 if last else 1,
            "at": now(),
            "kind": kind,
            "body": canonical(body),
            "previous": last.hash if last else NOTHING,
        }
        return cls(**fields, hash=_hash(fields))

    @property
    def said(self) -> dict[str, Any]:
        """The body, read."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def intact(self) -> bool:
        """Whether the hash is that of what stands here."""
        fields = {name: getattr(self, name) for name in ("number", "at", "kind", "body", "previous")}
        try:
            return self.hash == _hash(fields)
        except TypeError:  # bytes in a column of text
            return False


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def now() -> str:
    """UTC in ISO 8601 with its zone, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def moment(text: str, field: str, *, end: bool = False) -> str:
    """A date, or a time with its zone, as UTC in ISO 8601; a date is its first second, or its last.

    Raises:
        RequestError: it is neither.
    """
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            found = datetime.combine(date.fromisoformat(text), time(23, 59, 59) if end else time(), timezone.utc)
        else:
            found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if found.tzinfo is None:
            raise ValueError
        return found.astimezone(timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        raise RequestError(
            f"--{field} {text!r}: expected a date as 2026-12-31, or a time with its zone as 2026-12-31T12:00+01:00"
        ) from None


def broken(events: Iterable[Event]) -> list[str]:
    """What is wrong with a chain in the order of its numbers, a sentence each; empty where nothing is."""
    found, number, previous = [], 0, NOTHING
    for event in events:
        number += 1
        if event.number != number:
            missing = f"{number}" if event.number == number + 1 else f"{number} to {event.number - 1}"
            found.append(f"event {missing} is missing" if event.number > number else f"event {event.number} is twice")
            number = event.number
        if not event.intact:
            found.append(f"event {event.number} ({event.kind}) was changed: its hash is of something else")
        if event.previous != previous:
            found.append(f"event {event.number} ({event.kind}) does not follow the one before it")
        previous = event.hash
    return found if number else ["there is no event at all"]


def lacks(events: Sequence[Event], head: str) -> str | None:
    """What is wrong if a head that was written down is no event's hash."""
    if any(event.hash == head for event in events):
        return None
    return f"no event has the hash {head}: the end was cut off since it was written down, or the chain was written anew"
