"""TOFU (Maini et al. 2024, arXiv 2401.06121): questions about fictitious authors, real ones, and the world."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry, Question
from zerounlearn.data.fact import QUESTION_WORDING, Fact, question_facts
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.errors import RequestError

Part = Literal[
    "full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99", "real_authors", "world_facts"
]

HOME = Hub("locuslab/TOFU", split="train")

_UNPERTURBED = ("full",)


@datasets.register("tofu", source="arXiv 2401.06121")
def load_tofu(
    source: Source,
    part: Part = "forget01",
    *,
    perturbed: bool = False,
    wording: tuple[str, str] = QUESTION_WORDING,
) -> list[Entry]:
    """One part of TOFU, from its file, a folder or the hub.

    The answer is a whole sentence for the fictitious authors, a name or a word for the rest. Nothing in TOFU marks a
    subject. It is, by `locate.unknown_subjects`, the author's name where the question has it, else a title in quotation
    marks, else another name, else the question's last word.

    Args:
        source: see `Source`.
        part: which part; the sizes of the forget and retain sets are per cent of the authors.
        perturbed: read the file with paraphrased and perturbed answers, which give each entry its `question`; there is
            one for all retain parts.
        wording: what stands before and after the question.

    Raises:
        RequestError: the part has no perturbed file, or a file or a record is malformed.
        AssetError: the hub does not give it.
    """
    if perturbed and part in _UNPERTURBED:
        raise RequestError(f"TOFU's part {part!r} has no perturbed file: take a forget or retain part")
    name: str = part
    if perturbed:
        name = "retain_perturbed" if part.startswith("retain") else f"{part}_perturbed"
    records = read_records(source, home=replace(HOME, configuration=name), names=(name, f"tofu_{name}"))
    facts = question_facts(records, wording)
    return [
        Entry((fact,), question=_question(record, fact) if perturbed else None)
        for record, fact in zip(records, facts, strict=True)
    ]


def _question(record: Record, fact: Fact) -> Question:
    """Real authors and world facts have no answer in other words: TOFU takes the answer itself."""
    answer = fact.request.answer
    paraphrased = record.name_or_none("paraphrased_answer") or answer
    false = tuple(text.strip() for text in record.some_texts("perturbed_answer"))
    return Question(fact.request.prompt, answer, paraphrased, false)
