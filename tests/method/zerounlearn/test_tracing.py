"""Causal tracing and the logit lens equal plain whole runs, and find where the real model looks facts up."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from tests.helpers import FACTS, GPT2, hparams_for, tiny
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.method.zerounlearn import tracing
from zerounlearn.method.zerounlearn.tracing import STATES, TRACED_TOKENS, CausalTrace, causal_trace
from zerounlearn.model.tokens import continuation, locate

pytestmark = pytest.mark.integration  # the whole path of a method, many times
SAMPLES, WINDOW, NOISE = 2, 2, 3.0
NAMES = {
    "llama": ("model.layers.{}", "mlp.down_proj", "self_attn", "model.norm"),
    "qwen3": ("model.layers.{}", "mlp.down_proj", "self_attn", "model.norm"),
    "gpt2": ("transformer.h.{}", "mlp.c_proj", "attn", "transformer.ln_f"),
}


def plain(kind: str, model: Any, tokenizer: Any, requests: list[Request]) -> CausalTrace:
    """One fact, sample, state, layer and token at a time, through the whole model."""
    generator, embedding = torch.Generator().manual_seed(0), model.get_input_embeddings()
    places = {r: [locate(tokenizer, r.prompt, *r.subject_span, token) for token in TRACED_TOKENS] for r in requests}
    inside = [token for r in requests for token in places[r][0][0][places[r][0][1] : places[r][1][1] + 1]]
    scale = NOISE * float(embedding(torch.tensor(inside)).std())
    ordered = sorted(requests, key=lambda r: -len(places[r][0][0]))
    of_each = [
        _plain(kind, model, places[r], continuation(tokenizer, r.prompt, r.answer)[0], scale, generator)
        for r in ordered
    ]
    clean, corrupted, *grids = (sum(parts) / len(parts) for parts in zip(*of_each, strict=True))
    rows = [tuple(map(tuple, grid.tolist())) for grid in grids]
    restored = dict(zip(STATES, rows, strict=False))
    return CausalTrace(len(requests), clean, corrupted, restored, rows[-1], WINDOW)


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _plain(
    kind: str, model: Any, places: list[tuple[list[int], int]], answer: int, scale: float, generator: torch.Generator
) -> list[Any]:
    template, mlp, attention, norm = NAMES[kind]
    depth, embedding = model.config.num_hidden_layers, model.get_input_embeddings()
    blocks = [model.get_submodule(template.format(i)) for i in range(depth)]
    modules = {"block": blocks}
    modules |= {s: [b.get_submodule(n) for b in blocks] for s, n in (("mlp", mlp), ("attention", attention))}
    ids, subject = places[0][0], slice(places[0][1], places[1][1] + 1)
    seen: dict[Any, torch.Tensor] = {}

    def asked(hooks: dict[Any, Any]) -> float:
        with ExitStack() as stack:
            for module, hook in hooks.items():
                stack.enter_context(module.register_forward_hook(hook))
            return float(model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[answer])

    def keep(module: Any, _: Any, output: Any) -> None:
        seen[module] = first(output).clone()

    def restore(place: int) -> Any:
        def hook(module: Any, _: Any, output: Any) -> Any:
            changed = first(output).clone()
            changed[0, place] = seen[module][0, place]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    clean, corrupted = asked({module: keep for of in modules.values() for module in of}), 0.0
    grids = {state: torch.zeros(depth, len(TRACED_TOKENS), dtype=torch.float64) for state in (*STATES, "lens")}
    for layer, block in enumerate(blocks):
        for t, (_, place) in enumerate(places):
            logits = model.get_output_embeddings()(model.get_submodule(norm)(seen[block][0, place]))
            grids["lens"][layer, t] = logits.softmax(-1)[answer]
    for _ in range(SAMPLES):
        drawn = scale * torch.randn(len(ids[subject]), embedding.embedding_dim, generator=generator)

        def corrupt(_m: Any, _a: Any, output: torch.Tensor, drawn: torch.Tensor = drawn) -> torch.Tensor:
            changed = output.clone()
            changed[0, subject] += drawn
            return changed

        corrupted += asked({embedding: corrupt}) / SAMPLES
        for state, layer, t in itertools.product(STATES, range(depth), range(len(TRACED_TOKENS))):
            begin = min(max(0, layer - WINDOW // 2), depth - WINDOW)
            chosen = [layer] if state == "block" else range(begin, begin + WINDOW)
            hooks = {modules[state][i]: restore(places[t][1]) for i in chosen}
            grids[state][layer, t] += asked({embedding: corrupt} | hooks) / SAMPLES
    return [clean, corrupted, *grids.values()]


@pytest.mark.parametrize("whole", [False, True], ids=["suffixes", "whole rows"])
@pytest.mark.parametrize("kind", list(NAMES))
def test_it_equals_plain_runs(kind: str, whole: bool, small_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind, len(small_tokenizer))
    monkeypatch.setattr(tracing, "_known", lambda _layout, _tokenizer, asked: list(asked))
    if whole:
        monkeypatch.setattr("zerounlearn.model.replay.supports_suffix", lambda tape: False)
    method = hparams_for([0], **GPT2) if kind == "gpt2" else None
    found = causal_trace(model, small_tokenizer, FACTS, method, noise=NOISE, samples=SAMPLES, window=WINDOW)
    with torch.no_grad():
        expected = plain(kind, model, small_tokenizer, FACTS)
    assert found.facts == 3
    for name in ("clean", "corrupted", "lens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-10)
    for state in STATES:
        torch.testing.assert_close(found.restored[state], expected.restored[state], rtol=1e-6, atol=1e-10)
    assert found.restored["block"][-1][-1] == pytest.approx(found.clean), "the last block's last token is the answer"


def test_small_batches_give_the_same_and_leave_the_model_alone(
    small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(tracing, "_known", lambda _layout, _tokenizer, asked: list(asked))
    state = torch.get_rng_state()
    together = causal_trace(model, small_tokenizer, FACTS, samples=SAMPLES)
    monkeypatch.setattr(tracing, "good_tokens", lambda device: 1)
    one_by_one = causal_trace(model, small_tokenizer, FACTS, samples=SAMPLES)
    torch.testing.assert_close(dataclasses.asdict(together), dataclasses.asdict(one_by_one), rtol=1e-9, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_what_cannot_be_traced_is_refused(small_tokenizer) -> None:
    model = tiny("llama", len(small_tokenizer))
    with pytest.raises(RequestError, match="says none of these 3 facts"):
        causal_trace(model, small_tokenizer, FACTS)
    for wrong in ({"noise": 0.0}, {"noise": float("nan")}, {"samples": 0}, {"window": 0}):
        with pytest.raises(ConfigError, match="expected numbers above 0"):
            causal_trace(model, small_tokenizer, FACTS, **wrong)


@pytest.mark.slow
def test_the_real_model_recalls_at_the_subjects_last_token(smollm2) -> None:
    """ROME's finding: early blocks carry a fact at the subject's last token, late ones at the prompt's."""
    model, tokenizer = smollm2
    pairs = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome"}
    facts = [Request.of("The capital of {} is the city of", country, city) for country, city in pairs.items()]
    found = causal_trace(model, tokenizer, facts, samples=2)
    assert found.facts == 3
    assert found.clean > 0.3 > 0.15 > found.corrupted
    subject, last = TRACED_TOKENS.index("subject_last"), TRACED_TOKENS.index("last")
    early, late = found.restored["block"][5], found.restored["block"][-2]
    assert early[subject] > 0.5 * found.clean > 3 * early[last]
    assert late[last] > 0.9 * found.clean > 3 * late[subject]
    assert found.lens[-1][last] > 0.9 * found.clean > 3 * found.lens[5][last]
