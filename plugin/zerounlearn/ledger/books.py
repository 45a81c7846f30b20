"""The ledger itself: what can be written into it, what can be read, whether it is as it was written."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select

from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.request import check_text, fact_digest
from zerounlearn.errors import LedgerError, RequestError
from zerounlearn.ledger import schema
from zerounlearn.ledger.database import Database
from zerounlearn.ledger.digests import key_check
from zerounlearn.ledger.events import Event, broken, lacks, moment, now
from zerounlearn.ledger.in_clear import read, strange, written
from zerounlearn.ledger.state import DONE, FAILED, PENDING, REVERTED, Books

_LONGEST_OWNER = 200


class Page:
    """The books while one writer has them; what is appended is there for all when the page is closed, or not at all."""

    def __init__(self, connection: Connection, events: Sequence[Event]) -> None:
        """The state after `events`, in an open transaction."""
        self.books = Books.of(events)
        self._connection = connection

    def append(self, kind: str, **body: Any) -> None:
        """Write an event.

        Raises:
            LedgerError: it cannot follow those before.
        """
        event = Event.after(self.books.last, kind, body)
        self.books.fold(event)
        self._connection.execute(insert(schema.events).values(asdict(event)))

    def keep(self, request: int, fact: Fact) -> None:
        """Write a fact in clear beside the chain."""
        self._connection.execute(insert(schema.facts).values(request=request, fact=written(fact)))

    def purge(self, requests: Sequence[int]) -> None:
        """Delete facts in clear, and say so in the chain."""
        if requests:
            self.append("purged", requests=list(requests))
            one = delete(schema.facts).where(schema.facts.c.request == bindparam("id"))
            self._connection.execute(one, [{"id": number} for number in requests])

    def facts(self, requests: Iterable[int]) -> dict[int, Fact]:
        """Those in clear that are still kept, by request."""
        wanted = set(requests)
        rows = self._connection.execute(select(schema.facts).order_by(schema.facts.c.request))
        return {row.request: read(row.fact) for row in rows if row.request in wanted}


class Ledger:
    """Requests to forget, and what was done for each.

    Raises:
        LedgerError: by every method: the database cannot be used, or the books are not as they were written.
    """

    def __init__(self, database: Database, key: bytes | None = None) -> None:
        """See `open`."""
        self.database, self.key = database, key

    @classmethod
    def open(cls, where: str | Path, *, key: bytes | None = None, create: bool = False) -> Ledger:
        """A ledger in SQLite's file or a PostgreSQL database.

        Args:
            where: a file, or `postgresql://user@host/name`.
            key: what the digests of facts are made with; a ledger that was begun with one needs it to add and to run.
            create: begin one where there is none.

        Raises:
            LedgerError: there is none, it is of another version, or was begun with another key, or without.
        """
        ledger = cls(Database(where), key)
        if create:
            with ledger.database.writing(create=True) as connection:
                if ledger.database.made:
                    page = Page(connection, [])
                    page.append("opened", schema=schema.VERSION, ledger=uuid.uuid4().hex, key_check=key_check(key))
        ledger._check_key(needed=False)
        return ledger

    def _check_key(self, *, needed: bool) -> None:
        begun = self._begun_with()
        if begun is None:
            return  # not even the first event is whole: `verify` says so
        if self.key is None:
            if begun and needed:
                raise LedgerError("this ledger was begun with a key: give it (--key-file, or ZEROUNLEARN_KEY)")
        elif key_check(self.key) != begun:
            raise LedgerError(
                "the key is not the one that this ledger was begun with"
                if begun
                else "this ledger was begun without a key: leave the key away, or begin another ledger with it"
            )

    def _begun_with(self) -> str | None:
        with self.database.reading() as connection:
            first = connection.execute(select(schema.events).where(schema.events.c.number == 1)).first()
        try:
            return Books.of([Event(*first)]).key_check if first else None
        except LedgerError:
            return None

    def books(self) -> Books:
        """What the events add up to."""
        with self.database.reading() as connection:
            events = _events(connection)
        try:
            return Books.of(events)
        except LedgerError as error:
            raise LedgerError(f"the books are not as they were written: {error}") from error

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Write; nobody else does meanwhile.

        Raises:
            LedgerError: the books are not as they were written: nothing is added to such.
        """
        with self.database.writing() as connection:
            events = _events(connection)
            if problems := broken(events):
                raise LedgerError(
                    f"the ledger {self.database.name!r} is not as it was written ({problems[0]}), and nothing is added "
                    "to it: `zerounlearn ledger verify` says more; restore it from a copy"
                )
            yield Page(connection, events)

    def add(
        self,
        facts: str | Path | Iterable[Any],
        *,
        owner: str = "",
        received: str | None = None,
        due: str | None = None,
        skip_known: bool = False,
    ) -> list[int]:
        """Enter requests, all or none.

        Args:
            facts: what `load_facts` takes.
            owner: the reference of whoever asked, which stays in the books for good: a number rather than a name.
            received: when it came, a date or a time with its zone; by default now.
            due: until when it is to be done, likewise; a date ends with its day, UTC.
            skip_known: leave out what the ledger has already, instead of refusing it.

        Returns:
            The ids, when they are on the disk.

        Raises:
            RequestError: the facts are malformed.
            LedgerError: a fact is in the ledger already.
        """
        loaded = load_facts(facts)
        self._check_key(needed=True)
        if owner:
            check_text(owner, "owner", "--owner")
        if len(owner) > _LONGEST_OWNER:
            raise RequestError(f"--owner has {len(owner)} characters: {_LONGEST_OWNER} are the most: give a reference")
        common = {
            "owner": owner,
            "received": now() if received is None else moment(received, "received"),
            "due": "" if due is None else moment(due, "due", end=True),
        }
        with self.page() as page:
            known = self._known(page)
            new = [(fact, fact_digest(fact.request, self.key)) for fact in loaded]
            twice = [(i, known[digest]) for i, (_, digest) in enumerate(new) if digest in known]
            if twice and not skip_known:
                listed = ", ".join(f"{i + 1} (request {other})" for i, other in twice)
                raise LedgerError(
                    f"{len(twice)} of the {len(new)} facts are in the ledger already: {listed}; nothing was added: "
                    "drop them, or pass --skip-known"
                )
            new = [(fact, digest) for fact, digest in new if digest not in known]
            self._check_prompts(page, [fact for fact, _ in new])
            ids = []
            for fact, digest in new:
                ids.append(len(page.books.requests) + 1)
                page.append("added", request=ids[-1], digest=digest, **common)
                page.keep(ids[-1], fact)
        return ids

    def _known(self, page: Page) -> dict[str, int]:
        """Digests of what is to be forgotten or was; not of what was taken back, or failed and can be asked no more."""
        return {
            one.digest: one.id
            for one in page.books.requests.values()
            if one.state in (PENDING, *DONE) or (one.state == FAILED and one.held)
        }

    def _check_prompts(self, page: Page, facts: Sequence[Fact]) -> None:
        """No run could take one prompt with two answers."""
        pending = [one.id for one in page.books.requests.values() if one.state == PENDING]
        asked = {fact.request.key: request for request, fact in page.facts(pending).items()}
        for i, fact in enumerate(facts):
            if fact.request.key in asked:
                raise LedgerError(
                    f"fact {i + 1} asks what request {asked[fact.request.key]} asks, with another answer: run that "
                    "first, then add this one; nothing was added"
                )

    def pending(self) -> dict[int, Fact]:
        """The pending requests' facts, by id; each is what its digest in the books says.

        Raises:
            LedgerError: one is missing or was changed, or the key is.
        """
        self._check_key(needed=True)
        with self.database.reading() as connection:
            page = Page(connection, _events(connection))
            wanted = [one for one in page.books.requests.values() if one.state == PENDING]
            facts = page.facts(one.id for one in wanted)
        for one in wanted:
            if one.id not in facts or fact_digest(facts[one.id].request, self.key) != one.digest:
                what = "is not what its digest says" if one.id in facts else "is not there"
                raise LedgerError(
                    f"request {one.id}: the fact in clear {what}: somebody has changed the database; restore it from a "
                    f"copy, or `zerounlearn ledger revert {one.id}` and add it anew"
                )
        return facts

    def kept(self, *states: str) -> dict[int, Fact]:
        """The facts in clear of the requests in these states, as far as they are still kept."""
        with self.database.reading() as connection:
            page = Page(connection, _events(connection))
            return page.facts(one.id for one in page.books.requests.values() if one.state in states)

    def purge(self, ids: Iterable[int] = ()) -> list[int]:
        """Delete facts in clear: of these requests, by default of all that are forgotten, audited or reverted.

        Returns:
            The ids of those that are gone.

        Raises:
            LedgerError: one is pending, or was purged already.
        """
        ids = list(dict.fromkeys(ids))
        with self.page() as page:
            if not ids:
                done = (*DONE, REVERTED)
                ids = [one.id for one in page.books.requests.values() if one.held and one.state in done]
            page.purge(ids)
        self.database.clear()
        return ids

    def audit(self, ids: Sequence[int], result: str, *, passed: bool) -> None:
        """Attach an audit to requests that are forgotten; one that did not pass makes them failed.

        Args:
            ids: the requests that it was about.
            result: SHA-256 of its file, which is not kept.
            passed: what it came to.
        """
        self._append("audited", requests=list(ids), result=result, passed=passed)

    def reopen(self, ids: Sequence[int]) -> None:
        """Make failed or reverted requests pending again, for the next run."""
        with self.page() as page:
            known = self._known(page)
            for one in page.books.named(ids):
                if known.get(one.digest, one.id) != one.id:
                    raise LedgerError(f"request {one.id} has been added again, as request {known[one.digest]}")
            page.append("reopened", requests=list(ids))

    def _append(self, kind: str, **body: Any) -> None:
        with self.page() as page:
            page.append(kind, **body)

    def verify(self, head: str | None = None) -> list[str]:
        """What is wrong with the books, a sentence each; an empty list where nothing is.

        Any change, deletion, insertion and reordering of events shows; that the end was cut off shows by `head`, or by
        facts in clear that have lost their events.

        Args:
            head: a head that `status` once printed, 64 hexadecimal digits.

        Raises:
            LedgerError: there are no books to look at, or `head` is no hash.
        """
        if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
            raise LedgerError(f"--head {head!r}: expected the 64 hexadecimal digits that the ledger's status prints")
        with self.database.reading() as connection:
            events = _events(connection)
            rows = {row.request: row.fact for row in connection.execute(select(schema.facts))}
            found = [f"the trigger {name!r} is gone" for name in schema.missing_triggers(connection)]
        found += broken(events)
        if head is not None and (problem := lacks(events, head)):
            found.append(problem)
        try:
            found += strange(Books.of(events), rows, self.key)
        except LedgerError as error:
            found.append(str(error))
        return found


def _events(connection: Connection) -> list[Event]:
    return [Event(*row) for row in connection.execute(select(schema.events).order_by(schema.events.c.number))]
