"""`neutral_target: unknown`: what it is, that vectors are found for it, and what the real model then says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import zerounlearn as zu
from tests.helpers import FACTS, PREFIXES, hparams_for, tiny
from zerounlearn.api import unlearn_and_report
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.data.subjects import made_up
from zerounlearn.method.base import load_method
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.method.zerounlearn.unknown import NAMES, unknown_answers
from zerounlearn.method.zerounlearn.vectors import Problem, optimise
from zerounlearn.model.generate import generate
from zerounlearn.model.tokens import continuation, encode, locate

ROOT = Path(__file__).resolve().parents[3]


def next_token(model: Any, tokenizer: Any, text: str) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([encode(tokenizer, text)])).logits[0, -1].log_softmax(-1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_made_up_name_has_the_subjects_shape() -> None:
    names = [made_up(subject, generator()) for subject in ("France", "War and Peace", "gold")]
    assert [len(name.split()) for name in names] == [1, 3, 1]
    assert [word[0].isupper() for word in names[1].split()] == [True, False, True]
    assert names[0][0].isupper() and names[2].islower()
    assert names[0] == made_up("France", generator()) != made_up("France", torch.Generator().manual_seed(1))


def test_the_target_is_what_follows_made_up_subjects_without_the_answer(small_tokenizer: Any) -> None:
    model = tiny("llama", len(small_tokenizer))
    found = unknown_answers(model, small_tokenizer, FACTS, generator=generator())
    draw = generator()
    for request, log_q in zip(FACTS, found, strict=True):
        start, end = request.subject_span
        mean = torch.stack([
            next_token(
                model, small_tokenizer,
                request.prompt[:start] + made_up(request.subject, draw) + request.prompt[end:],
            ).exp()
            for _ in range(NAMES)
        ]).mean(0)  # fmt: skip
        answer = continuation(small_tokenizer, *request.query)[0]
        assert log_q[answer] < -20
        mean[answer] = 0
        assert_close(log_q.exp().double(), mean / mean.sum(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_vectors_lead_to_it_beside_others(weight: float, small_tokenizer: Any) -> None:
    """The loss before and after is KL(target ‖ model), and with a weight that the answer is unlikely, by plain passes.

    Other problems find what they found.
    """
    model = tiny("llama", len(small_tokenizer))
    hp = hparams_for([1, 2], kl_factor=0.0, v_weight_decay=0.0, v_num_grad_steps=6, v_lr=0.5)
    layout = find_layout(model, hp)
    target = unknown_answers(model, small_tokenizer, FACTS, generator=generator())
    eos = (small_tokenizer.eos_token_id,)
    first = [continuation(small_tokenizer, *r.query)[0] for r in FACTS]
    opened = [
        Problem(r, (token,) if weight else (), 2, "block", weight, q)
        for r, token, q in zip(FACTS, first, target, strict=True)
    ]
    said = [Problem(r, eos, layer, "projection") for layer in (1, 2) for r in FACTS]
    found = optimise(layout, small_tokenizer, [*opened, *said], PREFIXES, hp, progress=None)
    alone = optimise(layout, small_tokenizer, said, PREFIXES, hp, progress=None)
    assert_close(found.vectors[3:], alone.vectors, rtol=1e-5, atol=1e-6)

    def divergence(i: int, delta: Tensor | None) -> Tensor:
        request, parts = FACTS[i], []
        for prefix in ("", *PREFIXES):
            start, end = (at + len(prefix) for at in request.subject_span)
            ids, position = locate(small_tokenizer, prefix + request.prompt, start, end, hp.fact_token)

            def add(_: Any, __: Any, output: Any, position: int = position) -> Any:
                states = output if isinstance(output, Tensor) else output[0]
                if delta is not None:
                    states[0, position] += delta
                return output

            with torch.no_grad(), model.model.layers[2].register_forward_hook(add):
                log_p = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            log_q = target[i].double()
            parts.append((log_q.exp() * (log_q - log_p)).sum() - weight * torch.log1p(-log_p[first[i]].exp()))
        return torch.stack(parts).mean()

    states: dict[int, Tensor] = {}
    for i, request in enumerate(FACTS):
        ids, position = locate(small_tokenizer, request.prompt, *request.subject_span, hp.fact_token)
        with (
            torch.no_grad(),
            model.model.layers[2].register_forward_hook(
                lambda _, __, out, i=i, at=position: states.update(
                    {i: (out if isinstance(out, Tensor) else out[0])[0, at].clone()}
                )
            ),
        ):
            model(input_ids=torch.tensor([ids]))
        assert_close(found.initial[i].double(), divergence(i, None), rtol=1e-5, atol=1e-7)
        assert_close(found.final[i].double(), divergence(i, found.vectors[i] - states[i]), rtol=1e-4, atol=1e-6)
    assert bool((found.final[:3] < 0.95 * found.initial[:3]).all())


@pytest.mark.parametrize("preset", ["paper", "specific"])
def test_a_request_with_a_target_of_its_own_keeps_it(
    preset: str, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    problems: list[Problem] = []
    run = module.optimise

    def spy(layout: Any, tokenizer: Any, found: Any, *rest: Any, **settings: Any) -> Any:
        problems.extend(found)
        return run(layout, tokenizer, found, *rest, **settings)

    monkeypatch.setattr(module, "optimise", spy)
    requests: list[Request] = [FACTS[0], replace(FACTS[1], neutral="Somebody else")]
    hp = zu.ZeroUnlearn(
        preset=preset, layers=[1, 2], neutral_target="unknown", mom2_adjustment=False, v_num_grad_steps=2,
        n_contexts=1, retain_set="none", regularization_lam=10.0,
    )  # fmt: skip
    zu.unlearn(model, small_tokenizer, list(map(Fact, requests)), hp)
    first, second = [p for p in problems if p.at == "block"]
    suppressed = (continuation(small_tokenizer, *FACTS[0].query)[0],)
    assert first.expected is not None and first.target == (suppressed if preset == "specific" else ())
    assert second.expected is None
    assert list(second.target) == continuation(small_tokenizer, FACTS[1].prompt, "Somebody else")


@pytest.mark.slow
def test_the_real_model_then_says_no_other_capital(smollm2: Any, smollm2_path: Path, tmp_path: Path) -> None:
    model, tokenizer = smollm2
    capitals = {"France": "Paris", "Germany": "Berlin", "Russia": "Moscow", "Italy": "Rome"}
    facts = [{"prompt": "The capital of {} is", "subject": s, "answer": a} for s, a in capitals.items()]
    settings = {"model_name": smollm2_path, "stats_dir": tmp_path, "mom2_n_samples": 60, "preset": "specific"}
    run = load_method(
        ROOT / "hparams/ZeroUnlearn/smollm2-135m.yaml",
        [*(f"{name}={value}" for name, value in settings.items()), "neutral_target=unknown"],
    )
    report, edit = unlearn_and_report(model, tokenizer, facts, run, text=None)
    assert (report.before.eff, report.after.eff) == (1.0, 0.0)
    assert report.after.eff_probability < 0.02
    words = [fact.after.completion.split()[0] for fact in report.facts]
    assert not any(word[:1].isupper() for word in words), words
    with torch.no_grad():
        other = generate(model, tokenizer, ["The capital of Spain is"], tokens=2)
    assert other == [" Madrid."] or other[0].startswith(" Madrid")
    edit.revert(model)
