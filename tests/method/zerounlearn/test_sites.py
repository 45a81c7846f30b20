"""Edits at several places: one after another, each on the model as the one before left it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import FACTS, hparams_for, tiny
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import ConfigError, IllPosedError
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import unlearn

CORPUS = Corpus("tiny", lambda: [f"In the year {i} the weather of France was fine." for i in range(40)])
EARLY = {"layers": [0, 1], "fact_token": "subject_last", "strength": 0.5}
LATE = {"layers": [2], "fact_token": "last"}


def run_of(tmp_path: Path, sites: list[dict], **changes) -> ZeroUnlearn:
    layers = sorted({layer for site in sites for layer in site["layers"]})
    return hparams_for(layers, stats_dir=str(tmp_path), mom2_n_samples=40, mom2_dtype="float64", sites=sites, **changes)


def down(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if "down_proj" in name}


@pytest.mark.parametrize("sites", [[EARLY, LATE], [EARLY, {"layers": [1], "fact_token": "last"}]])
def test_two_sites_are_two_edits_one_after_the_other(small_tokenizer, tmp_path: Path, sites: list[dict]) -> None:
    run = run_of(tmp_path, sites, mom2_adjustment=False)  # without C, which the second edit would take anew
    at_once, in_turn = tiny("llama", len(small_tokenizer)), tiny("llama", len(small_tokenizer))
    before = down(at_once)
    edit = unlearn(at_once, small_tokenizer, FACTS, run, None)
    for site in run.by_site():
        unlearn(in_turn, small_tokenizer, FACTS, site, None)
    for name, value in down(in_turn).items():
        assert torch.equal(value, dict(at_once.named_parameters())[name])
    assert [outcome.layer for outcome in edit.layers] == [layer for site in sites for layer in site["layers"]]
    after = down(at_once)
    edit.revert(at_once)
    assert all(torch.equal(value, before[name]) for name, value in down(at_once).items())
    edit.apply(at_once)  # from the factors, those of a layer that two sites edit among them
    for name, value in down(at_once).items():
        assert (value - after[name]).norm() <= 1e-6 * (after[name] - before[name]).norm()


def test_every_layers_statistics_are_of_the_model_before_the_first_site(small_tokenizer, tmp_path: Path) -> None:
    alone = unlearn(tiny("llama", len(small_tokenizer)), small_tokenizer, FACTS, run_of(tmp_path / "a", [LATE]), CORPUS)
    both = unlearn(
        tiny("llama", len(small_tokenizer)), small_tokenizer, FACTS, run_of(tmp_path / "b", [EARLY, LATE]), CORPUS
    )
    assert both.statistics["C of layer 2"] == alone.statistics["C of layer 2"]
    assert set(both.statistics) == {"corpus", "C of layer 0", "C of layer 1", "C of layer 2"}


def test_a_failure_at_the_second_site_takes_the_first_back(
    small_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", len(small_tokenizer))
    before, steps = down(model), []
    check = module._check_progress

    def fails_late(layers, gap) -> None:
        steps.append(layers[-1].layer)
        check(layers, gap)
        if layers[-1].layer == 2:
            raise IllPosedError("stopped here")

    monkeypatch.setattr(module, "_check_progress", fails_late)
    with pytest.raises(IllPosedError, match="stopped here"):
        unlearn(model, small_tokenizer, FACTS, run_of(tmp_path, [EARLY, LATE]), CORPUS)
    assert steps == [0, 1, 2]
    assert all(torch.equal(value, before[name]) for name, value in down(model).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": [{"layers": [1]}], "layers": [1, 2]}, r"layers=\[1, 2\]: with sites .* set layers=\[1\]"),
        ({"sites": [{"layers": [0, 2]}], "layers": [0, 2]}, r"layers=\[0, 2\]: expected consecutive"),
        ({"sites": [{"layers": []}]}, r"layers=\[\]: name at least one"),
        (
            {"sites": [{"layers": [1], "strength": 0}], "layers": [1]},
            r"sites\[0\].strength=0: input should be greater than 0",
        ),
        (
            {"sites": [{"layers": [1], "place": "last"}], "layers": [1]},
            r"sites\[0\].place='last': there is no such name",
        ),
        ({"sites": [{"fact_token": "last"}], "layers": [1]}, r"sites\[0\].layers is missing"),
        ({"sites": 3}, "sites=3: expected a list of mappings"),
    ],
)
def test_sites_that_mean_nothing_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroUnlearn(**{"layers": [1], **changes})


def test_vectors_of_an_earlier_run_are_of_one_site(small_tokenizer, tmp_path: Path) -> None:
    model = tiny("llama", len(small_tokenizer))
    run = run_of(tmp_path, [EARLY, LATE])
    found = unlearn(model, small_tokenizer, FACTS, run.by_site()[0], CORPUS)
    found.revert(model)
    with pytest.raises(ConfigError, match="several"):
        unlearn(model, small_tokenizer, FACTS, run, CORPUS, vectors=found.vectors)
