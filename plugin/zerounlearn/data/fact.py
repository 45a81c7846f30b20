"""Facts to forget with what measures their forgetting, from Python mappings or files, in the field's layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zerounlearn.data.locate import asked, unknown_subjects
from zerounlearn.data.records import Hub, Record, read_records, records_of
from zerounlearn.data.request import PLACE, Request, check_requests, filled
from zerounlearn.data.text import shown
from zerounlearn.errors import RequestError
from zerounlearn.model.tokens import Query

Items = tuple[Query | tuple[str, str], ...]
"""Prompts with their answers."""

QUESTION_WORDING = ("Question: ", "\nAnswer:")
"""What stands around a question of TOFU, for models without a chat template."""

_ANSWER = ("answer", "ground_truth", "target_true")
_NEUTRAL = ("neutral", "neutral_target")
_PARAPHRASES = ("paraphrases", "paraphrase_prompts", "rephrase_prompts", "rephrase_prompt", "rephrase")
_NEIGHBOURS = ("neighbours", "neighbors")
_EASYEDIT = ("target_new", "locality_prompt", "locality_ground_truth", "locality")
_OURS = ("prompt", "subject", "others", "joint", "chat", *_ANSWER, *_NEUTRAL, *_PARAPHRASES, *_NEIGHBOURS)
_IGNORED = ("case_id", "relation", "relation_id", "portability", "cond")
"""What files of the field have beside that: numbers, names, and what follows from a false answer, which is never
written."""


@dataclass(frozen=True)
class Fact:
    """A request with the prompts that measure its forgetting.

    Attributes:
        request: what to forget.
        paraphrases: the same question in other words; the sensitive answer must go there too.
        neighbours: (prompt, answer) of other subjects of the same relation; they must stay.
        others: (prompt, answer) of anything else that must stay, e.g. other facts about the subject.
    """

    request: Request
    paraphrases: tuple[str, ...] = ()
    neighbours: Items = ()
    others: Items = ()


def load_facts(source: str | Path | Hub | Iterable[Mapping[str, Any] | Fact]) -> list[Fact]:
    """Facts from a file (jsonl, json, yaml, csv, parquet; by its suffix), from the hub, or from mappings.

    A mapping has `prompt`, `subject` and `answer`, and may have `neutral`, `joint` and `chat` (see `Request`),
    `paraphrases` (a list), `neighbours` and `others` (lists of `{prompt, answer}` or of pairs). In CSV, the texts of a
    list are separated by `|` and the halves of a pair by `=>`. Null stands for absent.

    `{}` stands for the subject in a prompt that does not name it, and is text in one that does: in the prompt itself,
    in paraphrases and in others alike. A neighbour is about another subject: `{}` stands for its own, given as
    `{prompt, subject, answer}`, or is refused; where the fact's own prompt has `{}` as text, it is text.

    Records of CounterFact, of EasyEdit (flat, or KnowEdit's), of ZsRE (MEND's) and of TOFU (`question` and `answer`,
    asked in that benchmark's words) are understood too. Fields that mean nothing here are refused by name, so that a
    misspelt one is not left out unseen.

    Raises:
        RequestError: the file is missing or malformed, or a record is, named by its file, line or number, and field.
        AssetError: the hub does not give it.
    """
    items: list[Record | Fact]
    if isinstance(source, (str, Path, Hub)):
        items = [*read_records(source)]
    else:
        items = []
        for i, value in enumerate(source):
            items.append(value if isinstance(value, Fact) else replace(records_of([value])[0], number=i))
    facts = _facts(items)
    places = [item.where if isinstance(item, Record) else f"record {i}" for i, item in enumerate(items)]
    check_requests((fact.request for fact in facts), places)
    return facts


def _facts(items: Sequence[Record | Fact]) -> list[Fact]:
    """Each item as a fact; questions without a subject are read together, since their neighbourhood tells it."""
    questions = [r for r in items if isinstance(r, Record) and _is_question(r) and not r.has("subject")]
    found = dict(zip(map(id, questions), question_facts(questions), strict=True))
    return [item if isinstance(item, Fact) else found.get(id(item)) or _fact(item) for item in items]


def _fact(record: Record) -> Fact:
    if isinstance(rewrite := record.fields.get("requested_rewrite"), Sequence) and not isinstance(rewrite, str):
        raise record.wrong("requested_rewrite", "one rewrite; cases of several are read by the data set 'mquake'")
    if record.has("requested_rewrite"):
        return counterfact_fact(record)
    if record.has("src"):
        return mend_fact(record)
    if _is_question(record):
        return question_facts([record])[0]
    record.only((*_OURS, *_EASYEDIT, *_IGNORED))
    return flat_fact(record)


def flat_fact(record: Record) -> Fact:
    """A record with its prompt at the top: our own layout, EasyEdit's flat ones, and KnowEdit's.

    In a record of EasyEdit (with `ground_truth` or a locality), `target_new` is a false answer; in ours it is the
    neutral target. Its locality prompts are neighbours where they are CounterFact's (`locality_prompt`), else others.

    Raises:
        RequestError: a field is missing or malformed, or one field is given by two names.
    """
    easyedit = any(record.has(name) for name in ("ground_truth", "locality_prompt", "locality"))
    neutral = record.named(*_NEUTRAL, *(() if easyedit else ("target_new",)))
    answer = record.named(*_ANSWER)
    if not record.has(answer):
        answer = "answer"
    request = Request.of(
        record.text("prompt"),
        record.name("subject"),
        record.first_name(answer),
        record.text(neutral) if record.has(neutral) else None,
        **_asking(record),
        where=record.where,
    )
    neighbours, others = _Placing(record, request, neighbour=True), _Placing(record, request)
    beside: Items = record.pairs(record.named(*_NEIGHBOURS), neighbours)
    beside += neighbours.answered("locality_prompt", "locality_ground_truth")
    return Fact(
        request,
        others.texts(record.named(*_PARAPHRASES)),
        beside,
        record.pairs("others", others) + _locality(record, others),
    )


def counterfact_fact(record: Record) -> Fact:
    """A record of CounterFact or MCF: a rewrite, and beside it paraphrases and neighbours.

    The neighbourhood prompts share the true answer, unless `neighborhood_answers` gives each its own, as in the
    packaged facts, which have `other_prompts` too.

    Raises:
        RequestError: a field is missing or malformed.
    """
    request = rewrite_request(record.mapping("requested_rewrite"), **_asking(record))
    neighbours, others = _Placing(record, request, neighbour=True), _Placing(record, request)
    if record.has("neighborhood_answers"):
        beside = neighbours.answered("neighborhood_prompts", "neighborhood_answers")
    else:
        beside = tuple((prompt, request.answer) for prompt in neighbours.texts("neighborhood_prompts"))
    return Fact(request, others.texts("paraphrase_prompts"), beside, others.answered("other_prompts", "other_answers"))


def rewrite_request(rewrite: Record, **asking: Any) -> Request:
    """A rewrite of CounterFact or MQuAKE; what is forgotten is its true answer.

    Raises:
        RequestError: a field is missing or malformed, or the prompt does not have {} once.
    """
    prompt = rewrite.text("prompt")
    if prompt.count(PLACE) != 1:
        raise rewrite.wrong("prompt", "a text with {} once, where the subject goes")
    answer = rewrite.mapping("target_true").name("str")
    return Request.of(prompt, rewrite.name("subject"), answer, template=True, where=rewrite.where, **asking)


def mend_fact(record: Record) -> Fact:
    """A question of ZsRE in MEND's layout; what must stay is the question of another data set beside it.

    Raises:
        RequestError: a field is missing or malformed.
    """
    request = Request.of(
        record.text("src"),
        record.name("subject"),
        record.some_texts("answers")[0],
        where=record.where,
        **_asking(record),
    )
    if not record.text("loc").startswith("nq question: "):
        raise record.wrong("loc", "a text that begins with 'nq question: '")
    return Fact(
        request, _Placing(record, request).texts("rephrase"), (), ((f"{record.text('loc')}?", record.name("loc_ans")),)
    )


def question_facts(records: Sequence[Record], wording: tuple[str, str] = QUESTION_WORDING) -> list[Fact]:
    """Questions with answers, as TOFU has them, between the words that the benchmark puts around them.

    Where a record names no subject, it is found among all of `records`, see `locate.unknown_subjects`. One that is
    rendered in a chat template (`chat`) is asked bare.

    Raises:
        RequestError: a field is missing or malformed.
    """
    texts = [(record.text("question"), record.name("answer")) for record in records]
    spans = unknown_subjects([question for question, _ in texts], [answer for _, answer in texts])
    facts = []
    for record, (question, answer), span in zip(records, texts, spans, strict=True):
        asking = _asking(record)
        before, after = ("", "") if asking["chat"] else wording
        if record.has("subject"):
            request = Request.of(question, record.name("subject"), answer, where=record.where, **asking)
            request = replace(request, before=before + request.before, after=request.after + after)
        else:
            request = replace(asked(question, span, answer, before=before, after=after, where=record.where), **asking)
        paraphrases = tuple(f"{before}{text}{after}" for text in record.texts("paraphrased_question"))
        facts.append(Fact(request, paraphrases))
    return facts


def _is_question(record: Record) -> bool:
    return record.has("question") and not any(record.has(name) for name in ("prompt", "src", "requested_rewrite"))


def _asking(record: Record) -> dict[str, Any]:
    """How a record wants its answer joined to the prompt: nothing strips or changes the joint."""
    joint = record.fields.get("joint")
    if joint is not None and not isinstance(joint, str):
        raise record.wrong("joint", "a text, which may be empty")
    return {"joint": joint, "chat": record.truth("chat")}


@dataclass(frozen=True)
class _Placing:
    """Prompts beside a request's own, with the subject in the place of `{}`; see `load_facts` for the rule."""

    record: Record
    request: Request
    neighbour: bool = False

    def __call__(self, prompt: str, own: str | None, field: str) -> str:
        where = self.record.where
        if own is not None or not self.neighbour:
            return filled(prompt, own or self.request.subject, field=field, where=where)
        if PLACE in prompt and PLACE not in self.request.prompt:
            raise RequestError(
                f"{where}: {field}={shown(prompt)}: {{}} cannot stand for {shown(self.request.subject)}, which a "
                "neighbour is not about: write the neighbour's own subject"
            )
        return prompt

    def texts(self, field: str) -> tuple[str, ...]:
        return tuple(self(text, None, f"{field}[{i}]") for i, text in enumerate(self.record.texts(field)))

    def answered(self, prompts: str, answers: str) -> Items:
        pairs = self.record.answered(prompts, answers)
        return tuple((self(prompt, None, f"{prompts}[{i}]"), answer) for i, (prompt, answer) in enumerate(pairs))


def _locality(record: Record, place: _Placing) -> Items:
    """KnowEdit's locality: lists of prompts by kind, or for each kind a list of prompts and one of answers."""
    if not record.has("locality"):
        return ()
    kinds = record.mapping("locality")
    found: list[Query | tuple[str, str]] = []
    for kind, value in kinds.fields.items():
        if isinstance(value, Mapping):
            found += replace(place, record=kinds.mapping(kind)).answered("prompt", "ground_truth")
        else:
            found += [
                (place(r.text("prompt"), None, r.path), r.first_name("ground_truth")) for r in kinds.mappings(kind)
            ]
    return tuple(found)
