"""The audit: every attack on the edited model and on the base model, on facts and on controls alike."""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.api import EMBEDDED, Facts
from zerounlearn.audit.controls import never_known
from zerounlearn.audit.disruption import disruption
from zerounlearn.audit.holes import holes
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.registry import Attack, attacks, check_budget, chosen
from zerounlearn.audit.results import Attacked, Audit, AuditedFact, Variant
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.data.corpora import held_out_corpus
from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.lengths import check_lengths
from zerounlearn.data.request import fact_digest
from zerounlearn.data.sets.embedded import packaged_entries
from zerounlearn.errors import AuditError
from zerounlearn.method.edit import Edit
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.clock import Clock
from zerounlearn.model.fingerprint import tokenizer_digest, value_digest, weights_hash
from zerounlearn.model.loading import check_model
from zerounlearn.model.tokens import Query
from zerounlearn.report.run import environment

log = logging.getLogger(__name__)

CONTROLS = {"quick": 2, "standard": 4, "thorough": 8}
"""Made-up subjects for each fact, by budget."""
HOLES = {"quick": 20, "standard": 60, "thorough": 200}
"""Questions beside the facts, by budget; see `holes`."""
_TEXT_TOKENS = 2048
_OTHERS = 200


def run_audit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    base: PreTrainedModel | Edit,
    *,
    budget: str = "quick",
    only: Iterable[str] = (),
    without: Iterable[str] = (),
    controls: int | None = None,
    seed: int = 0,
    text: str | Sequence[str] | None = EMBEDDED,
    chat: bool = False,
    beside: int | None = None,
) -> Audit:
    """Attack a model that was made to forget, and say what came back.

    Only facts that the base model says are counted. An attack that cannot be run here is named with the reason.

    Args:
        model: the edited model, whoever edited it; left as it was, bit for bit.
        tokenizer: its tokenizer.
        facts: what was to be forgotten; see `load_facts`. Neighbours are what an attacker knows of other subjects.
        base: the model that it was edited from, or the edit that is on it.
        budget: quick, standard or thorough: what each attack may spend.
        only: names of attacks; by default all that the budget has.
        without: names of attacks to leave out.
        controls: made-up subjects for each fact; by default those of the budget, see `CONTROLS`.
        seed: of the controls and of all that attacks draw.
        text: ordinary text: a corpus by its name, a file, texts, or None for none.
        chat: put every prompt into the tokenizer's chat template.
        beside: questions beside the facts, which show what else was lost; 0 asks none. By default those of the
            budget, see `HOLES`.

    Raises:
        AuditError: the two models do not belong together, or the base model says none of the facts.
        ZeroUnlearnError: the facts are malformed, or an attack is unknown.
    """
    check_budget(budget)
    wanted = chosen(only, without=without)
    check_model(model)
    given = load_facts(facts)
    pair = Pair.of(model, base)
    return audit_pair(
        pair,
        tokenizer,
        given,
        budget=budget,
        wanted=wanted,
        controls=controls,
        beside=beside,
        seed=seed,
        text=text,
        chat=chat,
    )


def audit_pair(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    *,
    budget: str,
    wanted: Sequence[Attack],
    controls: int | None = None,
    beside: int | None = None,
    seed: int = 0,
    text: str | Sequence[str] | None = EMBEDDED,
    chat: bool = False,
    key: bytes | None = None,
    ceilings: dict[str, list[Outcome]] | None = None,
) -> Audit:
    """`run_audit` of two models that are one set of modules already.

    Args:
        pair: the models.
        tokenizer: see `run_audit`, as for what is not said here.
        facts: as `load_facts` gives them.
        budget: one of `BUDGETS`.
        wanted: of `chosen`.
        controls: see `run_audit`.
        beside: see `run_audit`.
        seed: see `run_audit`.
        text: see `run_audit`.
        chat: see `run_audit`.
        key: of the facts' digest.
        ceilings: what attacks found in the base model, filled by the first of several audits of the same facts, seed
            and budget for the later ones; of no use to another base model.
    """
    model = pair.model
    check_lengths(model.config, tokenizer, facts)
    count = CONTROLS[budget] if controls is None else controls
    if count < 1:
        raise AuditError(f"controls={count}: an attack without controls shows nothing; give at least 1")
    texts = held_out_corpus(text).texts() if isinstance(text, str) else text or ()
    generator = torch.Generator().manual_seed(seed)
    made = never_known(facts, count, generator)
    target = Target(model, tokenizer, tuple(facts), made, (), texts, seed, chat)
    clock = Clock({}, model)
    with restored_if_it_fails(model, ()):
        target = replace(_known(pair, target, generator), original=pair.original)
        results, not_run = _attacked(pair, target, wanted, budget, {} if ceilings is None else ceilings, clock)
        lost = None
        if asked := HOLES[budget] if beside is None else beside:
            with clock("holes"):
                lost = holes(pair, target, asked)
        moved = disruption(pair, tokenizer, texts, _TEXT_TOKENS) if texts else None
    return Audit(
        tuple(
            AuditedFact(fact.request.prompt, fact.request.answer, tuple(one.request.subject for one in each))
            for fact, each in zip(target.facts, target.controls, strict=True)
        ),
        len(facts) - len(target.facts),
        results,
        not_run,
        moved,
        {"budget": budget, "seed": seed, "controls": count, "text_tokens": _TEXT_TOKENS if texts else 0},
        _fingerprints(pair, target, facts, key),
        environment(model),
        {name: round(taken, 2) for name, taken in clock.seconds.items()},
        holes=lost,
    )


def _known(pair: Pair, target: Target, generator: torch.Generator) -> Target:
    """The target with the facts that the base model says, each with its joint, and with what an attacker knows.

    Raises:
        AuditError: it says none of them.
    """
    with pair.as_base():
        joined = target.asked([fact.request.query for fact in target.facts])
        facts = [
            replace(fact, request=replace(fact.request, joint=query.joint))
            for fact, query in zip(target.facts, joined, strict=True)
        ]
        target = replace(target, facts=tuple(facts))
        said = [one.said for one in target.scores([fact.request.query for fact in facts])]
        others = _others(target)
        strange = _strange(target, others, generator)
    if not any(said):
        raise AuditError(
            f"the base model says none of the {len(facts)} facts: there was nothing to forget; check --base, and how "
            "prompt and answer join (joint, chat)"
        )
    if not all(said):
        log.warning("the base model says %d of the %d facts: the others are not counted", sum(said), len(facts))
    kept = [i for i, one in enumerate(said) if one]
    controls = tuple(
        tuple(replace(one, request=replace(one.request, joint=facts[i].request.joint)) for one in target.controls[i])
        for i in kept
    )
    return replace(target, facts=tuple(facts[i] for i in kept), controls=controls, others=others, strange=strange)


def _others(target: Target) -> tuple[Query, ...]:
    """What the model says of other subjects in the facts' relations, then of packaged facts; none of the facts."""
    prompts = {fact.request.prompt for fact in target.facts}
    near = [Query(*item) for fact in target.facts for item in fact.neighbours]
    relations = {(fact.request.before, fact.request.after) for fact in target.facts}
    packaged = [entry.fact.request for entry in packaged_entries()]
    packaged.sort(key=lambda request: (request.before, request.after) not in relations)
    subjects = {fact.request.subject for fact in target.facts}
    wanted = [*near, *(request.query for request in packaged if request.subject not in subjects)]
    asked = list(dict.fromkeys(query for query in wanted if query.prompt not in prompts))[:_OTHERS]
    said = target.scores(asked)
    return tuple(query for query, one in zip(asked, said, strict=True) if one.said)


def _strange(target: Target, others: Sequence[Query], generator: torch.Generator) -> tuple[str, ...]:
    """The prompts of others with made-up subjects; "" where the subject is not told from the relation's own words."""
    relations = [fact.request for fact in target.facts]
    known = {entry.fact.request.query[:2]: entry.fact.request for entry in packaged_entries()}
    found = []
    for query in others:
        same = (r for r in relations if query.prompt.startswith(r.before) and query.prompt.endswith(r.after))
        relation = next((r for r in same if len(query.prompt) > len(r.before) + len(r.after)), None)
        request = known.get(query[:2])
        if request is None and relation is not None:
            subject = query.prompt[len(relation.before) : len(query.prompt) - len(relation.after)]
            request = replace(relation, subject=subject)
        [[control]] = never_known([Fact(request)], 1, generator) if request is not None else [[None]]
        found.append("" if control is None else control.request.prompt)
    return tuple(found)


def _attacked(
    pair: Pair,
    target: Target,
    wanted: Sequence[Attack],
    budget: str,
    ceilings: dict[str, list[Outcome]],
    clock: Clock,
) -> tuple[tuple[Attacked, ...], dict[str, str]]:
    """Every attack in turn; what each found, and why others were not run."""
    results, not_run = [], {one.name: f"not asked for ({one.access.value})" for one in attacks.values()}
    for one in wanted:
        del not_run[one.name]
    for one in (bar := tqdm(wanted, desc="attacks", unit="attack", disable=None)):
        bar.set_postfix_str(one.name)
        settings = one.settings(budget)
        missing = [name for name in one.needs if not _installed(name)]
        if settings is None:
            not_run[one.name] = f"more than the budget {budget!r} has ({one.access.value})"
        elif missing:
            not_run[one.name] = f"{missing[0]} is not installed: pip install 'zerounlearn[audit]'"
        else:
            try:
                with clock(one.name):
                    results.append(_one(pair, target, one, dict(settings), ceilings))
            except AuditError as error:
                not_run[one.name] = str(error)
    return tuple(results), not_run


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _one(
    pair: Pair, target: Target, attack: Attack, settings: dict[str, Any], ceilings: dict[str, list[Outcome]]
) -> Attacked:
    """An attack on the edited model and on the base model."""
    with _read(pair.model) as read:
        edited = list(attack.run(replace(target, base=False), **settings))
    tokens = read.tokens
    with pair.as_base(), _read(pair.model) as read:
        if attack.name not in ceilings:
            ceilings[attack.name] = list(attack.run(replace(target, base=True), **settings))
    ceiling = ceilings[attack.name]
    if [one.variant for one in edited] != [one.variant for one in ceiling]:
        raise AuditError(f"{attack.name} gave other variants for the base model than for the edited one")
    variants = tuple(
        Variant(attack.name, _label(attack, found), attack.access.name, found, most)
        for found, most in zip(edited, ceiling, strict=True)
    )
    source = attacks.entry(attack.name).source
    return Attacked(attack.name, source, json.loads(json.dumps(settings)), variants, (tokens, read.tokens))


def _label(attack: Attack, outcome: Outcome) -> str:
    return f"{attack.label}: {outcome.variant}" if outcome.variant else attack.label


@dataclass
class _Read:
    tokens: int = 0


@contextmanager
def _read(model: PreTrainedModel) -> Iterator[_Read]:
    """Count the tokens that the model reads."""
    read = _Read()

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        given = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
        read.tokens += int(given.numel())

    with model.register_forward_pre_hook(count, with_kwargs=True):
        yield read


def _fingerprints(pair: Pair, target: Target, facts: Sequence[Fact], key: bytes | None) -> dict[str, str]:
    with pair.as_base():
        base = weights_hash(pair.model)
    return {
        "edited": weights_hash(pair.model),
        "base": base,
        "tokenizer": tokenizer_digest(target.tokenizer),
        "facts": facts_digest(facts, key),
        "text": value_digest(list(target.texts[:_TEXT_TOKENS])),
        "code": code_digest(),
    }


def facts_digest(facts: Sequence[Fact], key: bytes | None = None) -> str:
    """64 hexadecimal digits over facts with all their prompts, in their order: HMAC-SHA256 under a key, if given."""
    told = [
        [fact_digest(fact.request), fact.paraphrases, [q[:2] for q in fact.neighbours], [q[:2] for q in fact.others]]
        for fact in facts
    ]
    return hmac.new(key or b"", json.dumps(told).encode(), "sha256").hexdigest()


def code_digest() -> str:
    """16 hexadecimal digits over this package's Python files."""
    root = Path(__file__).parents[1]
    seen = hashlib.blake2b(digest_size=8)
    for file in sorted(root.rglob("*.py")):
        seen.update(f"{file.relative_to(root).as_posix()}\0".encode())
        seen.update(file.read_bytes())
    return seen.hexdigest()
