"""The whole algorithm on a model whose edited layers accelerate keeps elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.helpers import FACTS
from tests.model.test_layout import IDS, hparams, logits, offloaded, plain
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import ConfigError, LayoutError
from zerounlearn.method.zerounlearn import method as module
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import layout_of, unlearn

pytestmark = pytest.mark.integration

CORPUS = Corpus("tiny", lambda: [f"In the year {i} the weather was fine." for i in range(60)])


def run_for(kind: str, folder: Path) -> ZeroUnlearn:
    return hparams(kind, mom2_n_samples=60, mom2_dtype="float64", stats_dir=str(folder), regularization_lam=3.0)


@pytest.mark.parametrize("place", ["mixed", "disk", "memory", "checkpoint"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_forgets_as_in_the_plain_model(kind: str, place: str, small_tokenizer, tmp_path: Path) -> None:
    there = offloaded(kind, place, tmp_path, len(small_tokenizer))
    here = plain(kind, len(small_tokenizer))
    before = logits(here)
    outcomes = [
        unlearn(layout.model, small_tokenizer, FACTS, run_for(kind, tmp_path / name), CORPUS)
        for name, layout in (("there", there), ("here", here))
    ]
    assert not torch.allclose(logits(here), before)
    assert_close(logits(there), logits(here), rtol=1e-7, atol=1e-7)
    for a, b in zip(outcomes[0].layers, outcomes[1].layers, strict=True):
        assert a.rank == b.rank
        assert a.leakage < 1e-10
        assert a.relative_change == pytest.approx(b.relative_change, rel=1e-6)
    for name, value in outcomes[1].before.items():
        assert torch.equal(outcomes[0].before[name], value)


@pytest.mark.parametrize("place", ["mixed", "memory"])
def test_a_failure_leaves_it_as_it_was(place: str, small_tokenizer, tmp_path: Path, monkeypatch) -> None:
    there = offloaded("llama", place, tmp_path, len(small_tokenizer))
    before = logits(there)
    real = module._Run._edit_layer

    def second_fails(run, layer, *args):
        if layer == 2:
            assert not torch.allclose(logits(there), before)
            raise KeyboardInterrupt
        return real(run, layer, *args)

    monkeypatch.setattr(module._Run, "_edit_layer", second_fails)
    with pytest.raises(KeyboardInterrupt):
        unlearn(there.model, small_tokenizer, FACTS, run_for("llama", tmp_path), CORPUS)
    assert torch.equal(logits(there), before)


def test_what_cannot_be_given_back_or_written_is_refused(small_tokenizer, tmp_path: Path) -> None:
    from zerounlearn.easyedit.adapter import apply_to_model

    there = offloaded("llama", "disk", tmp_path, len(small_tokenizer))
    before = logits(there)
    request = {"prompt": "The capital of France is", "subject": "France", "ground_truth": "Paris", "target_new": ""}
    run = dataclasses.replace(run_for("llama", tmp_path), mom2_adjustment=False)
    with pytest.raises(LayoutError, match="EasyEdit could not put it back"):
        apply_to_model(
            there.model, small_tokenizer, [request], run, return_orig_weights=True, keep_original_weight=True
        )
    assert torch.equal(logits(there), before)
    model, originals = apply_to_model(there.model, small_tokenizer, [request], run)
    assert originals == {}
    assert not torch.allclose(model(input_ids=IDS).logits, before)
    with torch.device("meta"):
        empty = plain("llama", len(small_tokenizer))
    with pytest.raises(LayoutError, match="no hook of accelerate loads it"):
        layout_of(empty.model, run)


def test_the_size_of_batches_may_be_left_open() -> None:
    assert hparams("llama").stats_batch_tokens is None
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="stats_batch_tokens"):
            hparams("llama", stats_batch_tokens=wrong)
