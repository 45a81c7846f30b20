"""The books for readers: a table, a page, a file for the auditor. None of them says what is to be forgotten."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import jinja2
from markupsafe import Markup

from zerounlearn.ledger.events import now
from zerounlearn.ledger.state import FAILED, PENDING, STATES, Books, LedgerRequest
from zerounlearn.resources import template

_COLUMNS = ("id", "state", "owner", "received", "due", "run", "said", "digest", "reason")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""


def overdue(request: LedgerRequest, at: str) -> bool:
    """Whether a request should have been done; times in UTC are in the order of their texts."""
    return bool(request.due) and request.due < at and request.state in (PENDING, FAILED)


def summary(books: Books, at: str | None = None) -> str:
    """One line: how many requests there are of each state, how many are overdue."""
    counts = Counter(one.state for one in books.requests.values())
    late = sum(overdue(one, at or now()) for one in books.requests.values())
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    count = len(books.requests)
    return f"{count} request{'s' if count != 1 else ''}{': ' if parts else ''}{', '.join(parts)}; {late} overdue"


def rows(books: Books, at: str | None = None) -> list[dict[str, str]]:
    """The requests as texts by column, digests and times shortened."""
    return [_row(one, at or now()) for one in books.requests.values()]


def _row(request: LedgerRequest, at: str) -> dict[str, str]:
    said = "" if request.after is None or request.before is None else f"{_yes(request.before)} → {_yes(request.after)}"
    return {
        "id": str(request.id),
        "state": request.state,
        "owner": request.owner,
        "received": request.received[:10],
        "due": f"{request.due[:10]}{' overdue' if overdue(request, at) else ''}",
        "run": str(request.run or ""),
        "said": said,
        "digest": request.digest[:12],
        "reason": request.reason,
    }


def _yes(said: tuple[bool, float | None]) -> str:
    return "yes" if said[0] else "no"


def table(books: Books) -> str:
    """A line a request, for the terminal."""
    lines = [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *rows(books)]
    widths = {name: max(len(line[name]) for line in lines) for name in _COLUMNS}
    return "\n".join("  ".join(f"{line[name]:{widths[name]}}" for name in _COLUMNS).rstrip() for line in lines)


def as_json(books: Books) -> str:
    """Requests, runs and head, in full."""
    found = {
        "head": books.head,
        "events": books.last.number if books.last else 0,
        "requests": [asdict(one) | {"overdue": overdue(one, now())} for one in books.requests.values()],
        "runs": [asdict(one) for one in books.runs.values()],
    }
    return json.dumps(found, indent=2)


def as_csv(books: Books) -> str:
    """A line a request with its run's fingerprints, for the auditor; no cell is a formula."""
    out = io.StringIO()
    writer = csv.writer(out)
    lines = [_exported(books, one) for one in books.requests.values()]
    writer.writerow(_exported(books, LedgerRequest(0, "", "", "", "", "")))
    writer.writerows([[_cell(value) for value in line.values()] for line in lines])
    return out.getvalue()


def _exported(books: Books, request: LedgerRequest) -> dict[str, Any]:
    run = books.runs.get(request.run or 0)
    found = run.found if run is not None else {}
    before, after = request.before or ("", ""), request.after or ("", "")
    metrics = found.get("metrics", {"before": {}, "after": {}})
    return {
        "id": request.id,
        "digest": request.digest,
        "owner": request.owner,
        "received": request.received,
        "due": request.due,
        "state": request.state,
        "reason": request.reason,
        "changed": request.changed,
        "said_before": before[0],
        "said_after": after[0],
        "probability_before": before[1],
        "probability_after": after[1],
        "audit": request.audit,
        "fact_kept": request.held,
        "run": request.run or "",
        "method": run.method if run is not None else "",
        "edit": found.get("edit", ""),
        "model_before": found.get("model_before", ""),
        "model_after": found.get("model_after", ""),
        "eff_after": metrics["after"].get("eff", ""),
        "ppl_before": metrics["before"].get("ppl", ""),
        "ppl_after": metrics["after"].get("ppl", ""),
    }


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_html(books: Books) -> str:
    """The page: self-contained, without a script."""
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return env.from_string(template("ledger", "ledger.html.jinja")).render(
        books=books,
        at=now(),
        columns=_COLUMNS,
        rows=rows(books),
        runs=list(books.runs.values()),
        style=Markup(template("report", "report.css")),
        summary=summary(books),
    )
