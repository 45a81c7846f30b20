"""What a run leaves to be found on the model: layers and place, and the learning rate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import hparams_for, tiny
from zerounlearn.data.request import Request
from zerounlearn.data.sets.embedded import load_embedded
from zerounlearn.errors import ConfigError
from zerounlearn.method.zerounlearn import located as module
from zerounlearn.method.zerounlearn.config import ZeroUnlearn, ZeroUnlearnGD
from zerounlearn.method.zerounlearn.located import located
from zerounlearn.method.zerounlearn.method import layout_of, state_size, unlearn
from zerounlearn.method.zerounlearn.separability import GROUPS, SeparabilityMap, Separation

REQUESTS = [
    Request.of("The capital of France is", "France", "Paris"),
    Request.of("War and Peace was written by", "War and Peace", "Leo Tolstoy"),
]
SPECIFIC = ZeroUnlearn(model_name="any", preset="specific")


def test_auto_is_the_same_as_leaving_it_out(tmp_path: Path) -> None:
    path = tmp_path / "auto.yaml"
    path.write_text("alg_name: ZeroUnlearn\nmodel_name: m\npreset: specific\nlayers: auto\nv_lr: auto\n")
    run = ZeroUnlearn.from_hparams(path)
    assert (run.layers, run.v_lr) == ([], None)
    path.write_text("alg_name: ZeroUnlearn\nmodel_name: m\npreset: specific\n")
    assert ZeroUnlearn.from_hparams(path).to_dict() == run.to_dict()
    assert ZeroUnlearn(layers=[1]).v_lr == 0.1
    assert ZeroUnlearn(preset="specific", v_lr=0.2).v_lr == 0.2


def test_named_layers_stay(small_tokenizer: Any) -> None:
    run = SPECIFIC.replace(layers=[1, 2])
    assert located(run, tiny("llama", 400), small_tokenizer) is run


@pytest.mark.parametrize(
    ("run", "layers"),
    [(ZeroUnlearn(), [2, 3, 4]), (ZeroUnlearnGD(), [2, 3, 4]), (SPECIFIC, [0, 1, 2, 3, 4])],
)
def test_without_a_map_layers_are_taken_by_depth(
    run: Any, layers: list[int], small_tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_embedded", lambda part: load_embedded(part)[:3])
    model = tiny("llama", 400)
    monkeypatch.setattr(model.config, "num_hidden_layers", 5)
    with caplog.at_level(logging.WARNING):
        found = located(run, model, small_tokenizer)
    assert found.layers == layers
    assert ("too few to find layers by" in caplog.text) == (run is SPECIFIC)


def a_map(margins: dict[str, list[float]]) -> SeparabilityMap:
    rows = [
        Separation(layer, place, dict.fromkeys(GROUPS, 0.0) | {"paraphrases": margin}, dict.fromkeys(GROUPS, 0.5))
        for place, column in margins.items()
        for layer, margin in enumerate(column)
    ]
    return SeparabilityMap(tuple(rows), {})


@pytest.mark.parametrize(
    ("margins", "layers", "place"),
    [
        ({"last": [0.0, 0.1, 0.5, 0.5, 0.51], "subject_last": [0.1] * 5}, [2, 3], "last"),
        ({"last": [0.0, 0.1, 0.5, 0.5, 0.6], "subject_last": [0.1] * 5}, [3, 4], "last"),
        ({"last": [0.0] * 5, "subject_last": [0.4, 0.4, 0.1, 0.1, 0.1]}, [0, 1], "subject_last"),
    ],
)
def test_the_suggestion_is_the_first_of_the_windows_that_are_as_good(
    margins: dict[str, list[float]], layers: list[int], place: str
) -> None:
    found = a_map(margins).suggestion(2)
    assert found is not None
    assert (found.layers, found.fact_token) == (layers, place)


def test_the_map_is_of_packaged_facts_and_an_explicit_place_holds(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("The weather today was fine, and people in Lisbon said so.\n" * 8)
    monkeypatch.setattr(module, "known_entries", lambda model, tokenizer, entries: list(entries))
    run, model = SPECIFIC.replace(mom2_dataset=str(corpus)), tiny("llama", 400)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = located(run, model, small_tokenizer)
    assert len(found.layers) == min(5, model.config.num_hidden_layers)
    assert found.replace(layers=[]).to_dict() | {"fact_token": ""} == run.to_dict() | {"fact_token": ""}
    assert located(run, model, small_tokenizer).to_dict() == found.to_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert located(run.replace(fact_token="subject_last"), model, small_tokenizer).fact_token == "subject_last"
    with pytest.raises(ConfigError, match="fact_token='subject_first': layers are found for subject_last, last alone"):
        located(run.replace(fact_token="subject_first"), model, small_tokenizer)
    with pytest.raises(ConfigError, match="v_loss_layer=0: .* leave v_loss_layer out"):
        located(run.replace(v_loss_layer=0), model, small_tokenizer)


@pytest.mark.parametrize(("place", "share"), [("subject_last", 0.75 / 25), ("last", 0.3 * 0.75 / 25)])
def test_the_rate_is_a_share_of_the_size_of_the_states(place: str, share: float, small_tokenizer: Any) -> None:
    model = tiny("llama", len(small_tokenizer))
    run = hparams_for([1, 2], v_lr="auto", fact_token=place, n_contexts=0, mom2_adjustment=False, v_num_grad_steps=25)
    layout = layout_of(model, run)
    sizes = []
    for request in REQUESTS:
        ids = small_tokenizer(request.prompt, return_offsets_mapping=True)
        end = request.subject_span[1] if place == "subject_last" else len(request.prompt)
        at = max(i for i, (start, _) in enumerate(ids["offset_mapping"]) if start < end)
        with torch.no_grad():
            states = model(torch.tensor([ids["input_ids"]]), output_hidden_states=True).hidden_states
        sizes.append(float(states[3][0, at].float().square().mean().sqrt()))
    size = state_size(layout, small_tokenizer, REQUESTS, place, 2, written=False)  # type: ignore[arg-type]
    assert size == pytest.approx(sum(sizes) / 2, rel=1e-6)
    edit = unlearn(model, small_tokenizer, REQUESTS, run, None)
    assert edit.hparams["v_lr"] == pytest.approx(share * size, rel=6e-3)
    assert edit.hparams["layers"] == [1, 2]


def test_a_later_norm_makes_it_a_share_of_what_each_layer_writes(
    small_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("gemma2", len(small_tokenizer))
    run = hparams_for([1, 2], v_lr="auto", n_contexts=0, mom2_adjustment=False, v_num_grad_steps=25)
    size = state_size(layout_of(model, run), small_tokenizer, REQUESTS, run.fact_token, 1, written=True)
    with caplog.at_level(logging.INFO):
        edit = unlearn(model, small_tokenizer, REQUESTS, run, None)
    rates = [record.args for record in caplog.records if record.msg.startswith("v_lr=")]
    assert [layer for *_, layer in rates] == [1, 2]
    assert rates[0][0] == pytest.approx(run.clamp_norm_factor / run.v_num_grad_steps * size, rel=6e-3)
    assert edit.hparams["v_lr"] is None


@pytest.mark.parametrize(
    ("preset", "layers", "by_hand"),
    [("paper", (17, 20), 0.3), ("specific", (23, 28), 0.7), ("specific-1", (15, 20), 0.3)],
)
def test_the_rate_that_was_chosen_by_hand_comes_out(
    smollm2: Any, preset: str, layers: tuple[int, int], by_hand: float
) -> None:
    model, tokenizer = smollm2
    run = ZeroUnlearn(layers=list(range(*layers)), preset=preset, v_lr="auto")
    requests = [entry.fact.request for entry in load_embedded("development")[:20]]
    size = state_size(layout_of(model, run), tokenizer, requests, run.fact_token, run.layers[-1], written=False)
    share = run.clamp_norm_factor / run.v_num_grad_steps * (0.3 if run.fact_token == "last" else 1.0)
    assert share * size == pytest.approx(by_hand, rel=0.1)


@pytest.mark.slow
def test_about_the_layers_that_were_chosen_by_hand_come_out(smollm2: Any) -> None:
    found = located(zu.ZeroUnlearn(preset="specific"), *smollm2)
    assert found.fact_token == "last"
    assert abs(found.layers[0] - 23) <= 2 and len(found.layers) == 5
    assert located(zu.ZeroUnlearn(), *smollm2).layers == [17, 18, 19]
