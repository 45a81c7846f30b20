"""The three tables, and the triggers by which the database itself refuses to change an event."""

from __future__ import annotations

from sqlalchemy import DDL, Column, Connection, Integer, MetaData, Table, Text, event, text

VERSION = 1
"""Of the tables and of what the events say; a ledger of another is refused."""

_metadata = MetaData()

about = Table("ledger_about", _metadata, Column("version", Integer, primary_key=True, autoincrement=False))

events = Table(
    "ledger_events",
    _metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
)

# What is to be forgotten, in clear; no part of the chain, so that its rows can go.
facts = Table(
    "ledger_facts",
    _metadata,
    Column("request", Integer, primary_key=True, autoincrement=False),
    Column("fact", Text, nullable=False),
)

_APPEND_ONLY = "the ledger is append-only"
_SQLITE = {
    # INSERT OR REPLACE deletes without a word to the DELETE trigger: hence the first.
    "ledger_insert": "BEFORE INSERT ON ledger_events WHEN NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM "
    "ledger_events)",
    "ledger_update": "BEFORE UPDATE ON ledger_events",
    "ledger_delete": "BEFORE DELETE ON ledger_events",
}
_POSTGRESQL = {
    "ledger_change": "BEFORE UPDATE OR DELETE ON ledger_events FOR EACH ROW",
    "ledger_truncate": "BEFORE TRUNCATE ON ledger_events FOR EACH STATEMENT",
}
_FUNCTION = f"""CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}'; END $$"""

for _name, _when in _SQLITE.items():
    _statement = f"CREATE TRIGGER {_name} {_when} BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END"
    event.listen(events, "after_create", DDL(_statement).execute_if(dialect="sqlite"))
event.listen(events, "after_create", DDL(_FUNCTION).execute_if(dialect="postgresql"))
for _name, _when in _POSTGRESQL.items():
    _statement = f"CREATE TRIGGER {_name} {_when} EXECUTE FUNCTION ledger_refuse()"
    event.listen(events, "after_create", DDL(_statement).execute_if(dialect="postgresql"))


def create(connection: Connection) -> None:
    """Make tables and triggers."""
    _metadata.create_all(connection)


def missing_triggers(connection: Connection) -> list[str]:
    """Names of those that somebody has taken away or switched off."""
    if connection.dialect.name == "sqlite":
        expected, query = set(_SQLITE), "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    else:
        expected = set(_POSTGRESQL)
        query = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'ledger_events'::regclass AND tgenabled <> 'D'"
    return sorted(expected - set(connection.execute(text(query)).scalars()))
