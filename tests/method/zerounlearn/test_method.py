"""The whole algorithm on small float64 models: against the plain implementation, and when things go wrong."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests import reference as plain
from tests.helpers import FACTS, GPT2, hparams_for, tiny
from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, IllPosedError, LayoutError, RequestError, ZeroUnlearnError
from zerounlearn.method.zerounlearn import solvers
from zerounlearn.method.zerounlearn.config import ZeroUnlearnGD
from zerounlearn.method.zerounlearn.method import find_layout, unlearn
from zerounlearn.model.tokens import continuation
from zerounlearn.statistics.collect import second_moments

TEXTS = [f"In the year {i} the weather of France was fine and people in Lisbon said so." for i in range(90)]
CORPUS = Corpus("tiny", lambda: TEXTS)


@pytest.fixture
def hp(tmp_path: Path):
    return hparams_for([1, 2], mom2_n_samples=90, stats_dir=str(tmp_path), mom2_dtype="float64", regularization_lam=3.0)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_it_equals_the_plain_implementation(small_tokenizer, hp) -> None:
    model, other = tiny("llama", len(small_tokenizer)), tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in hp.layers}
    handles = [
        other.model.layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0][0])
        )
        for layer in hp.layers
    ]
    for text in TEXTS:
        other(input_ids=torch.tensor([small_tokenizer(text)["input_ids"]]))
    for handle in handles:
        handle.remove()
    C = {
        layer: SecondMoment.zeros(48).add(torch.cat(rows), precision=torch.float64).mean()
        for layer, rows in seen.items()
    }
    facts = [
        (
            r.prompt,
            r.subject,
            continuation(small_tokenizer, r.prompt, r.answer),
            [small_tokenizer.eos_token_id],
        )
        for r in FACTS
    ]
    expected = plain.unlearn(other, small_tokenizer, facts, outcome.vectors.prefixes, C, hp)
    for layer, W in expected.items():
        written = model.model.layers[layer].mlp.down_proj.weight.detach()
        change = torch.linalg.norm(W - outcome.before[f"model.layers.{layer}.mlp.down_proj.weight"])
        assert torch.linalg.norm(written - W) < 1e-6 * change


def test_what_is_reported_is_so(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    before = weights(model)
    outcome = unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
    names = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in hp.layers}
    after = weights(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == names
    assert set(outcome.before) == names
    for layer in outcome.layers:
        name = f"model.layers.{layer.layer}.mlp.down_proj.weight"
        assert torch.equal(outcome.before[name], before[name])
        assert layer.rank == len(FACTS)
        assert layer.leakage < 1e-12
        change = (after[name] - before[name]).norm() / before[name].norm()
        assert layer.relative_change == pytest.approx(float(change), rel=1e-9)
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-9) <= 2 * len(FACTS)
    assert {"statistics", "contexts", "vectors", "keys", "solve"} == set(outcome.seconds)
    assert len(outcome.vectors.prefixes) == hp.n_contexts


def test_the_published_epsilon_leaves_a_hundredth(small_tokenizer, hp) -> None:
    outcome = unlearn(
        tiny("llama", len(small_tokenizer)),
        small_tokenizer,
        FACTS,
        dataclasses.replace(hp, projection_eps=0.01),
        CORPUS,
    )
    assert all(1e-4 < layer.leakage < 0.1 for layer in outcome.layers)


def test_the_same_seed_gives_the_same_weights_and_no_global_state_moves(small_tokenizer, hp) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    results = []
    for seed in (1, 1, 2):
        model = tiny("llama", len(small_tokenizer))
        unlearn(model, small_tokenizer, FACTS, dataclasses.replace(hp, seed=seed), CORPUS)
        results.append(model.model.layers[2].mlp.down_proj.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_side_does_not_matter(small_tokenizer, hp) -> None:
    results = []
    for side in ("left", "right"):
        small_tokenizer.padding_side = side
        model = tiny("llama", len(small_tokenizer))
        unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
        results.append(model.model.layers[2].mlp.down_proj.weight.detach())
    assert torch.equal(*results)


def test_a_retain_set_keeps_what_the_projection_leaves_of_its_outputs(small_tokenizer, hp) -> None:
    """On a kept key, remapping moves the output; with the key retained, little but the projection is left."""
    kept = Request.of("The capital of {} is", "Germany", "Berlin")
    key = plain.mean_key(tiny("llama", len(small_tokenizer)), small_tokenizer, kept.prompt, kept.subject, [], 1)

    def output(retain: list[Request], **changes: float) -> torch.Tensor:
        model = tiny("llama", len(small_tokenizer))
        run = dataclasses.replace(hp, n_contexts=0, **changes)
        unlearn(model, small_tokenizer, FACTS, run, CORPUS, retain=retain)
        return model.model.layers[1].mlp.down_proj.weight.detach() @ key

    projected = output([], forget_KKT_lam=1e-12, forget_VKT_lam=1e-12)
    free = output([]) - projected
    held = output([kept], retain_KKT_lam=1e9, retain_VKT_lam=1e9) - projected
    assert free.norm() > 1e-3 * projected.norm()
    assert held.norm() < 0.01 * free.norm()


def test_v_u_found_layer_by_layer_differs_after_the_first(small_tokenizer, hp) -> None:
    models = {}
    for mode in ("original", "edited"):
        models[mode] = tiny("llama", len(small_tokenizer))
        unlearn(models[mode], small_tokenizer, FACTS, dataclasses.replace(hp, sensitive_from=mode), CORPUS)
    first, second = (
        (
            models["original"].model.layers[i].mlp.down_proj.weight
            - models["edited"].model.layers[i].mlp.down_proj.weight
        ).norm()
        for i in (1, 2)
    )
    assert first < 1e-9
    assert second > 1e-4


def test_gpt2_is_edited_in_its_own_orientation(small_tokenizer, hp) -> None:
    model = tiny("gpt2", len(small_tokenizer))
    changed = dataclasses.replace(hp, **GPT2)
    outcome = unlearn(model, small_tokenizer, FACTS, changed, CORPUS)
    assert all(layer.leakage < 1e-12 for layer in outcome.layers)
    assert model.transformer.h[1].mlp.c_proj.weight.shape == (128, 32)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_half_weights_are_solved_in_double_and_written_back(dtype, bar, small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer), dtype=dtype)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(0.5)  # within float16's range
    outcome = unlearn(model, small_tokenizer, FACTS, dataclasses.replace(hp, mom2_dtype="float32"), CORPUS)
    assert model.model.layers[1].mlp.down_proj.weight.dtype == dtype
    assert all(layer.leakage < bar for layer in outcome.layers)
    assert all(layer.relative_change > 1e-3 for layer in outcome.layers)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failure_in_the_second_layer_restores_the_first(error, small_tokenizer, hp, monkeypatch) -> None:
    model = tiny("llama", len(small_tokenizer)).train()
    before = weights(model)
    calls: list[int] = []
    real = solvers.solve_update

    def fail_later(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            assert not torch.equal(
                model.model.layers[1].mlp.down_proj.weight, before["model.layers.1.mlp.down_proj.weight"]
            )
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(solvers, "solve_update", fail_later)
    with pytest.raises(type(error)):
        unlearn(model, small_tokenizer, FACTS, hp, CORPUS)
    assert len(calls) == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def refused(kind: type[ZeroUnlearnError], match: str, model, tokenizer, requests, hp, corpus=CORPUS) -> None:
    before = weights(model)
    with pytest.raises(kind, match=match):
        unlearn(model, tokenizer, requests, hp, corpus)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if value.isfinite().all())


def test_bad_input_is_refused_before_anything_changes(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    refused(RequestError, "empty", model, small_tokenizer, [], hp)
    refused(RequestError, "duplicates", model, small_tokenizer, [FACTS[0], FACTS[1], FACTS[0]], hp)
    refused(
        LayoutError,
        r"layers=\[3, 4\].*0 to 3",
        model,
        small_tokenizer,
        FACTS,
        dataclasses.replace(hp, layers=[3, 4]),
    )
    wrong = dataclasses.replace(hp, layer_module_tmp="model.block.{}")
    refused(
        LayoutError,
        r"layer_module_tmp='model.block.\{\}'.*model.layers",
        model,
        small_tokenizer,
        FACTS,
        wrong,
    )
    wrong = dataclasses.replace(hp, rewrite_module_tmp="model.layers.{}.mlp.fc_out")
    refused(LayoutError, "rewrite_module_tmp.*fc_out", model, small_tokenizer, FACTS, wrong)
    refused(
        LayoutError,
        "lm_head_module.*head9",
        model,
        small_tokenizer,
        FACTS,
        dataclasses.replace(hp, lm_head_module="head9"),
    )
    refused(LayoutError, "v_loss_layer=9", model, small_tokenizer, FACTS, dataclasses.replace(hp, v_loss_layer=9))
    refused(ConfigError, "mom2_adjustment", model, small_tokenizer, FACTS, hp, None)
    same = dataclasses.replace(hp, neutral_target="Paris")
    refused(RequestError, "equals the neutral target", model, small_tokenizer, FACTS, same)


def test_weights_that_are_not_finite_are_refused(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.model.layers[2].mlp.down_proj.weight.data[3, 3] = float("inf")
    refused(
        IllPosedError,
        r"model.layers.2.mlp.down_proj.weight: NaN or Inf in the weight",
        model,
        small_tokenizer,
        FACTS,
        hp,
    )


def test_quantised_weights_are_refused(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    packed = torch.nn.Parameter(
        torch.zeros(768, 1, dtype=torch.uint8), requires_grad=False
    )  # bitsandbytes' 4-bit layout
    model.model.layers[1].mlp.down_proj.weight = packed
    with pytest.raises(LayoutError, match=r"model.layers.1.mlp.down_proj.*quantised"):
        find_layout(model, hp)
    del model.model.layers[1].mlp.down_proj.weight  # GPTQ has `qweight` instead
    model.model.layers[1].mlp.down_proj.register_parameter("weight", None)
    with pytest.raises(LayoutError, match="quantised"):
        find_layout(model, hp)


def test_offloaded_weights_are_refused(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.model.layers[1].mlp.down_proj.to("meta")
    with pytest.raises(LayoutError, match=r"model.layers.1.mlp.down_proj.weight is offloaded"):
        unlearn(model, small_tokenizer, FACTS, hp, CORPUS)


def test_singular_statistics_name_layer_and_remedy(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    model.model.layers[2].mlp.down_proj.weight.data[5] = 0.0
    refused(IllPosedError, r"layer 2.*regularization_lam", model, small_tokenizer, FACTS, hp)


def test_without_statistics_no_corpus_is_needed(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, dataclasses.replace(hp, mom2_adjustment=False), None)
    assert all(layer.leakage < 1e-12 for layer in outcome.layers)
    assert_close(outcome.seconds["statistics"], 0.0, atol=0.05, rtol=0)


def test_one_set_after_the_other(small_tokenizer, hp) -> None:
    """The first exact projection costs W its full row rank; the second set must be solved all the same."""
    model = tiny("llama", len(small_tokenizer))
    first = unlearn(model, small_tokenizer, FACTS[:1], hp, CORPUS)
    second = unlearn(model, small_tokenizer, FACTS[1:], hp, CORPUS)
    assert all(layer.leakage < 1e-12 for layer in (*first.layers, *second.layers))
    rank = torch.linalg.matrix_rank(model.model.layers[1].mlp.down_proj.weight.detach(), rtol=1e-10)
    assert rank < 32
    with torch.no_grad():
        for name, value in first.before.items():
            model.get_parameter(name).copy_(value)
    fresh = tiny("llama", len(small_tokenizer))
    for each in (model, fresh):  # restored weights make the memory of lost directions void
        unlearn(each, small_tokenizer, FACTS, hp, CORPUS)
    assert torch.equal(model.model.layers[2].mlp.down_proj.weight, fresh.model.layers[2].mlp.down_proj.weight)


def gd(hp, **changes: object) -> ZeroUnlearnGD:
    shared = {n: getattr(hp, n) for n in ("layers", "mom2_n_samples", "stats_dir", "mom2_dtype", "v_num_grad_steps")}
    return ZeroUnlearnGD(**({"model_name": "tiny"} | shared | changes))


@pytest.mark.integration
def test_the_gradient_variant_keeps_what_text_uses_and_moves_the_forget_keys(small_tokenizer, hp, caplog) -> None:
    """With a threshold that leaves half the key space free; and its two solvers on the same problem."""
    run = gd(hp, nullspace_threshold=0.05, nullspace_rule="energy")
    model = tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, run, CORPUS)
    assert all("null space of" in layer.form for layer in outcome.layers)
    C = second_moments(find_layout(tiny("llama", len(small_tokenizer)), run), small_tokenizer, run, CORPUS)[1]
    W = outcome.before["model.layers.1.mlp.down_proj.weight"]
    change = model.model.layers[1].mlp.down_proj.weight.detach() - W
    assert torch.linalg.matrix_rank(change, rtol=1e-9) <= len(FACTS)
    share = torch.trace(change @ C @ change.mT) / torch.trace(C)
    assert 0 < share < 0.05 * torch.linalg.matrix_norm(change, 2) ** 2
    adam = tiny("llama", len(small_tokenizer))
    steps = unlearn(adam, small_tokenizer, FACTS, dataclasses.replace(run, solver="adam", gd_steps=4000), CORPUS)
    assert steps.layers[0].leakage == pytest.approx(outcome.layers[0].leakage, rel=0.05)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # progress may be said


def test_an_empty_null_space_is_said_and_not_a_no_op(small_tokenizer, hp, caplog) -> None:
    model = tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, gd(hp, nullspace_threshold=1e-30), CORPUS)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "layer 1: no eigenvalue of C is at most nullspace_threshold=1e-30" in caplog.text
    assert all(layer.form == "soft null space" for layer in outcome.layers)
    assert all(layer.relative_change > 1e-3 for layer in outcome.layers)
