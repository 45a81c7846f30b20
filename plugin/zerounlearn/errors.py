"""The exceptions this package raises, and pieces of their messages: the hint about an unknown name, another's reason.

Each one is also the builtin that a caller would expect, so `except ValueError` keeps working. A message
states the fact, the number or value that caused it, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def did_you_mean(name: str, known: Sequence[str], otherwise: str | None = None) -> str:
    """How a message about an unknown name ends: with the nearest known one, else with `otherwise`, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


def reason_of(error: BaseException) -> str:
    """What an error of another package says, in one line; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ZeroUnlearnError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(ZeroUnlearnError, ValueError):
    """A hyperparameter is unknown, missing, or outside its range."""


class RequestError(ZeroUnlearnError, ValueError):
    """A request (a fact to forget or to keep) is malformed."""


class LayoutError(ZeroUnlearnError, LookupError):
    """A module template or layer does not match the model, or its weights cannot be edited."""


class IllPosedError(ZeroUnlearnError, ArithmeticError):
    """A linear system has no numerically reliable solution, or its input is not finite."""


class StatisticsError(ZeroUnlearnError, OSError):
    """A statistics cache is unreadable, truncated, or belongs to something else."""


class AssetError(ZeroUnlearnError, OSError):
    """A packaged or downloadable asset (model, corpus, facts) cannot be had."""


class OutputError(ZeroUnlearnError, OSError):
    """A result could not be written; nothing half-written is left behind."""


class EditError(ZeroUnlearnError, ValueError):
    """An edit does not belong to the model at hand, or its file is damaged."""


class FrameworkError(ZeroUnlearnError, ImportError):
    """EasyEdit is not installed, or an optional package it needs was really used."""


class RegistrationError(ZeroUnlearnError, RuntimeError):
    """The framework's table already holds something else under our name."""


class LedgerError(ZeroUnlearnError, RuntimeError):
    """A ledger is missing, locked, of another version or not as it was written, or refuses what it is told."""


class AuditError(ZeroUnlearnError, ValueError):
    """An audit or one of its attacks cannot be run on what it was given, or its files are not as it wrote them."""
