"""Facts of one's own, from a file in any layout that `load_facts` reads."""

from __future__ import annotations

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import load_facts
from zerounlearn.data.records import Source


@datasets.register("facts")
def load_fact_entries(source: Source) -> list[Entry]:
    """Facts of one's own: jsonl, json, yaml, csv or parquet; an entry a fact.

    Raises:
        RequestError: see `load_facts`.
        AssetError: the hub does not give it.
    """
    return [Entry((fact,)) for fact in load_facts(source)]
