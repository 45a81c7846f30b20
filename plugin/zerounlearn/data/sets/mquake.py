"""MQuAKE-CF (Zhong et al. 2023): cases of several rewrites, and questions that need all of them."""

from __future__ import annotations

from dataclasses import dataclass

from zerounlearn.data.fact import Fact
from zerounlearn.data.records import Record, Source, read_records
from zerounlearn.data.request import Request

NAMES = ("MQuAKE-CF-3k-v2", "MQuAKE-CF-3k", "MQuAKE-CF", "MQuAKE-T", "mquake")


@dataclass(frozen=True)
class MQuAKE:
    """A case of MQuAKE.

    Attributes:
        case_id: the data set's own number.
        facts: its rewrites; the question that asks the same is each one's paraphrase.
        counterfactuals: the false answer of each rewrite.
        questions: wordings of one question that takes several hops.
        answer: their answer before any rewrite.
        aliases: other names of that answer.
    """

    case_id: int
    facts: tuple[Fact, ...]
    counterfactuals: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    aliases: tuple[str, ...]


def load_mquake(source: Source) -> list[MQuAKE]:
    """MQuAKE-CF from a file, a folder or a repository of the hub; it has no official home there.

    Cases share rewrites: take `facts_of` the cases, which names each once.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_case(record) for record in read_records(source, names=NAMES)]


def _case(record: Record) -> MQuAKE:
    rewrites = record.mappings("requested_rewrite")
    if not rewrites:
        raise record.wrong("requested_rewrite", "a list of at least one rewrite")
    return MQuAKE(
        case_id=record.integer("case_id"),
        facts=tuple(_fact(rewrite) for rewrite in rewrites),
        counterfactuals=tuple(rewrite.mapping("target_new").text("str") for rewrite in rewrites),
        questions=record.some_texts("questions"),
        answer=record.text("answer"),
        aliases=record.texts("answer_alias"),
    )


def _fact(rewrite: Record) -> Fact:
    prompt = rewrite.text("prompt")
    if prompt.count("{}") != 1:
        raise rewrite.wrong("prompt", "a text with {} once, where the subject goes")
    answer = rewrite.mapping("target_true").text("str")
    return Fact(Request.of(prompt, rewrite.text("subject"), answer, where=rewrite.where), rewrite.texts("question"))
