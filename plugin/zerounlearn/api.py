"""The library's front door: forget facts, measure a model, and both with a report.

`unlearn` is the one path that the command line, EasyEdit's adapter and editor, studies and benchmarks take.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.chat import as_chat, marked_as_chat
from zerounlearn.data.corpora import held_out_corpus
from zerounlearn.data.fact import Fact, load_facts
from zerounlearn.data.lengths import check_lengths
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, RequestError, reason_of
from zerounlearn.evaluation.perplexity import perplexity
from zerounlearn.evaluation.probes import Probes, paraphrases, unknown_warning
from zerounlearn.method.base import UnlearningMethod, load_method
from zerounlearn.method.edit import Edit
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.answers import resolve_joints, score
from zerounlearn.model.clock import Clock
from zerounlearn.model.generate import generate
from zerounlearn.model.loading import check_model
from zerounlearn.model.tokens import Query
from zerounlearn.report.requirements import requirements
from zerounlearn.report.run import FactReport, Measured, Phase, Report, Verdict, environment

log = logging.getLogger(__name__)

Facts = str | Path | Iterable[Mapping[str, Any] | Fact]
"""A file of facts, records, or facts: what `load_facts` takes."""

_COMPLETION_TOKENS = 8
_HELD_OUT_TOKENS = 4096
_NAMED = 5  # facts that a warning names
EMBEDDED = "embedded"
"""The held-out part of the extract of Wikipedia that comes from the package index."""


@dataclass(frozen=True)
class Evaluation:
    """What a model said at one time.

    Attributes:
        phase: means over all prompts.
        facts: each fact's own verdicts and its greedy completion.
    """

    phase: Phase
    facts: tuple[Measured, ...]

    def against(self, before: Evaluation) -> str:
        """One line: every number that both have, before → after; shares in per cent."""
        parts = []
        for name, label in _SHOWN.items():
            old, new = getattr(before.phase, name), getattr(self.phase, name)
            if old is not None and new is not None:
                digits, scale = (1, 1.0) if name == "ppl" else (0, 100.0)
                parts.append(f"{label} {scale * old:.{digits}f} → {scale * new:.{digits}f}")
        return ", ".join(parts)

    def __str__(self) -> str:
        parts = []
        for name, label in _SHOWN.items():
            value = getattr(self.phase, name)
            if value is not None:
                parts.append(f"{label} {value:.1f}" if name == "ppl" else f"{label} {100 * value:.0f}")
        return ", ".join(parts)


_SHOWN = {"eff": "Eff", "gen": "Gen", "spe": "Spe", "spe_subject": "Spe subject", "ppl": "PPL"}


def unlearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    method: UnlearningMethod | str | Path,
    *,
    retain: Facts | Sequence[Request] | None = None,
    held_out: Iterable[str] = (),
    chat: bool = False,
) -> Edit:
    """Forget facts, in place, by any registered method with its whole configuration.

    Args:
        model: a decoder in float32, bfloat16 or float16, on any device.
        tokenizer: the model's; its padding side does not matter.
        facts: a file, records or facts; see `load_facts`.
        method: a configuration (`ZeroUnlearn(layers=[16, 17, 18])`), or a hyperparameter file.
        retain: facts to keep; by default what the configuration stands for.
        held_out: prompts that will measure something, which an automatic retain set must not hold; those of `facts`
            are among them in any case.
        chat: put every prompt into the tokenizer's chat template.

    Returns:
        What changed; `edit.revert(model)` takes it back bit for bit.

    Raises:
        ZeroUnlearnError: before any weight is changed, or with the weights as they were, bit for bit.
    """
    check_model(model)
    chosen = _chosen(model, tokenizer, facts, chat=chat)
    run = _method(method).located(model, tokenizer)
    asked = {query[0] for query in Probes.of(chosen).items()} | set(held_out)
    with restored_if_it_fails(model, ()):  # the weights are the method's
        requests = _requests(model, tokenizer, chosen)
        edit = run.apply(
            model,
            tokenizer,
            requests,
            retain=None if retain is None else _retained(model, tokenizer, retain, chat=chat),
            held_out=asked,
        )
        edit.forgot(requests)
        return edit


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    *,
    retain: Sequence[Request] = (),
    unrelated: Iterable[tuple[str, str]] = (),
    text: str | Sequence[str] | None = EMBEDDED,
    text_tokens: int = _HELD_OUT_TOKENS,
    chat: bool = False,
    joints: dict[Query, Query] | None = None,
) -> Evaluation:
    """Ask a model for facts: which answers it says, how probable they are, and its perplexity on ordinary text.

    An answer counts as said where each of its tokens is the arg-max after those before it.

    Args:
        model: any causal language model, left as it was.
        tokenizer: its tokenizer.
        facts: the facts with the prompts that measure them; see `load_facts`.
        retain: facts that a method was shown; they are left out of what measures keeping.
        unrelated: (prompt, answer) pairs that have nothing to do with the facts.
        text: ordinary text for perplexity: a corpus by its name, a file, texts, or None for no perplexity.
        text_tokens: how much of it is read.
        chat: put every prompt into the tokenizer's chat template.
        joints: what stands before each answer, filled by the first of several measurements for the later ones.

    Raises:
        ZeroUnlearnError: the facts are malformed, or the text cannot be had.
    """
    chosen = _chosen(model, tokenizer, facts, chat=chat)
    probes = Probes.of(chosen, retain=retain, unrelated=list(unrelated))
    with restored_if_it_fails(model, ()):
        return _measured(model, tokenizer, chosen, probes, _texts(text), text_tokens, joints)


def unlearn_and_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    method: UnlearningMethod | str | Path,
    *,
    retain: Facts | Sequence[Request] | None = None,
    unrelated: Iterable[tuple[str, str]] = (),
    text: str | Sequence[str] | None = EMBEDDED,
    text_tokens: int = _HELD_OUT_TOKENS,
    chat: bool = False,
    require_known: bool = False,
    require: Iterable[str] = (),
) -> tuple[Report, Edit]:
    """Measure, forget, measure again; arguments as for `unlearn` and `evaluate`.

    Where the model says less than half of the facts to begin with, a warning says so, or with `require_known` an error.
    So does one where it still says a fact afterwards, or a bound of `require` is not met: "eff<=0.05", or "ppl<=1.01x"
    for a multiple of what it was before. The edit stays, and `report.failed` has what was not met.

    Raises:
        ZeroUnlearnError: with the weights as they were, bit for bit; so for any other exception, KeyboardInterrupt too.
    """
    check_model(model)
    chosen = _chosen(model, tokenizer, facts, chat=chat)
    run = _method(method).located(model, tokenizer)
    unrelated, texts, wanted = list(unrelated), _texts(text), requirements(require)
    clock = Clock({}, model, told=0.0)
    joints: dict[Query, Query] = {}
    with restored_if_it_fails(model, run.weight_names(model)):
        requests = _requests(model, tokenizer, chosen)
        if retain is not None:
            kept = _retained(model, tokenizer, retain, chat=chat)
        else:
            asked = {query[0] for query in Probes.of(chosen, unrelated=unrelated).items()}
            kept = run.retained(model, tokenizer, requests, held_out=asked)
        probes = Probes.of(chosen, retain=kept, unrelated=unrelated)
        prints = run.fingerprints(model)
        with clock("evaluation"):
            before = _measured(model, tokenizer, chosen, probes, texts, text_tokens, joints)
        _check_known(before.phase, required=require_known)
        (edit := run.apply(model, tokenizer, requests, retain=kept)).forgot(requests)
        with _undone_if_it_fails(edit), clock("evaluation"):
            after = _measured(model, tokenizer, chosen, probes, texts, text_tokens, joints)
        report = replace(
            reported(model, chosen, before, after, edit),
            seconds=edit.seconds | clock.seconds,
            retained=len(kept),
            fingerprints=prints | edit.statistics,
            requirements=[one.judged(before.phase, after.phase) for one in wanted],
        )
        _warn(report)
    return report, edit


def reported(
    model: PreTrainedModel, facts: Sequence[Fact], before: Evaluation, after: Evaluation, edit: Edit
) -> Report:
    """The report of an edit of the model, between two measurements of the same facts."""
    return Report(
        facts=[FactReport.of(f, b, a) for f, b, a in zip(facts, before.facts, after.facts, strict=True)],
        before=before.phase,
        after=replace(after.phase, known=before.phase.known),
        layers=edit.layers,
        seconds=edit.seconds,
        prefixes=edit.prefixes,
        retained=0,
        losses={name: (values[0], values[-1]) for name, values in edit.losses.items() if values},
        hparams=edit.hparams,
        fingerprints=edit.statistics,
        environment=environment(model),
    )


def check_prompts(
    name: str, config: PretrainedConfig, facts: Iterable[Fact], *, trust_remote_code: bool = False
) -> None:
    """Refuse a prompt that is longer than a model reads, before its weights are loaded.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        RequestError: a prompt with its answer has more tokens than the model has positions.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise ConfigError(f"model_name={name!r}: its tokenizer cannot be loaded: {reason_of(error)}") from error
    check_lengths(config, tokenizer, facts)


def _check_known(before: Phase, *, required: bool) -> None:
    """Say that the model knows little of what it is to forget.

    Raises:
        RequestError: so it is, and more is required.
    """
    if message := unknown_warning(before.known):
        if required:
            raise RequestError(message)
        log.warning("%s", message)


def _warn(report: Report) -> None:
    """Say which facts are still said, and which requirements are not met."""
    if report.still_said:
        named = "; ".join(f"{fact.prompt!r} → {fact.answer!r}" for fact in report.still_said[:_NAMED])
        more = f"; {len(report.still_said) - _NAMED} more" if len(report.still_said) > _NAMED else ""
        log.warning("still said: %d of %d facts: %s%s", len(report.still_said), len(report.facts), named, more)
    for judged in report.failed:
        log.warning("required %s", judged)


@contextmanager
def _undone_if_it_fails(edit: Edit) -> Iterator[None]:
    """Take back what is more than weights (EasyEdit's GRACE and WISE) if the body raises."""
    try:
        yield
    except BaseException:
        if edit.undo is not None:
            edit.undo()
        raise


def _method(method: UnlearningMethod | str | Path) -> UnlearningMethod:
    if isinstance(method, UnlearningMethod):
        return method
    if isinstance(method, (str, Path)):
        return load_method(method)
    raise ConfigError(f"method={method!r}: expected a configuration, as ZeroUnlearn(layers=[…]), or a file's path")


def _chosen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Facts, *, chat: bool) -> list[Fact]:
    """The facts as the model is asked: in its chat template, if wanted; all of them fit into its context."""
    chosen = as_chat(tokenizer, load_facts(facts), every=chat)
    check_lengths(model.config, tokenizer, chosen)
    return chosen


def _requests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact]) -> list[Request]:
    """The facts' requests, each with the joint before its answer."""
    joints = resolve_joints(model, tokenizer, [fact.request.query for fact in facts])
    return [replace(fact.request, joint=query.joint) for fact, query in zip(facts, joints, strict=True)]


def _retained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, retain: Facts | Sequence[Request], *, chat: bool
) -> list[Request]:
    given = list(retain) if not isinstance(retain, (str, Path)) else retain
    if isinstance(given, list) and all(isinstance(one, Request) for one in given):
        # The check above is what a type checker does not see.
        return marked_as_chat(tokenizer, given)  # type: ignore[arg-type]
    return _requests(model, tokenizer, _chosen(model, tokenizer, given, chat=chat))  # type: ignore[arg-type]


def _texts(text: str | Sequence[str] | None) -> Sequence[str]:
    if text is None:
        return ()
    return held_out_corpus(text).texts() if isinstance(text, str) else text


@torch.no_grad()
def _measured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    probes: Probes,
    texts: Sequence[str],
    text_tokens: int,
    joints: dict[Query, Query] | None = None,
) -> Evaluation:
    """Every prompt once: whether its answer is said, the answer's probability; completions; perplexity.

    `joints` takes what was found to stand before each answer, so that a later model is measured by the same.
    """
    joints = {} if joints is None else joints
    by_fact = [_queries(fact) for fact in facts]
    queries = list(dict.fromkeys([q for parts in by_fact for part in parts for q in part] + probes.items()))
    log.info("evaluation: %d prompts", len(queries))
    new = [query for query in queries if query not in joints]
    joints.update(zip(new, resolve_joints(model, tokenizer, new), strict=True))
    scores = dict(zip(queries, score(model, tokenizer, [joints[query] for query in queries]), strict=True))
    completions = generate(
        model, tokenizer, [fact.request.prompt for fact in facts], tokens=_COMPLETION_TOKENS, special=True
    )
    measured = []
    for parts, completion in zip(by_fact, completions, strict=True):
        verdicts: list[list[Verdict]] = [[(scores[q].said, scores[q].probability) for q in part] for part in parts]
        [own], reworded, neighbours, others = verdicts
        measured.append(Measured(own, reworded, neighbours, others, completion))
    ppl = perplexity(model, tokenizer, texts, tokens=text_tokens) if texts else None
    return Evaluation(Phase(**probes.means(scores), ppl=ppl, known=probes.known(scores)), tuple(measured))


def _queries(fact: Fact) -> list[list[Query]]:
    """What is asked of a fact: itself, its paraphrases, its neighbours, others."""
    around = ([Query(*pair) for pair in pairs] for pairs in (fact.neighbours, fact.others))
    return [[fact.request.query], paraphrases(fact), *around]
