"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about fictitious authors, real ones, and the world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from zerounlearn.data.entry import Question, Single
from zerounlearn.data.fact import Fact
from zerounlearn.data.locate import Rule, Span, asked, unknown_subjects
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.errors import RequestError

Part = Literal[
    "full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99", "real_authors", "world_facts"
]  # fmt: skip

HOME = Hub("locuslab/TOFU", split="train")
WORDING = ("Question: ", "\nAnswer:")
"""The benchmark's words for models without a chat template."""

_UNPERTURBED = ("full",)


@dataclass(frozen=True)
class TOFU(Single):
    """A question of TOFU; the fact's prompt has it between the words of `WORDING`.

    Attributes:
        part: the file it is of.
        question: as the data set has it.
        answer: a whole sentence for the fictitious authors, a name or a word for the rest.
        paraphrased_answer: the answer in other words, which the truth ratio compares; None without a perturbed
            file, and for real authors and world facts, where TOFU takes the answer itself.
        perturbed_answers: false answers in the paraphrase's form; empty without a perturbed file.
        located: the rule that found the subject in the question, see `locate`.
    """

    part: Part
    question: str
    answer: str
    paraphrased_answer: str | None
    perturbed_answers: tuple[str, ...]
    located: Rule

    def to_ask(self) -> Question:
        """The question with all that its probability, ROUGE and truth ratio need.

        Raises:
            RequestError: the file had no perturbed answers.
        """
        if not self.perturbed_answers:
            raise RequestError(
                f"TOFU {self.part}: {self.question!r} has no perturbed answers: load the part with perturbed=True"
            )
        return Question(
            self.fact.request.prompt, self.answer, self.paraphrased_answer or self.answer, self.perturbed_answers
        )


def load_tofu(
    source: Source, part: Part = "forget01", *, perturbed: bool = False, wording: tuple[str, str] = WORDING
) -> list[TOFU]:
    """One part of TOFU, from its file, a folder or the hub.

    Nothing in TOFU marks a subject. It is, by `locate.unknown_subjects`, the author's name where the question has
    it, else a title in quotation marks, else another name, else the question's last word.

    Args:
        source: see `Source`.
        part: which part; the sizes of the forget and retain sets are per cent of the authors.
        perturbed: read the file with paraphrased and perturbed answers; there is one for all retain parts.
        wording: what stands before and after the question.

    Raises:
        RequestError: the part is unknown or has no perturbed file, or a file or a record is malformed.
        AssetError: the hub does not give it.
    """
    if part not in get_args(Part):
        raise RequestError(f"TOFU has no part {part!r}: expected one of {', '.join(get_args(Part))}")
    if perturbed and part in _UNPERTURBED:
        raise RequestError(f"TOFU's part {part!r} has no perturbed file: take a forget or retain part")
    name: str = part
    if perturbed:
        name = "retain_perturbed" if part.startswith("retain") else f"{part}_perturbed"
    records = read_records(source, home=replace(HOME, configuration=name), names=(name, f"tofu_{name}"))
    questions = [record.text("question") for record in records]
    answers = [record.text("answer") for record in records]
    spans = unknown_subjects(questions, answers)
    return [_question(r, part, perturbed, wording, span) for r, span in zip(records, spans, strict=True)]


def _question(record: Record, part: Part, perturbed: bool, wording: tuple[str, str], span: Span) -> TOFU:
    question, answer = record.text("question"), record.text("answer")
    before, after = wording
    request = asked(question, span, answer, before=before, after=after, where=record.where)
    paraphrases = tuple(f"{before}{p}{after}" for p in record.texts("paraphrased_question")) if perturbed else ()
    return TOFU(
        Fact(request, paraphrases),
        part,
        question,
        answer,
        record.text_or_none("paraphrased_answer") if perturbed else None,
        record.some_texts("perturbed_answer") if perturbed else (),
        span.rule,
    )
