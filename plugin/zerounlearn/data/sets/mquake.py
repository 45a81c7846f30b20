"""MQuAKE-CF (Zhong et al. 2023): cases of several rewrites, and questions that need all of them."""

from __future__ import annotations

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry, MultiHop
from zerounlearn.data.fact import Fact, rewrite_request
from zerounlearn.data.records import Record, Source, read_records

NAMES = ("MQuAKE-CF-3k-v2", "MQuAKE-CF-3k", "MQuAKE-CF", "MQuAKE-T", "mquake")


@datasets.register("mquake", source="arXiv 2305.14795")
def load_mquake(source: Source) -> list[Entry]:
    """MQuAKE-CF from a file, a folder or a repository of the hub; it has no official home there.

    An entry is a case: its rewrites are facts, each with the question that asks the same as its paraphrase, and the
    question of several hops is its `multi_hop`. Cases share rewrites: take `facts_of` the cases, which names each once.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_case(record) for record in read_records(source, names=NAMES)]


def _case(record: Record) -> Entry:
    rewrites = record.mappings("requested_rewrite")
    if not rewrites:
        raise record.wrong("requested_rewrite", "a list of at least one rewrite")
    return Entry(
        tuple(Fact(rewrite_request(rewrite), rewrite.texts("question")) for rewrite in rewrites),
        case_id=record.integer("case_id"),
        counterfactuals=tuple(rewrite.mapping("target_new").name("str") for rewrite in rewrites),
        multi_hop=MultiHop(record.some_texts("questions"), record.name("answer"), record.names("answer_alias")),
    )
