"""Relearning brings back what lies in the weights, and the half that is asked is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.audit.conftest import OTHERS, Forgetful
from zerounlearn.audit.attacks import relearning as module
from zerounlearn.audit.registry import attacks
from zerounlearn.audit.target import Outcome, Target
from zerounlearn.errors import AuditError
from zerounlearn.method.gradient.sequences import Reader, Sample
from zerounlearn.model.tokens import Query
from zerounlearn.model.weights import with_weights

MLP = "model.layers.0.mlp.down_proj.weight"
FEW: dict[str, Any] = {"steps": (1, 3), "lora": (1e-2,), "full": (), "others": 4, "texts": 4}


def run(target: Target, **changes: Any) -> list[Outcome]:
    return list(attacks["relearning"].run(target, **FEW | changes))


@pytest.mark.parametrize(
    ("scale", "rates"), [(0.2, {"lora": (1e-2,), "full": ()}), (0.0, {"lora": (), "full": (1e-2,)})]
)
def test_half_of_the_facts_brings_back_one_of_the_others_and_no_control(
    forgetful: Forgetful, scale: float, rates: dict[str, Any]
) -> None:
    """One layer's MLP is all but gone; what the others know is still there."""
    forgetful.edit.revert(forgetful.model)
    try:
        with with_weights(forgetful.model, {MLP: scale * forgetful.weights()[MLP]}):
            target = forgetful.target(others=(), texts=())
            [outcome] = run(target, steps=(5, 10, 20, 40), **rates)
    finally:
        forgetful.edit.apply(forgetful.model)
    start, *later = outcome.curve
    assert [point.x for point in outcome.curve] == [0, 5, 10, 20, 40]
    assert outcome.share >= max(point.facts for point in later) > start.facts
    assert outcome.alarms == 0
    assert "at rate 0.01" in "".join(one.how for one in outcome.facts)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[set[tuple[int, ...]]]:
    """The samples of each step of training; a new set where the asking of one lesson ends."""
    steps: list[set[tuple[int, ...]]] = []
    log_p = Reader.log_p

    def seen(self: Reader, samples: Sequence[Sample]) -> torch.Tensor:
        steps.append({sample.ids for sample in samples})
        return log_p(self, samples)

    monkeypatch.setattr(Reader, "log_p", seen)
    return steps


def test_what_is_asked_is_never_trained_on(
    forgetful: Forgetful, trained: list[set[tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = forgetful.target()
    asked: list[tuple[int, set[str]]] = []
    scores = Target.scores

    def seen(self: Target, queries: Sequence[Query]) -> Any:
        asked.append((len(trained), {Query(*query).text for query in queries}))
        return scores(self, queries)

    monkeypatch.setattr(Target, "scores", seen)
    outcomes = run(target)
    assert [outcome.variant for outcome in outcomes] == [
        "half of the facts, LoRA",
        "facts of other subjects, LoRA",
        "ordinary text, LoRA",
    ]
    facts = {fact.request.query.text for fact in target.facts}
    _, *lessons = asked  # all are asked before anything is trained
    taught = [{forgetful.tokenizer.decode(ids) for ids in step} for step in trained]
    for number, (done, texts) in enumerate(lessons):
        began = 3 * (number // 2)  # three steps a run, asked after the first and the third
        learnt = set().union(*taught[began:done])
        assert learnt and not learnt & texts
    halves = [texts & facts for _, texts in lessons[:4:2]]
    assert halves[0] | halves[1] == facts and not halves[0] & halves[1]
    assert [len(texts) for _, texts in lessons[:4]] == [10] * 4  # two facts with four controls each
    assert set().union(*taught[:6]) == facts


def test_facts_about_one_subject_are_in_one_half(forgetful: Forgetful) -> None:
    target = forgetful.target()
    first, second, *rest = target.facts
    twin = replace(second, request=replace(second.request, subject=first.request.subject.upper()))
    for seed in range(5):
        halves = module._halves(replace(target, facts=(first, twin, *rest), seed=seed))
        assert sorted(map(len, halves)) == [2, 2]
        assert sum({0, 1} <= set(half) for half in halves) == 1
    assert module._halves(replace(target, facts=(first, twin))) == [[0, 1]]
    kinds = [name for name, *_ in module._lessons(replace(target, facts=(first, twin), controls=((), ())), 4, 4)]
    assert kinds == ["facts of other subjects", "ordinary text"]


def test_facts_in_the_same_words_come_first_and_texts_that_tell_one_are_left_out(forgetful: Forgetful) -> None:
    target = forgetful.target(others=OTHERS[::-1], texts=["Paris is in France.", "Paris is where you are a reader."])
    _, (_, [others], note), (_, [texts], _) = module._lessons(target, 1, 4)
    assert [forgetful.tokenizer.decode(sample.ids) for sample in others.samples] == [OTHERS[0].text]
    assert note.startswith("1 of 1 in the facts' own words")
    assert [forgetful.tokenizer.decode(sample.ids) for sample in texts.samples] == ["Paris is where you are a reader."]


def test_the_seed_decides(forgetful: Forgetful) -> None:
    first, second, other = (run(forgetful.target(seed=seed), full=(1e-3,)) for seed in (0, 0, 1))
    assert first == second != other
    assert len({outcome.variant for outcome in first}) == 6


@pytest.mark.parametrize("way", ["lora", "full"])
def test_an_interruption_leaves_the_model_as_it_was(
    forgetful: Forgetful, way: str, trained: list[set[tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        run(forgetful.target(), **{"lora": (), "full": (), way: (1e-2,)})


def test_a_rate_too_high_ends_a_run_and_keeps_what_was_found(forgetful: Forgetful) -> None:
    outcome = run(forgetful.target(), lora=(), full=(1e30,), steps=(1, 5))[0]
    assert outcome.curve[0].x == 0 and not outcome.share


def test_weights_that_are_elsewhere_are_not_trained(forgetful: Forgetful) -> None:
    with torch.device("meta"):
        empty = type(forgetful.model)(forgetful.model.config)
    with pytest.raises(AuditError, match=r"model.embed_tokens.weight is offloaded"):
        run(replace(forgetful.target(), model=empty))


def test_with_nothing_to_train_on_it_says_so(forgetful: Forgetful) -> None:
    target = forgetful.target(others=(), texts=())
    with pytest.raises(AuditError, match="nothing to train on"):
        run(replace(target, facts=target.facts[:1], controls=target.controls[:1]))
