"""What the documentation site makes when it is built: the page of hyperparameters, from the registered classes."""

from __future__ import annotations

from typing import Any

MARK = "<!-- hyperparameters -->"


def hyperparameters() -> str:
    """A section a method of ours: what it is, its source, and a table of its fields."""
    from zerounlearn.config import Settings, described
    from zerounlearn.method.base import methods

    parts = []
    for entry in methods.entries():
        kind = entry.target
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            continue  # EasyEdit's own, whose classes are EasyEdit's
        rows = [
            f"| `{row['name']}` | {_cell(row['default'])} | {_cell(row['range'])} | {_cell(row['meaning'])} |"
            for row in described(kind)
        ]
        head = f"## {entry.name}\n\n{entry.summary} Source: {entry.source}.\n\n"
        parts.append(head + "| name | default | range | meaning |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for every page."""
    return markdown.replace(MARK, hyperparameters()) if MARK in markdown else markdown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
