"""The facts in clear, which lie beside the chain: how they are written, and what they betray of the books."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request, fact_digest
from zerounlearn.errors import LedgerError
from zerounlearn.ledger.digests import canonical
from zerounlearn.ledger.state import Books
from zerounlearn.model.tokens import Query


def written(fact: Fact) -> str:
    """A fact as the table has it."""
    return canonical(asdict(fact))


def read(text: str) -> Fact:
    """What `written` wrote.

    Raises:
        LedgerError: somebody else wrote it.
    """
    try:
        found = json.loads(text)
        neighbours, others = (
            tuple(Query(*pair) if len(pair) > 2 else (pair[0], pair[1]) for pair in found[name])
            for name in ("neighbours", "others")
        )
        return Fact(Request(**found["request"]), tuple(found["paraphrases"]), neighbours, others)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LedgerError("a fact in clear is no record of ours: somebody has changed the database") from error


def strange(books: Books, rows: Mapping[int, str], key: bytes | None) -> list[str]:
    """What the facts in clear say of the books: events that are gone, facts that are gone or others.

    Args:
        books: what the events add up to.
        rows: the table, by request.
        key: of the digests; without a ledger's key its facts are not compared with them.
    """
    found = []
    for number, text in rows.items():
        request = books.requests.get(number)
        if request is None or not request.held:
            what = "was purged" if request else "no event adds"
            found.append(f"a fact is kept of request {number}, which {what}")
        elif (books.key_check == "" or key is not None) and _digest(text, key) != request.digest:
            found.append(f"the fact in clear of request {number} was changed")
    gone = [one.id for one in books.requests.values() if one.held and one.id not in rows]
    return found + [f"the fact in clear of request {number} is gone, and no event purged it" for number in gone]


def _digest(text: str, key: bytes | None) -> str:
    try:
        return fact_digest(read(text).request, key)
    except (LedgerError, TypeError):
        return ""
