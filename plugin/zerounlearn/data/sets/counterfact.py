"""CounterFact and MCF (Meng et al. 2022, 2023), EasyEdit's flat edition of it, and the packaged facts."""

from __future__ import annotations

from dataclasses import dataclass

from zerounlearn.data.entry import Single
from zerounlearn.data.fact import Fact
from zerounlearn.data.packaged import load_facts
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.data.request import Request
from zerounlearn.errors import RequestError

HOME = Hub("azhx/counterfact", split="train")
NAMES = ("multi_counterfact", "counterfact", "counterfact-edit", "counterfact-val", "facts")


@dataclass(frozen=True)
class CounterFact(Single):
    """A fact of CounterFact.

    Attributes:
        case_id: the data set's own number.
        relation: the Wikidata property; the packaged facts have a readable name, EasyEdit's edition has none.
        counterfactual: a false answer of the right kind (`target_new`), which editing methods write.
        generation_prompts: openings about the subject, for fluency and consistency.
    """

    case_id: int
    relation: str | None
    counterfactual: str
    generation_prompts: tuple[str, ...] = ()


def load_counterfact(source: Source) -> list[CounterFact]:
    """CounterFact from a file, a folder or the hub, in the original nested layout or EasyEdit's flat one.

    What is forgotten is the true answer (`target_true`, `ground_truth`), as in the paper. In the original layout
    the neighbourhood prompts share it; where a record has `neighborhood_answers`, as the packaged facts do, each
    has its own.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [
        _nested(r) if r.has("requested_rewrite") else _flat(r) for r in read_records(source, home=HOME, names=NAMES)
    ]


def load_embedded() -> list[CounterFact]:
    """The packaged facts, which need neither a file nor the hub."""
    return [CounterFact(fact.to_forget(), fact.case_id, fact.relation, fact.counterfactual) for fact in load_facts()]


def _nested(record: Record) -> CounterFact:
    rewrite = record.mapping("requested_rewrite")
    prompt = rewrite.text("prompt")
    if prompt.count("{}") != 1:
        raise rewrite.wrong("prompt", "a text with {} once, where the subject goes")
    answer = rewrite.mapping("target_true").text("str")
    request = Request.of(prompt, rewrite.text("subject"), answer, where=record.where)
    if record.has("neighborhood_answers"):
        neighbours = record.answered("neighborhood_prompts", "neighborhood_answers")
    else:
        neighbours = tuple((prompt, answer) for prompt in record.texts("neighborhood_prompts"))
    others = record.answered("other_prompts", "other_answers")
    return CounterFact(
        Fact(request, record.texts("paraphrase_prompts"), neighbours, others),
        record.integer("case_id"),
        record.text_or_none("relation") or rewrite.text_or_none("relation_id"),
        rewrite.mapping("target_new").text("str"),
        record.texts("generation_prompts"),
    )


def _flat(record: Record) -> CounterFact:
    if not record.has("ground_truth"):
        raise RequestError(
            f"{record.where}: its fields are {', '.join(sorted(record.fields))}: expected 'requested_rewrite' "
            "(CounterFact) or 'ground_truth' (EasyEdit's edition)"
        )
    request = Request.of(
        record.text("prompt"), record.text("subject"), record.first_text("ground_truth"), where=record.where
    )
    neighbours = record.answered("locality_prompt", "locality_ground_truth")
    return CounterFact(
        Fact(request, record.texts("rephrase_prompt"), neighbours),
        record.integer("case_id") if record.has("case_id") else record.number,
        record.text_or_none("relation_id"),
        record.text("target_new"),
    )
