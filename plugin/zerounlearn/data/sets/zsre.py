"""ZsRE question answering (Levy et al. 2017), in MEND's layout and in that of EasyEdit's KnowEdit."""

from __future__ import annotations

from dataclasses import replace

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import Fact, flat_fact, mend_fact
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.errors import RequestError

HOME = Hub("zjunlp/KnowEdit", file="benchmark/ZsRE/ZsRE-test-all.json")
NAMES = ("zsre_mend_eval", "zsre_mend_eval_portability_gpt4", "zsre_mend_edit", "ZsRE-test-all", "zsre")


@datasets.register("zsre", source="arXiv 1706.04115")
def load_zsre(source: Source) -> list[Entry]:
    """ZsRE from a file, a folder or the hub.

    The prompt is the bare question, as MEMIT and the paper ask it; the fact's answer is the first of the entry's. What
    must stay is measured token by token. EasyEdit's `portability` is left aside: it asks what follows from the false
    answer, which unlearning never writes.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_mend(r) if r.has("src") else _knowedit(r) for r in read_records(source, home=HOME, names=NAMES)]


def _mend(record: Record) -> Entry:
    return _entry(mend_fact(record), record.names("answers"), record.name_or_none("alt"))


def _knowedit(record: Record) -> Entry:
    if not record.has("prompt"):
        raise RequestError(
            f"{record.where}: its fields are {', '.join(sorted(record.fields))}: expected 'src' (MEND's layout) or "
            "'prompt' (EasyEdit's)"
        )
    record.some_texts("ground_truth")
    return _entry(flat_fact(record), record.names("ground_truth"), record.name_or_none("target_new"))


def _entry(fact: Fact, answers: tuple[str, ...], counterfactual: str | None) -> Entry:
    return Entry(
        (replace(fact, others=()),),
        counterfactuals=() if counterfactual is None else (counterfactual,),
        answers=answers,
        token_by_token=fact.others,
    )
