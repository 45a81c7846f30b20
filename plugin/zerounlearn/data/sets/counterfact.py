"""CounterFact and MCF (Meng et al. 2022, 2023), and EasyEdit's flat edition of it."""

from __future__ import annotations

from zerounlearn.data.catalogue import datasets
from zerounlearn.data.entry import Entry
from zerounlearn.data.fact import counterfact_fact, flat_fact
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.errors import RequestError

HOME = Hub("azhx/counterfact", split="train")
NAMES = ("multi_counterfact", "counterfact", "counterfact-edit", "counterfact-val", "facts")


@datasets.register("mcf", summary="MCF: CounterFact's layout with several prompts a kind.", source="arXiv 2210.07229")
@datasets.register("counterfact", source="arXiv 2202.05262")
def load_counterfact(source: Source) -> list[Entry]:
    """CounterFact from a file, a folder or the hub, in the original nested layout or EasyEdit's flat one.

    What is forgotten is the true answer (`target_true`, `ground_truth`), as in the paper. An entry's topic is the
    Wikidata property (the packaged facts have a readable name, EasyEdit's edition none), its openings are the
    generation prompts, its counterfactual is `target_new`.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [counterfact_entry(record) for record in read_records(source, home=HOME, names=NAMES)]


def counterfact_entry(record: Record) -> Entry:
    """One record of either layout.

    Raises:
        RequestError: it is malformed.
    """
    if record.has("requested_rewrite"):
        rewrite = record.mapping("requested_rewrite")
        return Entry(
            (counterfact_fact(record),),
            case_id=record.integer("case_id"),
            topic=record.name_or_none("relation") or rewrite.name_or_none("relation_id"),
            counterfactuals=(rewrite.mapping("target_new").name("str"),),
            openings=record.texts("generation_prompts"),
        )
    if not record.has("ground_truth"):
        raise RequestError(
            f"{record.where}: its fields are {', '.join(sorted(record.fields))}: expected 'requested_rewrite' "
            "(CounterFact) or 'ground_truth' (EasyEdit's edition)"
        )
    return Entry(
        (flat_fact(record),),
        case_id=record.integer("case_id") if record.has("case_id") else record.number,
        topic=record.name_or_none("relation_id"),
        counterfactuals=(record.name("target_new"),),
    )
