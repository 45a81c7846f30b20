"""known_1000 (Meng et al. 2022): facts that GPT-2 XL completes, as ROME's causal tracing uses them."""

from __future__ import annotations

from dataclasses import dataclass

from zerounlearn.data.entry import Single
from zerounlearn.data.fact import Fact
from zerounlearn.data.records import Record, Source, read_records
from zerounlearn.data.request import Request

NAMES = ("known_1000", "known_1000_data")


@dataclass(frozen=True)
class Known(Single):
    """A fact of known_1000; it comes with nothing to measure but itself.

    Attributes:
        known_id: the data set's own number.
        relation: the Wikidata property.
        prediction: how GPT-2 XL went on.
    """

    known_id: int
    relation: str | None
    prediction: str | None


def load_known(source: Source) -> list[Known]:
    """known_1000 from a file, a folder or a repository of the hub; it has no official home there.

    The prompt is `prompt`, never `template`: the template may lack the prompt's last words ("{} is located in the
    continent" for "… the continent of"). It only tells which mention of the subject is meant.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_known(record) for record in read_records(source, names=NAMES)]


def _known(record: Record) -> Known:
    prompt, subject, template = record.text("prompt"), record.text("subject"), record.text_or_none("template")
    if template is not None and template.count("{}") == 1 and prompt.startswith(template.replace("{}", subject)):
        start = template.index("{}")
        prompt = f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"
    return Known(
        Fact(Request.of(prompt, subject, record.text("attribute"), where=record.where)),
        record.integer("known_id"),
        record.text_or_none("relation_id"),
        record.text_or_none("prediction"),
    )
