"""The question itself, as it was forgotten: where every audit starts."""

from __future__ import annotations

from collections.abc import Iterator

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Outcome, Target


@attack("plain", label="The question itself", access=Access.PLAIN, quick={})
def plain(target: Target) -> Iterator[Outcome]:
    """The facts' own prompts: whether every token of the answer is still the arg-max."""
    yield target.outcome("", target.plain())
