"""The books: what goes in, what shows when somebody changes them, what writers do to each other, what a kill loses."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zerounlearn as zu
from tests.ledger.conftest import Place, facts
from zerounlearn.data.request import fact_digest
from zerounlearn.errors import LedgerError, RequestError
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.events import Event, moment
from zerounlearn.ledger.state import PENDING

KEY = b"0123456789abcdef"
forking = multiprocessing.get_context("fork")


def filled(place: Place, **options: Any) -> Ledger:
    """Four requests, of which the first is forgotten and its fact purged."""
    ledger = Ledger.open(place.url, create=True, **options)
    ledger.add(facts("France", "Gaul", "Ankh", "Zürich"), owner="R-1", due="2026-12-27")
    finish(ledger, [1])
    ledger.purge()
    return ledger


def finish(ledger: Ledger, ids: Sequence[int], still_said: Sequence[int] = (), **found: Any) -> None:
    """A run's events, without a model."""
    with ledger.page() as page:
        run = len(page.books.runs) + 1
        page.append("started", run=run, requests=list(ids), output="out", method="ZeroUnlearn")
        results = [
            {
                "request": i,
                "reason": "still said" if i in still_said else "",
                "before": [True, 0.9],
                "after": [False, 0.1],
            }
            for i in ids
        ]
        found = {"model_before": "a", "model_after": "b", "edit": "c", "said_again": []} | found
        page.append("finished", run=run, results=results, **found)


def test_requests_are_entered_and_found_again(place: Place) -> None:
    given = [
        {
            "prompt": "Zu {} spricht man",
            "subject": "Zürich",
            "answer": "Deutsch",
            "joint": " ",
            "neutral": "nichts",
            "paraphrases": ["In Zürich spricht man"],
            "neighbours": [["In Rom spricht man", "Italienisch"]],
            "others": [["Zürich liegt in der", "Schweiz"]],
        },
        *facts("France"),
    ]
    ledger = Ledger.open(place.url, create=True)
    assert ledger.add(given, owner="R-9", received="2026-11-01", due="2026-12-01T12:00+01:00") == [1, 2]
    again = Ledger.open(place.url)
    first = again.books().requests[1]
    assert (first.state, first.owner, first.held) == (PENDING, "R-9", True)
    assert (first.received, first.due) == ("2026-11-01T00:00:00+00:00", "2026-12-01T11:00:00+00:00")
    assert list(again.pending().values()) == zu.load_facts(given)
    assert again.verify() == []


def test_what_is_in_the_ledger_is_not_entered_twice(place: Place) -> None:
    ledger = filled(place)
    with pytest.raises(LedgerError, match=r"2 of the 3 facts .* 1 \(request 1\), 3 \(request 2\); nothing was added"):
        ledger.add(facts("France", "Rome", "Gaul"))
    # Canonically equivalent texts are the same fact.
    with pytest.raises(LedgerError, match="1 of the 1 facts"):
        ledger.add(facts("Zu\u0308rich"))
    assert ledger.add(facts("France", "Rome", "Gaul"), skip_known=True) == [5]
    with pytest.raises(LedgerError, match="fact 1 asks what request 2 asks, with another answer"):
        ledger.add(facts("Gaul", answer="Lyon"))
    assert len(ledger.books().requests) == 5
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, RequestError, "the forget set is empty"),
        (facts("A", "A"), {}, RequestError, "duplicates"),
        (facts("A"), {"due": "soon"}, RequestError, "--due 'soon': expected a date as 2026-12-31"),
        (facts("A"), {"due": "2026-02-30"}, RequestError, "--due '2026-02-30'"),
        (facts("A"), {"received": "2026-12-31T12:00"}, RequestError, "or a time with its zone"),
        (facts("A"), {"owner": "x" * 201}, RequestError, "--owner has 201 characters"),
        (facts("A"), {"owner": "R\x001"}, RequestError, "U\\+0000"),
    ],
)
def test_bad_input_is_refused_and_nothing_entered(
    given: Any, options: Any, error: type[Exception], message: str, file: Place
) -> None:
    ledger = Ledger.open(file.url, create=True)
    head = ledger.books().head
    with pytest.raises(error, match=message):
        ledger.add(given, **options)
    assert ledger.books().head == head


def test_a_file_has_a_url_too(file: Place) -> None:
    filled(file)
    assert len(Ledger.open(f"sqlite:///{file.url}").books().requests) == 4


def test_a_date_ends_with_its_day() -> None:
    assert moment("2026-12-31", "due", end=True) == "2026-12-31T23:59:59+00:00"
    assert moment("2026-12-31T00:30:00Z", "due") == "2026-12-31T00:30:00+00:00"


def _rehashed(event: Event, last: Event | None, **changes: Any) -> Event:
    made = Event.after(last, changes.get("kind", event.kind), json.loads(changes.get("body", event.body)))
    return made


def _inserted(events: list[Event]) -> list[Event]:
    new = _rehashed(events[1], events[1])
    return [*events[:2], new, *(replace(one, number=one.number + 1) for one in events[2:])]


def _swapped(events: list[Event]) -> list[Event]:
    two, three = replace(events[2], number=2), replace(events[1], number=3)
    return [events[0], two, three, *events[3:]]


TAMPERED = {
    "body": lambda e: [*e[:2], replace(e[2], body=e[2].body.replace("R-1", "R-2")), *e[3:]],
    "time": lambda e: [*e[:2], replace(e[2], at="2020-01-01T00:00:00+00:00"), *e[3:]],
    "kind": lambda e: [*e[:2], replace(e[2], kind="audited"), *e[3:]],
    "hash": lambda e: [*e[:2], replace(e[2], hash="1" * 64), *e[3:]],
    "body with its hash": lambda e: [
        *e[:2], _rehashed(e[2], e[1], body=e[2].body.replace("R-1", "R-2")), *e[3:]
    ],
    "last body": lambda e: [*e[:-1], replace(e[-1], body='{"requests":[2]}')],
    "no JSON": lambda e: [*e[:-1], replace(e[-1], body="{")],
    "first dropped": lambda e: e[1:],
    "one dropped": lambda e: [*e[:2], *e[3:]],
    "one dropped, numbers closed up": lambda e: [*e[:2], *(replace(one, number=one.number - 1) for one in e[3:])],
    "inserted": _inserted,
    "reordered": _swapped,
    "all dropped": lambda e: [],
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERED)
def test_every_change_of_the_events_shows(kind: str, place: Place) -> None:
    ledger = filled(place)
    assert ledger.verify() == []
    place.rewrite(list)
    assert ledger.verify() == []  # the harness itself leaves no trace
    place.rewrite(TAMPERED[kind])
    assert Ledger.open(place.url, create=True).verify() != []
    with pytest.raises(LedgerError, match="not as it was written"):
        ledger.add(facts("Rome"))


def test_a_cut_end_shows_by_the_head_or_by_the_facts(place: Place) -> None:
    ledger = filled(place)
    head = ledger.books().head
    assert ledger.verify(head) == []
    finish(ledger, [2, 3, 4])
    assert ledger.verify(head) == []  # the books went on
    last = ledger.books().head
    place.rewrite(lambda events: events[:-1])
    assert any("no event has the hash" in problem for problem in ledger.verify(last))
    assert ledger.verify(head) == []
    place.rewrite(lambda events: events[:3])
    assert any("which no event adds" in problem for problem in ledger.verify())
    with pytest.raises(LedgerError, match="--head 'abc': expected the 64"):
        ledger.verify("abc")


def test_a_chain_written_anew_shows_by_the_head_alone(place: Place) -> None:
    """What the chain cannot show, as the documentation says: hence the head that is written down."""
    ledger = filled(place)
    head = ledger.books().head

    def anew(events: list[Event]) -> list[Event]:
        made: list[Event] = []
        for event in events:
            made.append(_rehashed(event, made[-1] if made else None, body=event.body.replace("R-1", "R-2")))
        return made

    place.rewrite(anew)
    assert ledger.verify() == []
    assert ledger.verify(head) != []


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM ledger_facts WHERE request = 2", "the fact in clear of request 2 is gone"),
        ("UPDATE ledger_facts SET fact = replace(fact, 'Gaul', 'Rome')", "the fact in clear of request 2 was changed"),
        ("UPDATE ledger_facts SET fact = 'x' WHERE request = 3", "the fact in clear of request 3 was changed"),
        ("UPDATE ledger_facts SET request = 1 WHERE request = 2", "a fact is kept of request 1, which was purged"),
    ],
)
@pytest.mark.parametrize("key", [None, KEY])
def test_a_change_of_the_facts_in_clear_shows(statement: str, message: str, key: bytes | None, file: Place) -> None:
    ledger = filled(file, key=key)
    file.execute(statement)
    assert any(message in problem for problem in ledger.verify())
    with pytest.raises(LedgerError, match="somebody has changed the database"):
        ledger.pending()


REPLACED = "SELECT number, at, 'x', body, previous, hash FROM ledger_events WHERE number = 2"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_events SET body = '{}' WHERE number = 2",
        "DELETE FROM ledger_events WHERE number = 2",
        {"sqlite": f"INSERT OR REPLACE INTO ledger_events {REPLACED}", "postgresql": "TRUNCATE ledger_events"},
    ],
)
def test_the_database_refuses_changes(statement: Any, place: Place) -> None:
    ledger = filled(place)
    if isinstance(statement, dict):
        statement = statement["sqlite" if place.sqlite else "postgresql"]
    with pytest.raises(Exception, match="append-only"):
        place.execute(statement)
    assert ledger.verify() == []


def test_a_trigger_that_is_gone_shows(place: Place) -> None:
    ledger = filled(place)
    if place.sqlite:
        place.execute("DROP TRIGGER ledger_update")
    else:
        place.execute("ALTER TABLE ledger_events DISABLE TRIGGER ledger_change")
    assert ["is gone" in problem for problem in ledger.verify()] == [True]


def test_a_ledger_knows_its_key(place: Place) -> None:
    ledger = filled(place, key=KEY)
    request = zu.load_facts(facts("Gaul"))[0].request
    assert ledger.books().requests[2].digest == fact_digest(request, KEY) != fact_digest(request, None)
    everything = str(place.execute("SELECT * FROM ledger_events")) + str(place.execute("SELECT * FROM ledger_facts"))
    assert KEY.decode() not in everything
    with pytest.raises(LedgerError, match="not the one that this ledger was begun with"):
        Ledger.open(place.url, key=KEY + b"x")
    without = Ledger.open(place.url)
    assert without.verify() == []
    for work in (lambda: without.add(facts("Rome")), without.pending):
        with pytest.raises(LedgerError, match="was begun with a key: give it"):
            work()


def test_a_key_for_a_ledger_without_one_is_refused(file: Place) -> None:
    filled(file)
    with pytest.raises(LedgerError, match="begun without a key"):
        Ledger.open(file.url, key=KEY)


def test_what_is_purged_is_nowhere_in_the_database(place: Place) -> None:
    """Nor in SQLite's file, page by page; of PostgreSQL, its table is looked at."""
    ledger = Ledger.open(place.url, create=True)
    secret = "Xanadu-of-the-secret"
    ledger.add([fact | {"paraphrases": [f"Of {secret}, the capital is"] * 200} for fact in facts(secret)])
    ledger.add(facts("France"))

    def held() -> bool:
        if place.sqlite:
            return secret.encode() in Path(place.url).read_bytes()
        return secret in str([place.execute(f"SELECT * FROM {name}") for name in ("ledger_events", "ledger_facts")])

    assert held()
    finish(ledger, [1])
    assert ledger.purge() == [1]
    assert not held()
    if place.sqlite:
        assert [one.name for one in Path(place.url).parent.iterdir()] == ["ledger.sqlite"]
    assert ledger.purge() == []
    assert ledger.verify() == []
    assert "France" in str(ledger.pending())
    for wrong, message in (([1], "was purged already"), ([2], "request 2 is pending"), ([7], "there is no request 7")):
        with pytest.raises(LedgerError, match=message):
            ledger.purge(wrong)


def test_states_change_as_far_as_they_are_sound(file: Place) -> None:
    ledger = Ledger.open(file.url, create=True)
    ledger.add(facts("A", "B", "C"))
    with pytest.raises(
        LedgerError, match="request 1 is pending: only one that is forgotten or audited can become audited"
    ):
        ledger.audit([1], "d" * 64, passed=True)
    finish(ledger, [1, 2], still_said=[2])
    books = ledger.books()
    assert [books.requests[i].state for i in (1, 2, 3)] == ["forgotten", "failed", "pending"]
    assert books.requests[2].reason == "still said"
    ledger.audit([1], "d" * 64, passed=True)
    assert (ledger.books().requests[1].state, ledger.books().requests[1].audit) == ("audited", "d" * 64)
    ledger.audit([1], "e" * 64, passed=False)
    assert (ledger.books().requests[1].state, ledger.books().requests[1].reason) == ("failed", "did not pass its audit")
    ledger.reopen([1, 2])
    assert list(ledger.pending()) == [1, 2, 3]
    finish(ledger, [1, 2])
    finish(ledger, [3], said_again=[1])
    assert ledger.books().requests[1].reason == "said again after run 3"
    ledger.purge([1])
    with pytest.raises(LedgerError, match="its fact was purged, and nobody can forget it again"):
        ledger.reopen([1])
    assert ledger.add(facts("A")) == [4]
    assert ledger.verify() == []


def test_a_run_takes_what_is_pending_alone(file: Place) -> None:
    ledger = filled(file)
    head = ledger.books().head
    with pytest.raises(LedgerError, match="request 1 is forgotten, not pending"):
        finish(ledger, [1])
    with pytest.raises(LedgerError, match="there is no request 9"):
        finish(ledger, [9])
    assert ledger.books().head == head


@pytest.mark.parametrize("version", ["0", "2", None])
def test_a_ledger_of_another_version_is_refused(version: str | None, place: Place) -> None:
    filled(place)
    place.execute("DELETE FROM ledger_about" if version is None else f"UPDATE ledger_about SET version = {version}")
    with pytest.raises(LedgerError, match=f"is of version {version or 'none'}, and this zerounlearn reads version 1"):
        Ledger.open(place.url)


def test_what_is_no_ledger_is_refused(tmp_path: Path, file: Place) -> None:
    with pytest.raises(LedgerError, match="there is no ledger at"):
        Ledger.open(file.url)
    assert not Path(file.url).exists()
    file.execute("CREATE TABLE theirs (x)")
    with pytest.raises(LedgerError, match="there is no ledger at"):
        Ledger.open(file.url)
    with pytest.raises(LedgerError, match="holds something else"):
        Ledger.open(file.url, create=True)
    text = tmp_path / "text"
    text.write_text("This is no database, and long enough for one to be looked for in it. " * 20)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger.open(text, create=True)
    for where, message in (
        (str(tmp_path), "name a file, or a database"),
        ("mysql://me:secret@host/db", r"'mysql://me:\*\*\*@host/db': expected a file"),
        ("sqlite://", "expected a file"),
        ("postgresql://me@[x/db", "the URL cannot be read|cannot be used"),
        (str(text / "below"), "cannot be written"),
    ):
        with pytest.raises(LedgerError, match=message):
            Ledger.open(where, create=True)


def test_a_server_that_does_not_answer_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerError, match="cannot be used") as caught:
        Ledger.open(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_refused(file: Place) -> None:
    filled(file)
    whole = Path(file.url).read_bytes()
    Path(file.url).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerError, match="malformed|not a database|there is no ledger"):
        Ledger.open(file.url).verify()


def test_the_file_is_its_owners_alone(file: Place) -> None:
    filled(file)
    assert Path(file.url).stat().st_mode & 0o077 == 0


def _write(url: str, name: str, count: int, acknowledged: Path) -> None:
    """Enter requests one by one; each is put down in a file when `add` has returned."""
    ledger = Ledger.open(url, create=True)
    with acknowledged.open("ab", buffering=0) as stream:
        for i in range(count):
            (number,) = ledger.add(facts(f"{name} {i}"), owner=f"{name}/{i}")
            stream.write(f"{number} {name}/{i}\n".encode())


@pytest.mark.integration
def test_writers_at_the_same_time_lose_nothing(place: Place, tmp_path: Path) -> None:
    """They begin the ledger together, too."""
    files = [tmp_path / f"acknowledged-{i}" for i in range(4)]
    writers = [forking.Process(target=_write, args=(place.url, f"w{i}", 12, files[i])) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    ledger = Ledger.open(place.url)
    said = [line.split() for file in files for line in file.read_text().splitlines()]
    assert len({number for number, _ in said}) == 48
    requests = ledger.books().requests
    assert {(str(one.id), one.owner) for one in requests.values()} == {tuple(line) for line in said}
    assert ledger.verify() == []


@pytest.mark.integration
def test_a_writer_that_is_killed_loses_nothing_that_it_said(place: Place, tmp_path: Path) -> None:
    chance = random.Random(0)
    ledger = Ledger.open(place.url, create=True)
    file = tmp_path / "acknowledged"
    for i in range(12):
        writer = forking.Process(target=_write, args=(place.url, f"w{i}", 10_000, file))
        writer.start()
        before = file.stat().st_size if file.exists() else 0
        while (not file.exists() or file.stat().st_size == before) and writer.is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
        assert ledger.verify() == []
    said = {tuple(line.split()) for line in file.read_text().splitlines()}
    assert len(said) >= 12
    held = {(str(one.id), one.owner) for one in ledger.books().requests.values()}
    assert said <= held
    assert len(held) <= len(said) + 12  # the kill may come between the writing and the saying


def _hold(url: str, ready: Any) -> None:
    with Ledger.open(url).database.running():
        ready.set()
        time.sleep(60)


@pytest.mark.integration
def test_one_run_at_a_time_and_a_killed_one_lets_go(place: Place) -> None:
    ledger = filled(place)
    ready = forking.Event()
    holder = forking.Process(target=_hold, args=(place.url, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(LedgerError, match="another run is at work"), ledger.database.running():
        pass
    assert holder.pid is not None
    ledger.add(facts("Rome"))  # entering goes on meanwhile
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    until = time.monotonic() + 10
    while True:
        try:
            with ledger.database.running(), ledger.database.running():
                break
        except LedgerError:  # a server notices a moment later
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.integration
def test_thousands_of_requests_are_no_burden(file: Place) -> None:
    ledger = Ledger.open(file.url, create=True)
    ledger.add(facts(*(f"place {i}" for i in range(3_000))))
    start = time.process_time()
    ledger.add(facts("one more"))
    assert ledger.verify() == []
    assert time.process_time() - start < 5
