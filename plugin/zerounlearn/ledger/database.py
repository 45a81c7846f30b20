"""The database under a ledger, SQLite's file or a PostgreSQL server: one writer at a time, one run at a time."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from zerounlearn.errors import FrameworkError, LedgerError, reason_of
from zerounlearn.ledger import schema

log = logging.getLogger(__name__)

_WAIT = 60
"""Seconds that a writer waits for those before it."""
# PostgreSQL's advisory locks are 64-bit numbers that are everybody's: these two are ours.
_WRITER, _RUN = 0x7A75_6C65_6467_0001, 0x7A75_6C65_6467_0002


class Database:
    """Connections of the three kinds that a ledger needs."""

    def __init__(self, where: str | Path) -> None:
        """Nothing is opened yet.

        Args:
            where: SQLite's file, `sqlite:///file`, or `postgresql://user@host/database`.

        Raises:
            LedgerError: it is no such place.
            FrameworkError: the driver is not installed.
        """
        url = _url(str(where))
        self.file = Path(str(url.database)).expanduser() if url.get_backend_name() == "sqlite" else None
        self.name = str(self.file) if self.file is not None else url.render_as_string(hide_password=True)
        self.made = False  # whether the tables are this object's work
        self._runs = 0
        try:
            self._engine = _engine(url, self.file)
        except ImportError as error:
            raise FrameworkError("a ledger on PostgreSQL needs psycopg: pip install 'zerounlearn[postgres]'") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads one state of the books.

        Raises:
            LedgerError: there is no ledger, or of another version, or it cannot be read.
        """
        if self.file is not None and not self.file.is_file():
            raise self._absent()
        with self._transaction(writes=False) as connection:
            self._check(connection)
            yield connection

    @contextmanager
    def writing(self, *, create: bool = False) -> Iterator[Connection]:
        """The only transaction that writes; when the body is through, all of it is on the disk, else nothing.

        Args:
            create: make the tables where there are none.

        Raises:
            LedgerError: see `reading`.
        """
        if self.file is not None and not self.file.is_file():
            if not create:
                raise self._absent()
            _new_file(self.file)
        with self._transaction(writes=True) as connection:
            if create and not inspect(connection).has_table(schema.about.name):
                self._make(connection)
            self._check(connection)
            yield connection

    def _make(self, connection: Connection) -> None:
        if self.file is not None and (others := inspect(connection).get_table_names()):
            raise LedgerError(f"{self.name!r} holds something else (a table {others[0]!r}): name another file")
        schema.create(connection)
        connection.execute(schema.about.insert().values(version=schema.VERSION))
        self.made = True

    @contextmanager
    def running(self) -> Iterator[None]:
        """The right to run, one process at a time; it ends with the process, however that ends. May be nested.

        Raises:
            LedgerError: another has it.
        """
        if self._runs:
            yield
            return
        with self._run_lock() if self.file is None else self._file_lock(self.file):
            self._runs += 1
            try:
                yield
            finally:
                self._runs -= 1

    @contextmanager
    def _file_lock(self, file: Path) -> Iterator[None]:
        lock = FileLock(f"{file}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise self._busy() from None
        except OSError as error:
            raise LedgerError(f"the ledger {self.name!r} cannot be locked: {error}") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _run_lock(self) -> Iterator[None]:
        with self._said(), self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _RUN}).scalar():
                raise self._busy()
            yield  # the lock is the session's, and goes with it

    def clear(self) -> None:
        """After rows were deleted, have no copy of them in the table's own pages.

        SQLite overwrites them as it deletes them (`secure_delete`); PostgreSQL keeps them until the table is rewritten.
        """
        if self.file is None:
            try:
                with self._said(), self._engine.connect() as connection:
                    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                    connection.execute(text(f"VACUUM (FULL) {schema.facts.name}"))
            except LedgerError as error:  # the rows themselves are gone
                log.warning("what was purged may lie in the server's files still: %s", error)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        with self._said(), self._engine.connect() as connection:
            connection = connection.execution_options(writes=writes)
            with connection.begin():
                if writes and self.file is None:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITER})
                yield connection

    def _check(self, connection: Connection) -> None:
        if not inspect(connection).has_table(schema.about.name):
            raise self._absent()
        found = list(connection.execute(schema.about.select()).scalars())
        if found != [schema.VERSION]:
            raise LedgerError(
                f"the ledger {self.name!r} is of version {', '.join(map(str, found)) or 'none'}, and this zerounlearn "
                f"reads version {schema.VERSION}: use the zerounlearn that wrote it"
            )

    @contextmanager
    def _said(self) -> Iterator[None]:
        """A database's own errors as ours: without the statement, whose parameters may be a fact."""
        try:
            yield
        except SQLAlchemyError as error:
            reason = reason_of(getattr(error, "orig", None) or error)
            raise LedgerError(f"the ledger {self.name!r} cannot be used: {reason}") from None

    def _absent(self) -> LedgerError:
        return LedgerError(f"there is no ledger at {self.name!r}: `zerounlearn ledger add FACTS` begins one")

    def _busy(self) -> LedgerError:
        return LedgerError(f"another run is at work on the ledger {self.name!r}: wait until it is through")


def _url(where: str) -> URL:
    if "://" not in where:
        if not where.strip() or Path(where).is_dir():
            raise LedgerError(f"--ledger {where!r}: name a file, or a database as postgresql://user@host/name")
        return URL.create("sqlite", database=where)
    try:
        url = make_url(where.replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError):
        raise LedgerError("--ledger: the URL cannot be read: expected postgresql://user:password@host/name") from None
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    shown = url.render_as_string(hide_password=True)
    raise LedgerError(f"--ledger {shown!r}: expected a file, sqlite:///file, or postgresql://user@host/name")


def _engine(url: URL, file: Path | None) -> Engine:
    if file is None:
        return create_engine(url, hide_parameters=True, poolclass=NullPool, connect_args={"connect_timeout": 10})
    engine = create_engine(
        URL.create("sqlite", database=str(file)),
        hide_parameters=True,
        poolclass=NullPool,
        connect_args={"timeout": _WAIT},
    )

    # The driver would begin a transaction at the first write alone, after the head was read: SQLAlchemy begins it.
    # The journal stays a file beside the database that is gone after each transaction: a write-ahead log would keep
    # what was purged, and be forgotten when somebody copies the one file.
    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _new_file(file: Path) -> None:
    """An empty database that its owner alone reads: facts will stand in it in clear."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise LedgerError(f"the ledger {str(file)!r} cannot be written: {error.strerror}") from error
