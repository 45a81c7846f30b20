"""A little training: on half of the facts, on like facts of other subjects, or on ordinary text; the rest is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import nn

from zerounlearn.audit.registry import Access, attack
from zerounlearn.audit.target import Finding, Outcome, Target
from zerounlearn.data.text import mentions
from zerounlearn.errors import AuditError
from zerounlearn.method.gradient.adamw import MasterAdamW
from zerounlearn.method.gradient.adapters import adapted, linear_layers
from zerounlearn.method.gradient.objectives import likelihood
from zerounlearn.method.gradient.sequences import Reader, Sample, text_samples
from zerounlearn.model.hooks import frozen
from zerounlearn.model.tokens import Query, continuation
from zerounlearn.model.weights import with_weights

_RANK, _ALPHA = 8, 16.0
_BATCH, _CLIP = 8, 1.0
_WORDS = 32
"""Tokens of a text that are read."""

Training = Callable[[Target], AbstractContextManager[list[nn.Parameter]]]


class Lesson(NamedTuple):
    """What is trained on, and which of `Target.all` are then asked."""

    samples: Sequence[Sample]
    asked: Sequence[int]


@attack(
    "relearning",
    label="Relearning",
    access=Access.TRAINING,
    quick={"steps": (2, 5), "lora": (2e-3,), "full": (), "others": 16, "texts": 0},
    standard={"steps": (2, 5, 10), "lora": (2e-3,), "full": (1e-4,), "others": 32, "texts": 64},
    thorough={
        "steps": (2, 5, 10, 20, 40, 80, 160),
        "lora": (3e-4, 1e-3, 4e-3),
        "full": (1e-5, 3e-5, 1e-4),
        "others": 100,
        "texts": 500,
    },
    needs=("peft",),
    source="arXiv 2410.08827 (half of the set), 2406.13356, 2602.03379 (benign)",
)
def relearning(
    target: Target,
    *,
    steps: Sequence[int],
    lora: Sequence[float],
    full: Sequence[float],
    others: int,
    texts: int,
) -> Iterator[Outcome]:
    """A little training on half of the facts, on other facts or on text, then the facts that were not trained on.

    Args:
        target: what to attack.
        steps: of AdamW, after which everything is asked; the last ends a run.
        lora: learning rates of adapters of rank 8 on all linear layers; with none, no adapters.
        full: learning rates of all weights; with none, they are left.
        others: facts of other subjects to train on, at most.
        texts: ordinary texts to train on, at most; those that tell a fact are left out.
    """
    _check(target, full)
    kinds = list(_lessons(target, others, texts))
    if not kinds:
        raise AuditError("it has nothing to train on: give facts of two subjects, facts with neighbours, or text")
    start = target.plain()
    for way, rates, training in (("LoRA", lora, _lora), ("all weights", full, _full)):
        for name, lessons, note in kinds if rates else ():
            runs = [(lesson, rate) for lesson in lessons for rate in rates]
            yield _relearned(target, f"{name}, {way}", runs, steps, start, training, note)


def _lessons(target: Target, others: int, texts: int) -> Iterator[tuple[str, list[Lesson], str]]:
    """Each kind of training by its name, with a note."""
    halves = _halves(target)
    if len(halves) == 2:
        one, other = (_samples(target, [target.facts[i].request.query for i in half]) for half in halves)
        first, second = (_with_controls(target, half) for half in halves)
        note = "each fact is asked where the other half was trained on; facts about one subject are in one half"
        yield "half of the facts", [Lesson(other, first), Lesson(one, second)], note
    every = range(len(target.all))
    near = [query for query in target.others if _alike(target, query)]
    far = [query for query in target.others if query not in near]
    if chosen := [*near, *far][:others]:
        note = f"{min(len(near), others)} of {len(chosen)} in the facts' own words, about other subjects"
        yield "facts of other subjects", [Lesson(_samples(target, chosen), every)], note
    innocent = [text for text in target.texts[: 2 * texts] if not _tells(target, text)][:texts]
    if samples := text_samples(target.tokenizer, innocent, _WORDS):
        yield "ordinary text", [Lesson(samples, every)], f"{len(samples)} texts of up to {_WORDS} tokens"


def _halves(target: Target) -> list[list[int]]:
    """The facts' numbers in two parts of much the same size, drawn by the seed; one part if all have one subject."""
    about: dict[str, list[int]] = {}
    for i, fact in enumerate(target.facts):
        about.setdefault(fact.request.subject.casefold(), []).append(i)
    groups = list(about.values())
    drawn = [groups[i] for i in torch.randperm(len(groups), generator=target.generator()).tolist()]
    halves: list[list[int]] = [[], []]
    for group in sorted(drawn, key=len, reverse=True):
        halves.sort(key=len)
        halves[0] += group
    return [sorted(half) for half in halves if half]


def _with_controls(target: Target, half: Sequence[int]) -> list[int]:
    """Places in `Target.all` of these facts and of their controls."""
    _, controls = target.split(range(len(target.all)))
    return [*half, *(place for i in half for place in controls[i])]


def _alike(target: Target, query: Query) -> bool:
    """Whether another subject's prompt is in a fact's own words."""
    around = {(fact.request.before, fact.request.after) for fact in target.facts}
    return any(query.prompt.startswith(before) and query.prompt.endswith(after) for before, after in around)


def _tells(target: Target, text: str) -> bool:
    """Whether a text names a fact's subject and its answer."""
    return any(
        mentions(text, fact.request.subject, whole=False) and mentions(text, fact.request.answer, whole=False)
        for fact in target.facts
    )


def _samples(target: Target, queries: Sequence[Query]) -> list[Sample]:
    return [
        Sample.of(target.tokenizer, query.prompt, continuation(target.tokenizer, *query))
        for query in target.asked(queries)
    ]


def _relearned(
    target: Target,
    variant: str,
    runs: Sequence[tuple[Lesson, float]],
    steps: Sequence[int],
    start: Sequence[Finding],
    training: Training,
    note: str,
) -> Outcome:
    """Every lesson at every rate; of each fact and of each control the best step of any counts."""
    queries = [fact.request.query for fact in target.all]
    tries: dict[int, list[list[Finding]]] = {step: [[] for _ in queries] for step in steps}
    for lesson, rate in runs:
        with training(target) as parameters:
            for step in _descend(target, parameters, lesson.samples, rate, steps):
                scores = target.scores([queries[i] for i in lesson.asked])
                for i, score in zip(lesson.asked, scores, strict=True):
                    tries[step][i].append(Finding.of(score, f"step {step} at rate {rate:g}"))
    best = [Finding.best([at, *(one for step in steps for one in tries[step][i])]) for i, at in enumerate(start)]
    curve = [target.point(0, start)]
    for step in steps:
        if all(tries[step]):  # a rate too high for a model may end every run before
            curve.append(target.point(step, [Finding.best(each) for each in tries[step]]))
    return target.outcome(variant, best, curve=curve, axis="steps of training", note=note)


def _descend(
    target: Target, parameters: Sequence[nn.Parameter], samples: Sequence[Sample], rate: float, stops: Sequence[int]
) -> Iterator[int]:
    """AdamW on what is to be learnt; gives each of `stops` as it gets there, and ends where the loss is not finite."""
    reader, generator = Reader(target.model, target.tokenizer), target.generator()
    optimiser = MasterAdamW(parameters, lr=rate, weight_decay=0.0)
    order: list[int] = []
    for step in range(1, max(stops) + 1):
        if not order:
            order = torch.randperm(len(samples), generator=generator).tolist()
        batch, order = [samples[i] for i in order[:_BATCH]], order[_BATCH:]
        with torch.enable_grad():
            log_p = reader.log_p(batch)
            loss = likelihood(log_p, log_p.new_tensor([sample.size for sample in batch]))
            if not torch.isfinite(loss):
                return
            optimiser.take_gradients(loss, _CLIP)
        optimiser.step()
        if step in stops:
            yield step


@contextmanager
def _lora(target: Target) -> Iterator[list[nn.Parameter]]:
    names = linear_layers(target.model)
    with (
        frozen(target.model),
        adapted(target.model, names, rank=_RANK, alpha=_ALPHA, seed=target.seed, what="the attack 'relearning'"),
    ):
        trained = [p for name, p in target.model.named_parameters() if ".lora_" in name]
        for parameter in trained:
            parameter.requires_grad_(True)
        yield trained


@contextmanager
def _full(target: Target) -> Iterator[list[nn.Parameter]]:
    weights = dict(target.model.named_parameters())
    with with_weights(target.model, {name: p.detach() for name, p in weights.items()}), frozen(target.model):
        for parameter in weights.values():
            parameter.requires_grad_(True)
        yield list(weights.values())


def _check(target: Target, full: Sequence[float]) -> None:
    """Say that nothing can be trained here.

    Raises:
        AuditError: a weight is offloaded, or quantised and to be trained.
    """
    for name, parameter in target.model.named_parameters():
        if parameter.is_meta:
            raise AuditError(f"it trains, and {name} is offloaded: load the model whole")
        if full and not parameter.is_floating_point():
            raise AuditError(
                f"it trains all weights, and {name} is quantised: load the model in a floating-point dtype"
            )
