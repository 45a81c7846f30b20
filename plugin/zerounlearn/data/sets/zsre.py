"""ZsRE question answering (Levy et al. 2017), in MEND's layout and in that of EasyEdit's KnowEdit."""

from __future__ import annotations

from dataclasses import dataclass

from zerounlearn.data.entry import Single
from zerounlearn.data.fact import Fact
from zerounlearn.data.records import Hub, Record, Source, read_records
from zerounlearn.data.request import Request
from zerounlearn.errors import RequestError

HOME = Hub("zjunlp/KnowEdit", file="benchmark/ZsRE/ZsRE-test-all.json")
NAMES = ("zsre_mend_eval", "zsre_mend_eval_portability_gpt4", "zsre_mend_edit", "ZsRE-test-all", "zsre")


@dataclass(frozen=True)
class ZsRE(Single):
    """A question of ZsRE; the fact's answer is the first of `answers`.

    Attributes:
        answers: all answers that count as right.
        counterfactual: the false answer of the editing task, or None.
        locality: (prompt, answer) that must stay, the same as the fact's `others`. Specificity over them is
            next-token accuracy, the share of the answer's tokens that are the arg-max after those before them
            (`exact_memorisation` of `zerounlearn.evaluation`), not whole answers as in CounterFact.
    """

    answers: tuple[str, ...]
    counterfactual: str | None

    @property
    def locality(self) -> tuple[tuple[str, str], ...]:
        """Prompts whose next-token accuracy is the specificity."""
        return self.fact.others


def load_zsre(source: Source) -> list[ZsRE]:
    """ZsRE from a file, a folder or the hub.

    The prompt is the bare question, as MEMIT and the paper ask it. EasyEdit's `portability` is left aside: it asks
    what follows from the false answer, which unlearning never writes.

    Raises:
        RequestError: a file or a record is malformed, see `records`.
        AssetError: the hub does not give it.
    """
    return [_mend(r) if r.has("src") else _knowedit(r) for r in read_records(source, home=HOME, names=NAMES)]


def _mend(record: Record) -> ZsRE:
    answers = record.some_texts("answers")
    request = Request.of(record.text("src"), record.text("subject"), answers[0], where=record.where)
    if not record.text("loc").startswith("nq question: "):
        raise record.wrong("loc", "a text that begins with 'nq question: '")
    locality = ((f"{record.text('loc')}?", record.text("loc_ans")),)
    return ZsRE(Fact(request, record.texts("rephrase"), (), locality), answers, record.text_or_none("alt"))


def _knowedit(record: Record) -> ZsRE:
    if not record.has("prompt"):
        raise RequestError(
            f"{record.where}: its fields are {', '.join(sorted(record.fields))}: expected 'src' (MEND's layout) or "
            "'prompt' (EasyEdit's)"
        )
    answers = record.some_texts("ground_truth")
    request = Request.of(record.text("prompt"), record.text("subject"), answers[0], where=record.where)
    locality: tuple[tuple[str, str], ...] = ()
    if record.has("locality"):
        kinds = record.mapping("locality")
        for kind in kinds.fields:
            locality += tuple((r.first_text("prompt"), r.first_text("ground_truth")) for r in kinds.mappings(kind))
    fact = Fact(request, record.texts("rephrase_prompt"), (), locality)
    return ZsRE(fact, answers, record.text_or_none("target_new"))
