"""The forms that act on keys, what is kept, and what later edits keep of earlier ones, on small float64 models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tests import reference as plain
from tests.helpers import FACTS, hparams_for, tiny
from zerounlearn.data.corpora import Corpus
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, OutputError, RequestError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import unlearn
from zerounlearn.model.lineage import STATE_FILE, Lineage, Trace

TEXTS = [f"In the year {i} the weather of France was fine and people in Lisbon said so." for i in range(90)]
CORPUS = Corpus("tiny", lambda: TEXTS)
KEPT = Request.of("The capital of {} is", "Germany", "Berlin")
NAME = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def hp(tmp_path: Path):
    return hparams_for([1, 2], mom2_n_samples=90, stats_dir=str(tmp_path), mom2_dtype="float64", regularization_lam=3.0)


def key_of(request: Request, tokenizer, layer: int = 1) -> Tensor:
    return plain.mean_key(tiny("llama", len(tokenizer)), tokenizer, request.prompt, request.subject, [], layer)


def weight(model, layer: int = 1) -> Tensor:
    return model.get_parameter(NAME.format(layer)).detach().clone()


def test_orthogonality_on_the_forget_keys_alone(small_tokenizer, hp) -> None:
    """Nothing is left there of the sensitive directions, at rank n; elsewhere they stay."""
    model = tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, dataclasses.replace(hp, orthogonality="forget-keys"), CORPUS)
    for layer in outcome.layers:
        change = weight(model, layer.layer) - outcome.before[NAME.format(layer.layer)]
        assert layer.leakage < 1e-9
        assert layer.rank == len(FACTS)
        assert torch.linalg.matrix_rank(change, rtol=1e-9) <= len(FACTS)
        assert torch.linalg.matrix_rank(weight(model, layer.layer), rtol=1e-9) == 32, "no direction is lost"


def test_without_orthogonality_no_sensitive_vectors_are_looked_for(small_tokenizer, hp, monkeypatch) -> None:
    asked = []
    real = unlearn.__globals__["optimise"]

    def counted(layout, tokenizer, problems, *args, **kwargs):
        asked.extend(problems)
        return real(layout, tokenizer, problems, *args, **kwargs)

    monkeypatch.setitem(unlearn.__globals__, "optimise", counted)
    model = tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS, dataclasses.replace(hp, orthogonality="none"), CORPUS)
    assert [p.at for p in asked] == ["block"] * len(FACTS)
    assert [(layer.leakage, layer.rank) for layer in outcome.layers] == [(None, 0)] * 2
    assert all(layer.relative_change > 1e-4 for layer in outcome.layers)


@pytest.mark.parametrize("orthogonality", ["none", "forget-keys"])
def test_a_retain_set_is_kept_exactly(orthogonality: str, small_tokenizer, hp) -> None:
    key = key_of(KEPT, small_tokenizer)
    moved = {}
    for exactly in (False, True):
        model = tiny("llama", len(small_tokenizer))
        before = weight(model) @ key
        run = dataclasses.replace(hp, orthogonality=orthogonality, retain_exactly=exactly)
        outcome = unlearn(model, small_tokenizer, FACTS, run, CORPUS, retain=[KEPT] if exactly else [])
        moved[exactly] = (weight(model) @ key - before).norm() / before.norm()
        assert [layer.kept for layer in outcome.layers] == [int(exactly)] * 2
        assert all(layer.relative_change > 1e-4 for layer in outcome.layers)
    assert moved[False] > 1e-4
    assert moved[True] < 1e-9


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_each_context_moves_as_far_as_its_bare_prompt(strength: float, small_tokenizer, hp) -> None:
    """With nothing to hold it back the last edited layer's output moves by strength · δ in every context."""
    run = dataclasses.replace(
        hp, orthogonality="none", context_keys="each", fact_token="last", strength=strength, layers=[2],
        mom2_adjustment=False, regularization_lam=1e-9, v_num_grad_steps=8,
    )  # fmt: skip
    model, fresh = tiny("llama", len(small_tokenizer)), tiny("llama", len(small_tokenizer))
    outcome = unlearn(model, small_tokenizer, FACTS[:2], run, None)

    @torch.no_grad()
    def states(of, prompt: str) -> Tensor:
        seen: list[Tensor] = []
        handle = of.model.layers[2].register_forward_hook(lambda _, __, output: seen.append(output))
        for prefix in ("", *outcome.vectors.prefixes):
            of(input_ids=torch.tensor([small_tokenizer(prefix + prompt)["input_ids"]]))
        handle.remove()
        return torch.stack([hidden[0, -1] for hidden in seen])

    for request in FACTS[:2]:
        target = small_tokenizer.eos_token_id
        z = plain.compute_z(
            fresh, small_tokenizer, f"{request.prompt}", request.prompt, [target], outcome.vectors.prefixes, 2,
            dataclasses.replace(run, kl_factor=0.0), at_projection=False,
        )  # fmt: skip
        moved = states(model, request.prompt) - states(fresh, request.prompt)
        assert_close(moved, moved[:1].expand_as(moved), rtol=1e-5, atol=1e-5 * float(moved.norm()))
        step = z - states(fresh, request.prompt)[0]
        cosine = torch.nn.functional.cosine_similarity(moved[0], step, dim=0)
        assert cosine > 0.95, "the two optimisations differ in the KL term only"
        assert 0.8 * strength < moved[0].norm() / step.norm() < 1.2 * strength


@pytest.mark.parametrize("orthogonality", ["output", "none"])
def test_what_was_forgotten_earlier_stays_where_it_was_put(orthogonality: str, small_tokenizer, hp) -> None:
    """The keys of a first edit give what they gave after it, where without memory the second would move them."""
    run = dataclasses.replace(
        hp, layers=[1], orthogonality=orthogonality, forget_KKT_lam=1e6, forget_VKT_lam=1e6, n_contexts=0
    )
    key = key_of(FACTS[0], small_tokenizer)
    drift = {}
    for remembered in (True, False):
        model = tiny("llama", len(small_tokenizer))
        unlearn(model, small_tokenizer, FACTS[:1], run, CORPUS)
        first = weight(model) @ key
        if not remembered:
            Lineage.of(model).traces = {n: [Trace(t.keys[:0], t.outputs[:0], t.directions) for t in ts]
                                        for n, ts in Lineage.of(model).traces.items()}  # fmt: skip
        outcome = unlearn(model, small_tokenizer, [FACTS[2], KEPT], run, CORPUS)
        assert outcome.layers[0].kept == int(remembered)
        # What the second edit's own projection takes away is not its to keep.
        Q = torch.eye(32, dtype=torch.float64)
        if orthogonality == "output":
            lost = Lineage.of(model).traces[NAME.format(1)][-1].directions.double()
            Q = Q - lost @ lost.mT
        drift[remembered] = float((Q @ (weight(model) @ key - first)).norm() / first.norm())
    assert drift[True] < 0.02
    assert drift[False] > 5 * drift[True]


def test_the_second_projection_also_takes_away_what_the_first_did(small_tokenizer, hp) -> None:
    model = tiny("llama", len(small_tokenizer))
    unlearn(model, small_tokenizer, FACTS[:1], hp, CORPUS)
    Q = Lineage.of(model).traces[NAME.format(1)][0].directions.double()
    unlearn(model, small_tokenizer, FACTS[1:], hp, CORPUS)
    assert (Q.mT @ weight(model)).norm() < 1e-6 * weight(model).norm()


def test_a_saved_model_remembers(small_tokenizer, hp, tmp_path: Path) -> None:
    """Loaded again, the second edit is what it would have been in memory; without the file it is singular."""
    model = tiny("llama", len(small_tokenizer))
    unlearn(model, small_tokenizer, FACTS[:1], hp, CORPUS)
    model.save_pretrained(tmp_path / "first")
    Lineage.of(model).save(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float64).eval()
    for each in (model, loaded):
        unlearn(each, small_tokenizer, FACTS[1:], hp, CORPUS)
    change = (weight(model) - weight(tiny("llama", len(small_tokenizer)))).norm()
    assert (weight(loaded) - weight(model)).norm() < 1e-4 * change
    assert len(Lineage.of(loaded).traces[NAME.format(1)]) == 2
    assert sum(f.stat().st_size for f in (tmp_path / "first").glob(STATE_FILE)) < 60_000


def test_a_damaged_memory_is_named(small_tokenizer, hp, tmp_path: Path) -> None:
    model = tiny("llama", len(small_tokenizer))
    Lineage.of(model).save(tmp_path)
    assert not (tmp_path / STATE_FILE).exists(), "nothing to remember"
    unlearn(model, small_tokenizer, FACTS[:1], hp, CORPUS)
    Lineage.of(model).save(tmp_path)
    file = tmp_path / STATE_FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OutputError, match=f"{STATE_FILE}.*damaged"):
        Lineage.load(tmp_path)


def test_more_keys_than_inputs_are_kept_as_their_triangle() -> None:
    g = torch.Generator().manual_seed(1)
    K, W = torch.randn(40, 12, generator=g), torch.randn(6, 12, generator=g)
    trace = Trace.of(K, W, torch.zeros(6, 0))
    assert trace.keys.shape == (12, 12)
    assert_close(trace.keys.mT @ trace.keys, K.mT @ K, rtol=1e-5, atol=1e-4)
    assert trace.present(W)
    assert trace.present(W.to(torch.bfloat16))
    assert not trace.present(W + 0.1 * torch.randn(6, 12, generator=g))


def test_presets_and_what_overrides_them(tmp_path: Path) -> None:
    values = ZeroUnlearn.PRESETS["specific"]
    hp = ZeroUnlearn(model_name="x", layers=[1], preset="specific")
    assert {name: getattr(hp, name) for name in values} == values
    file = tmp_path / "run.yaml"
    file.write_text("model_name: x\nlayers: [1]\nfact_token: subject_last\nv_lr: 0.3\nforget_KKT_lam: 50\n")
    published = ZeroUnlearn.from_hparams(file)
    assert (published.fact_token, published.orthogonality) == ("subject_last", "output")
    hp = ZeroUnlearn.from_hparams(file, ["preset=specific"])
    assert (hp.z_objective, hp.forget_KKT_lam, hp.v_lr) == ("suppress", 50.0, 0.3)  # what the file says, wins
    hp = ZeroUnlearn.from_hparams(file, ["preset=specific", "context_keys=each", "strength=1"])
    assert (hp.context_keys, hp.strength, hp.z_objective) == ("each", 1.0, "suppress")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "exact"}, "preset='exact': expected one of paper, specific"),
        ({"orthogonality": "keys"}, "orthogonality='keys'"),
        ({"orthogonality": "none", "projection_eps": 0.01}, "projection_eps=0.01"),
        ({"retain_exactly": True}, "retain_exactly=True"),
        ({"strength": 0}, "strength=0.0: expected a number > 0"),
        ({"retain_set": " "}, "retain_set=' '"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroUnlearn(**({"model_name": "x", "layers": [1]} | changes))


def test_a_fact_cannot_be_both_forgotten_and_kept(small_tokenizer, hp) -> None:
    with pytest.raises(RequestError, match="The capital of France is"):
        unlearn(tiny("llama", len(small_tokenizer)), small_tokenizer, FACTS, hp, CORPUS, retain=FACTS[:1])
