"""known_1000 (Meng et al. 2022): facts that GPT-2 XL completes, as ROME's causal tracing uses them."""

from __future__ import annotations

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact
from zerounlearn.data.records import Record, Source, read_records
from zerounlearn.data.request import PLACE, Request

NAMES = ("known_1000", "known_1000_data")


@datasets.register("known_1000", source="arXiv 2202.05262")
def load_known_1000(source: Source) -> list[Entry]:
    """known_1000 from a file, a folder or a repository of the hub; it has no official home there.

    The prompt is `prompt`, never `template`: the template may lack the prompt's last words ("{} is located in the
    continent" for "… the continent of"). It only tells which mention of the subject is meant.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_entry(record) for record in read_records(source, names=NAMES)]


def _entry(record: Record) -> Entry:
    prompt, subject, answer = record.text("prompt"), record.name("subject"), record.name("attribute")
    template = record.text("template") if record.has("template") else ""
    start = template.find(PLACE)
    known = template.count(PLACE) == 1 and prompt.startswith(template.replace(PLACE, subject))
    marked = f"{prompt[:start]}{PLACE}{prompt[start + len(subject) :]}" if known else prompt
    return Entry(
        (Fact(Request.of(marked, subject, answer, template=known, where=record.where)),),
        case_id=record.integer("known_id"),
        topic=record.name_or_none("relation_id"),
    )
