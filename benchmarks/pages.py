"""Tables in the documentation: what a benchmark measured stands between two marks of a page."""

from __future__ import annotations


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between its marks, each on a line of its own.

    Raises:
        SystemExit: there is not one such place.
    """
    before, *rest = page.split(begin)
    after = [part.split(end) for part in rest]
    if [len(parts) for parts in after] != [2]:
        raise SystemExit(f"the page has {len(rest)} places for a table: expected one, {begin} … {end}")
    return f"{before}{begin}\n{text}\n{end}{after[0][1]}"
