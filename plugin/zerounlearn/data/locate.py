"""Subjects of questions that mark none, so that methods which edit at the subject's last token can run.

A method that locates is told a place in the prompt. Where a data set does not say which words are its subject,
these rules choose them; a span says by which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zerounlearn.data.request import PLACE, Request, check_text
from zerounlearn.data.text import mentions, shown
from zerounlearn.errors import RequestError

Rule = Literal["subject", "part", "author", "quotation", "name", "end"]

_WORD = re.compile(r"[^\W_](?:[\w.'’&-]*\w)?")
_POSSESSIVE = re.compile(r"['’]s$")
_QUOTATION = re.compile(r"[\"“](?P<double>[^\"“”]+?)[,.?]?[\"”]|(?<!\w)['‘](?P<single>.+?)[,.?]?['’](?!\w)")
_PARTICLES = frozenset(
    ("of", "the", "and", "de", "da", "del", "di", "du", "la", "le", "van", "von", "der", "bin", "wa")
)
_COMMON = 1 / 3
_REACH = 19


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a question, and the rule that found them."""

    start: int
    end: int
    rule: Rule


def known_subject(question: str, subject: str) -> Span:
    """Where a question names a subject that the data set knows.

    `subject`: its last mention as words of their own, whatever their case. `part`: else the last mention of one
    word of it, its last word (a surname) first. `end`: else the question's last word, at which the model has read
    the whole question.
    """
    words = [word for word in subject.split() if len(word) > 2]
    rules: list[tuple[str, Rule]] = [(subject, "subject"), *((word, "part") for word in reversed(words))]
    for text, rule in rules:
        if spans := mentions(question, text, whole=True, ignore_case=True):
            return Span(*spans[-1], rule)
    return _last_word(question)


def unknown_subjects(questions: Sequence[str], answers: Sequence[str]) -> list[Span]:
    """What each question is about, where nothing says so; the order of the records matters.

    `author`: the capitalised name of two words or more that is mentioned most often nearby, if at least a third of
    the records there mention it; TOFU asks 20 questions in a row about each author, so a record's neighbourhood is
    the 19 before and the 19 after it. `quotation`: else the last title in quotation marks. `name`: else the longest
    capitalised name. `end`: else the last word. Of several mentions of a name the last counts.
    """
    spans = []
    for i, question in enumerate(questions):
        near = range(max(0, i - _REACH), min(len(questions), i + _REACH + 1))
        texts = [f"{questions[j]} {answers[j]}" for j in near]
        names = _names(question)
        counts = {name: [text.count(name) for text in texts] for s, e in names if " " in (name := question[s:e])}
        ranked = sorted((sum(times), len(name), name) for name, times in counts.items())
        if ranked and sum(map(bool, counts[best := ranked[-1][-1]])) >= max(2, len(texts) * _COMMON):
            start = question.rindex(best)
            spans.append(Span(start, start + len(best), "author"))
        elif quotations := list(_QUOTATION.finditer(question)):
            spans.append(Span(*quotations[-1].span(quotations[-1].lastgroup or 0), "quotation"))
        elif proper := [(s, e) for s, e in names if s > 0]:
            spans.append(Span(*max(proper, key=lambda span: (span[1] - span[0], span[0])), "name"))
        else:
            spans.append(_last_word(question))
    return spans


def asked(question: str, span: Span, answer: str, *, before: str, after: str, where: str) -> Request:
    """A question as a request, between the words that a benchmark puts around it.

    Raises:
        RequestError: question or answer is empty or holds a character that no output can, or the question has `{}` in
            it, of which nothing tells whether it is text.
    """
    if PLACE in question:
        raise RequestError(f"{where}: the question {shown(question)} has {{}} in it, which marks a subject")
    check_text(question, "question", where)
    check_text(answer, "answer", where)
    subject = question[span.start : span.end]
    return Request(f"{before}{question[: span.start]}", subject, f"{question[span.end :]}{after}", answer.strip())


def _last_word(question: str) -> Span:
    words = list(_WORD.finditer(question))
    if not words:
        return Span(0, len(question), "end")
    return Span(words[-1].start(), words[-1].end(), "end")


def _names(question: str) -> list[tuple[int, int]]:
    """Runs of capitalised words, particles inside allowed; a run at the start also without its first word."""
    runs: list[list[tuple[int, int]]] = []
    pending: list[tuple[int, int]] = []
    for match in _WORD.finditer(question):
        start, end = match.start(), match.end()
        word = _POSSESSIVE.sub("", match.group())
        trimmed = (start, start + len(word))
        last = (pending or (runs[-1] if runs else []))[-1:]
        joined = bool(last) and question[last[0][1] : start] == " "
        if word[0].isupper():
            if joined:
                runs[-1] += [*pending, trimmed]
            else:
                runs.append([trimmed])
            pending = []
        elif joined and word in _PARTICLES:
            pending.append((start, end))
        else:
            pending = []
    spans = [(run[0][0], run[-1][1]) for run in runs]
    for run in runs[:1]:
        capitals = [word for word in run[1:] if question[word[0]].isupper()]
        if run[0][0] == 0 and capitals:
            spans.append((capitals[0][0], run[-1][1]))
    return spans
