"""Subjects of questions: where the rules find them, and that a request can be made of every place they find."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerounlearn.data.locate import Span, asked, known_subject, unknown_subjects
from zerounlearn.data.text import is_blank, refused_character
from zerounlearn.errors import RequestError


@pytest.mark.parametrize(
    ("question", "subject", "found", "rule"),
    [
        ("Was Ann Lee there, or was ANN LEE not?", "Ann Lee", "ANN LEE", "subject"),
        ("Where did Lee live?", "Ann Lee", "Lee", "part"),
        ("Where did Ann live?", "Ann Lee", "Ann", "part"),
        ("Where is Leeds?", "Ann Lee", "Leeds", "end"),
        ("Where was O'Neill's friend born ___?", "Ann Lee", "born", "end"),
        ("Who is Li?", "Li Bo", "Li", "end"),
    ],
)
def test_known_subjects(question: str, subject: str, found: str, rule: str) -> None:
    span = known_subject(question, subject)
    assert (question[span.start : span.end], span.rule) == (found, rule)
    assert span.start == question.rindex(found)


@pytest.mark.parametrize(
    ("question", "found", "rule"),
    [
        ("Who wrote the play 'Dalibor', and who 'The Devil's Wall'?", "The Devil's Wall", "quotation"),
        ('Regarding "The Weir," what is it about?', "The Weir", "quotation"),
        ("Which author created the detective Hercule Poirot?", "Hercule Poirot", "name"),
        ("Where is the Charles Bridge's tower?", "Charles Bridge", "name"),
        ("What is the capital of Bohemia?", "Bohemia", "name"),
        ("What is the University of West Bohemia known for?", "University of West Bohemia", "name"),
        ("How many legs has a spider?", "spider", "end"),
        ("???", "???", "end"),
    ],
)
def test_a_lone_question(question: str, found: str, rule: str) -> None:
    (span,) = unknown_subjects([question], [""])
    assert (question[span.start : span.end], span.rule) == (found, rule)


def test_the_author_is_who_most_records_nearby_mention() -> None:
    names = ["Jana Nová", "Petr Ota Malý"]
    questions = [f"Does {name} like the Charles Bridge {i}?" for name in names for i in range(20)]
    answers = [f"{name} does." for name in names for _ in range(20)]
    for i, (question, span) in enumerate(zip(questions, unknown_subjects(questions, answers), strict=True)):
        assert (question[span.start : span.end], span.rule) == (names[i // 20], "author")


def test_a_name_that_few_records_share_is_no_author() -> None:
    questions = ["Did Jana Nová write 'Weir'?", "Did Petr Malý write 'Dam'?", "Did Ota Starý write?", "Why?", "Where?"]
    spans = unknown_subjects(questions, ["Jana Nová did.", "No.", "Yes.", "So.", "There."])
    assert [span.rule for span in spans] == ["quotation", "quotation", "name", "end", "end"]


def test_an_author_at_the_questions_start_is_found_without_the_word_before() -> None:
    questions = ["Through Jana Nová we learn what?", "Jana Nová wrote what?", "What did Jana Nová's father do?"]
    spans = unknown_subjects(questions, ["Jana Nová teaches.", "Jana Nová wrote.", "He was a tailor."])
    assert [q[s.start : s.end] for q, s in zip(questions, spans, strict=True)] == ["Jana Nová"] * 3


def usable(text: str) -> bool:
    """Whether `asked` takes it: something can be seen, and reports can show it."""
    return not is_blank(text) and refused_character(text) is None and "{}" not in text


@given(st.text(min_size=1, max_size=60).filter(usable), st.text(max_size=20))
def test_every_question_has_a_subject_that_is_in_it(question: str, subject: str) -> None:
    question = question.strip()
    for span in (*unknown_subjects([question, question], ["", ""]), known_subject(question, subject or "x")):
        assert 0 <= span.start < span.end <= len(question)
        request = asked(question, span, "yes", before="Q: ", after="\nA:", where="here")
        assert request.prompt == f"Q: {question}\nA:"
        assert request.prompt[slice(*request.subject_span)] == request.subject


def test_braces_are_refused() -> None:
    with pytest.raises(RequestError, match=r"here: the question 'What is \{\}\?' has \{\} in it"):
        asked("What is {}?", Span(0, 4, "end"), "x", before="", after="", where="here")
