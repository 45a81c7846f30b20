"""Keeps facts out of logs and errors while a run is at work on them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from zerounlearn.data.fact import Fact
from zerounlearn.errors import ZeroUnlearnError


class _Hiding(logging.Filter):
    def __init__(self, hide: Hide) -> None:
        super().__init__()
        self.hide = hide

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.hide(record.getMessage()), ()
        return True


class Hide:
    """Puts a request's number where its fact would stand."""

    def __init__(self, facts: Mapping[int, Fact]) -> None:
        """Facts by request."""
        names: dict[str, str] = {}
        for number, fact in facts.items():
            request = fact.request
            for text in (request.prompt, request.answer, request.subject):
                for form in (text, repr(text)[1:-1]):  # messages quote by repr
                    names.setdefault(form, f"[request {number}]")
        self._names = names
        longest = sorted(map(re.escape, names), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)") if longest else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        return self._pattern.sub(lambda match: self._names[match[0]], text) if self._pattern else text


@contextmanager
def facts_hidden(facts: Mapping[int, Fact]) -> Iterator[None]:
    """Write no fact into any log that is open now, and raise no error of ours that quotes one."""
    hide = Hide(facts)
    hiding = _Hiding(hide)
    loggers = [logging.getLogger(name) for name in (None, "zerounlearn.progress")]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    handlers |= {logging.lastResort} if logging.lastResort else set()
    for handler in handlers:
        handler.addFilter(hiding)
    try:
        yield
    except ZeroUnlearnError as error:
        if (text := hide(str(error))) != str(error):
            raise type(error)(text) from None
        raise
    finally:
        for handler in handlers:
            handler.removeFilter(hiding)
