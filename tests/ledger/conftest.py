"""Ledgers to test: on SQLite, and on a real PostgreSQL server where one is installed; and how to tamper with them."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from zerounlearn.ledger.events import Event


def facts(*subjects: str, answer: str = "Paris") -> list[dict[str, Any]]:
    return [{"prompt": "The capital of {} is", "subject": subject, "answer": answer} for subject in subjects]


@dataclass
class Place:
    """Where a ledger lies, reached behind its back."""

    url: str

    @property
    def sqlite(self) -> bool:
        return "://" not in self.url

    def execute(self, *statements: str) -> list[Any]:
        """Run SQL as anybody could who has the database; the rows of the last statement."""
        if self.sqlite:
            with sqlite3.connect(self.url) as connection:
                found = [connection.execute(one).fetchall() for one in statements][-1]
            connection.close()
            return found
        engine = create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            results = [connection.execute(text(one)) for one in statements]
            found = [tuple(row) for row in results[-1]] if results[-1].returns_rows else []
        engine.dispose()
        return found

    def rewrite(self, change: Callable[[list[Event]], Sequence[Event]]) -> None:
        """Replace the events by what `change` makes of them, and put the triggers back as they were."""
        rows = self.execute("SELECT number, at, kind, body, previous, hash FROM ledger_events ORDER BY number")
        events = [Event(*row) for row in rows]
        values = [", ".join("'" + str(v).replace("'", "''") + "'" for v in astuple(one)) for one in change(events)]
        writes = ["DELETE FROM ledger_events", *(f"INSERT INTO ledger_events VALUES ({row})" for row in values)]
        if self.sqlite:
            triggers = self.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            self.execute(*(f"DROP TRIGGER {name}" for name, _ in triggers), *writes, *(sql for _, sql in triggers))
        else:
            switch = "ALTER TABLE ledger_events {} TRIGGER USER"
            self.execute(
                switch.format("DISABLE"), *(one.replace(":", "\\:") for one in writes), switch.format("ENABLE")
            )


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL server of this session's own, on a socket; its database's URL."""
    found = shutil.which("initdb") or next(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL server is installed (initdb is not on the PATH)")
    programs = Path(found).resolve().parent
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        names = {one.pw_name for one in pwd.getpwall()}
        user = {"user": next((name for name in ("postgres", "nobody") if name in names), None)}
    folder = Path(tempfile.mkdtemp(prefix="zerounlearn-pg-"))  # a socket's path is 107 bytes at most
    if user:
        shutil.chown(folder, user["user"])
    quiet = {"check": True, "capture_output": True, "cwd": "/", **user}
    subprocess.run([programs / "initdb", "-D", folder / "data", "-U", "ledger", "--auth=trust", "--no-sync"], **quiet)
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], **quiet)
    yield f"postgresql://ledger@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place for a ledger, of each kind."""
    if request.param == "sqlite":
        return Place(str(tmp_path / "ledger.sqlite"))
    database = Place(request.getfixturevalue("server"))
    database.execute("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return database


@pytest.fixture
def file(tmp_path: Path) -> Place:
    """An empty place for a ledger in SQLite's file."""
    return Place(str(tmp_path / "ledger.sqlite"))
