"""What the events add up to: each request's state, and each run's. An event that cannot follow is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zerounlearn.errors import LedgerError
from zerounlearn.ledger.events import Event

PENDING, FORGOTTEN, AUDITED, FAILED, REVERTED = "pending", "forgotten", "audited", "failed", "reverted"
STATES = (PENDING, FORGOTTEN, AUDITED, FAILED, REVERTED)
DONE = (FORGOTTEN, AUDITED)


@dataclass
class LedgerRequest:
    """One request as the books have it.

    Attributes:
        id: 1, 2, 3, … in the order of arrival.
        digest: of the fact, see `fact_digest`.
        owner: the reference of whoever asked.
        received: when it came, UTC in ISO 8601.
        due: until when it is to be done, likewise; empty for no date.
        state: one of `STATES`.
        reason: why it failed.
        run: number of the last run that took it.
        before: whether the model said the fact before that run, and its probability.
        after: likewise afterwards.
        audit: SHA-256 of the result file of its last audit.
        changed: when its state last changed.
        held: whether the fact in clear is still kept.
    """

    id: int
    digest: str
    owner: str
    received: str
    due: str
    changed: str
    state: str = PENDING
    reason: str = ""
    run: int | None = None
    before: tuple[bool, float | None] | None = None
    after: tuple[bool, float | None] | None = None
    audit: str = ""
    held: bool = True

    def becomes(self, state: str, event: Event, *allowed: str) -> None:
        """Change the state.

        Raises:
            LedgerError: it cannot change so.
        """
        if self.state not in allowed:
            raise LedgerError(
                f"request {self.id} is {self.state}: only one that is {' or '.join(allowed)} can become {state}"
            )
        self.state, self.changed, self.reason = state, event.at, ""


@dataclass
class LedgerRun:
    """One run: what it took, what it left.

    Attributes:
        number: 1, 2, 3, …
        started: when, UTC in ISO 8601.
        requests: ids of those that it took.
        output: where its checkpoint was to lie, as the user wrote it.
        method: name of the method.
        outcome: unfinished, finished, abandoned, or reverted.
        found: the body of the event that ended it: fingerprints, metrics, the edit file's SHA-256.
    """

    number: int
    started: str
    requests: list[int]
    output: str
    method: str
    outcome: str = "unfinished"
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Books:
    """The ledger's state after some events; a request or run by its number."""

    schema: int = 0
    key_check: str = ""
    requests: dict[int, LedgerRequest] = field(default_factory=dict)
    runs: dict[int, LedgerRun] = field(default_factory=dict)
    last: Event | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> Books:
        """After all of them.

        Raises:
            LedgerError: one cannot follow those before.
        """
        books = cls()
        for event in events:
            books.fold(event)
        return books

    @property
    def head(self) -> str:
        """The hash of the last event."""
        return self.last.hash if self.last else ""

    @property
    def unfinished(self) -> list[LedgerRun]:
        """Runs that were cut off since the last one that ended."""
        ended = max((run.number for run in self.runs.values() if run.outcome != "unfinished"), default=0)
        return [run for run in self.runs.values() if run.number > ended]

    def named(self, ids: Iterable[int]) -> list[LedgerRequest]:
        """The requests of these ids.

        Raises:
            LedgerError: there is none of one.
        """
        ids = list(dict.fromkeys(ids))
        unknown = [one for one in ids if one not in self.requests]
        if unknown:
            raise LedgerError(f"there is no request {unknown[0]}: the ledger has {len(self.requests)}; see its status")
        return [self.requests[one] for one in ids]

    def fold(self, event: Event) -> None:
        """Take one more event in.

        Raises:
            LedgerError: it cannot follow those before, or says nothing that is known here.
        """
        if event.kind not in _FOLDS or (event.kind == "opened") != (self.last is None):
            raise LedgerError(f"event {event.number}: {event.kind!r} has no place here")
        try:
            _FOLDS[event.kind](self, event, event.said)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"event {event.number} ({event.kind}) is malformed: {type(error).__name__} {error}"
            ) from error
        self.last = event


def _opened(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    books.schema, books.key_check = said["schema"], said["key_check"]


def _added(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    number = said["request"]
    if number != len(books.requests) + 1:
        raise LedgerError(f"event {event.number}: request {number} is not the next one")
    parts = {name: said[name] for name in ("digest", "owner", "received", "due")}
    books.requests[number] = LedgerRequest(number, **parts, changed=event.at)


def _started(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    number = said["run"]
    if number != len(books.runs) + 1:
        raise LedgerError(f"event {event.number}: run {number} is not the next one")
    for request in books.named(said["requests"]):
        if request.state != PENDING:
            raise LedgerError(f"request {request.id} is {request.state}, not pending: no run can take it")
    books.runs[number] = LedgerRun(number, event.at, said["requests"], said["output"], said["method"])


def _ended(books: Books, said: Mapping[str, Any], outcome: str) -> LedgerRun:
    run = books.runs[said["run"]]
    if run.outcome != "unfinished":
        raise LedgerError(f"run {run.number} is {run.outcome} already")
    run.outcome, run.found = outcome, said
    return run


def _finished(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    run = _ended(books, said, "finished")
    results = {result["request"]: result for result in said["results"]}
    if sorted(results) != sorted(run.requests):
        raise LedgerError(f"event {event.number}: the results are not those of run {run.number}'s requests")
    for request in books.named(run.requests):
        result = results[request.id]
        request.becomes(FAILED if result["reason"] else FORGOTTEN, event, PENDING)
        request.reason, request.run = result["reason"], run.number
        request.before, request.after = tuple(result["before"]), tuple(result["after"])
    for request in books.named(said["said_again"]):
        request.becomes(FAILED, event, *DONE)
        request.reason = f"said again after run {run.number}"


def _abandoned(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    _ended(books, said, "abandoned")


def _audited(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    for request in books.named(said["requests"]):
        request.becomes(AUDITED if said["passed"] else FAILED, event, *DONE)
        request.reason, request.audit = "" if said["passed"] else "did not pass its audit", said["result"]


def _reverted(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    if said["run"] is None:
        for request in books.named(said["requests"]):
            request.becomes(REVERTED, event, PENDING)
        return
    run = books.runs[said["run"]]
    for request in books.named(said["requests"]):
        request.becomes(REVERTED, event, *DONE, FAILED)
    run.outcome = "reverted"


def _reopened(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    for request in books.named(said["requests"]):
        if not request.held:
            raise LedgerError(f"request {request.id}: its fact was purged, and nobody can forget it again: add it anew")
        request.becomes(PENDING, event, FAILED, REVERTED)
        request.run = request.before = request.after = None


def _purged(books: Books, event: Event, said: Mapping[str, Any]) -> None:
    for request in books.named(said["requests"]):
        if not request.held:
            raise LedgerError(f"request {request.id}: its fact was purged already")
        if request.state == PENDING:
            raise LedgerError(f"request {request.id} is pending: run or revert it first, or nobody could forget it")
        request.held = False


_FOLDS: Mapping[str, Callable[[Books, Event, Mapping[str, Any]], None]] = {
    "opened": _opened,
    "added": _added,
    "started": _started,
    "finished": _finished,
    "abandoned": _abandoned,
    "audited": _audited,
    "reverted": _reverted,
    "reopened": _reopened,
    "purged": _purged,
}
