"""Statistics: right, masked, shared with EasyEdit, never taken for another's, resumable, and whole or absent."""

from __future__ import annotations

import copy
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import FACTS, GPT2, hparams_for, tiny
from zerounlearn.data.corpora import Corpus, check_corpus, open_corpus
from zerounlearn.errors import ConfigError, IllPosedError, OutputError, StatisticsError
from zerounlearn.method.zerounlearn.method import find_layout, unlearn
from zerounlearn.model.fingerprint import config_digest, fingerprints, tensor_digest, tokenizer_digest
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.memory import free_memory, good_tokens
from zerounlearn.statistics import collect as module
from zerounlearn.statistics.collect import auto_batch_tokens, second_moments
from zerounlearn.statistics.config import StatisticsConfig
from zerounlearn.statistics.files import Key, MomentFile, StoredMoments
from zerounlearn.statistics.processes import Processes

TEXTS = [f"{'People in Lisbon said so. ' * (i % 5)}In the year {i} the weather was fine." for i in range(150)]
CORPUS = Corpus("tiny", lambda: TEXTS)


@pytest.fixture
def hp(tmp_path: Path):
    return hparams_for(
        [1, 2], mom2_n_samples=150, stats_dir=str(tmp_path), mom2_dtype="float64", stats_batch_tokens=256
    )


@pytest.fixture
def model(small_tokenizer):
    return tiny("llama", len(small_tokenizer))


def one_by_one(model, tokenizer, layer: int, length: int = 512) -> torch.Tensor:
    rows = []
    projection = model.model.layers[layer].mlp.down_proj
    handle = projection.register_forward_pre_hook(lambda _, args: rows.append(args[0][0].detach()))
    for text in TEXTS:
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"][:length]]))
    handle.remove()
    X = torch.cat(rows)
    return X.mT @ X / len(X)


def test_batched_moments_equal_one_text_at_a_time(small_tokenizer, model, hp) -> None:
    moments = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    for layer in hp.layers:
        assert_close(moments[layer], one_by_one(model, small_tokenizer, layer), rtol=1e-9, atol=1e-12)
        # V Kᵀ = W C: the identity that saves the second pass
        W = model.model.layers[layer].mlp.down_proj.weight.detach()
        assert torch.linalg.matrix_rank(W @ moments[layer]) > 0


def test_nothing_above_the_last_edited_layer_runs(small_tokenizer, model, hp) -> None:
    ran: list[int] = []
    for i, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    assert set(ran) == {0, 1, 2}
    assert ran.count(0) == ran.count(2), "the corpus went through once for all layers"


def test_easyedit_reads_ours_and_we_read_easyedits(small_tokenizer, model, hp, tmp_path: Path) -> None:
    from zerounlearn.easyedit.editions.compat import framework

    runningstats = __import__(f"{framework().module.__name__}.util.runningstats", fromlist=["x"])
    moments = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    file = tmp_path / "model/tiny_stats/model.layers.1.mlp.down_proj_float64_mom2_150.npz"
    stat = runningstats.CombinedStat(mom2=runningstats.SecondMoment())
    loader = runningstats.tally(stat, None, cache=str(file), sample_size=150, quiet=True)
    assert list(loader) == []
    assert_close(stat.mom2.moment(), moments[1])

    theirs = runningstats.CombinedStat(mom2=runningstats.SecondMoment())
    X = torch.randn(300, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs.add(X)
    foreign = tmp_path / "model/wikipedia_stats/model.layers.1.mlp.down_proj_float64_mom2_9.npz"
    runningstats.save_cached_state(str(foreign), theirs, {"sample_size": 9})
    run = dataclasses.replace(hp, layers=[1], mom2_n_samples=9)
    never = Corpus("wikipedia", lambda: pytest.fail("the cached statistic was not used"))
    assert_close(second_moments(find_layout(model, run), small_tokenizer, run, never)[1], X.mT @ X / 300)


def test_each_edition_finds_ours_under_its_own_name(small_tokenizer, model, hp, tmp_path: Path) -> None:
    """The checkout names a model's folder by the last part of its path, the wheel by all of it."""
    from zerounlearn.easyedit.editions.compat import framework

    model.config._name_or_path = "models/tiny"
    moments = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    runningstats = __import__(f"{framework().module.__name__}.util.runningstats", fromlist=["x"])
    for folder in ("tiny", "models_tiny"):
        file = tmp_path / folder / "tiny_stats/model.layers.2.mlp.down_proj_float64_mom2_150.npz"
        stat = runningstats.CombinedStat(mom2=runningstats.SecondMoment())
        assert list(runningstats.tally(stat, None, cache=str(file), sample_size=150, quiet=True)) == []
        assert_close(stat.mom2.moment(), moments[2])


def test_what_is_not_finite_is_neither_stored_nor_kept(small_tokenizer, model, hp) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(IllPosedError, match="layer 2.*NaN"):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    assert not [p.name for p in Path(hp.stats_dir).rglob("*") if p.is_file() and "layers.1" not in p.name]


def test_a_second_run_reads_the_cache(small_tokenizer, model, hp) -> None:
    first = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    never = Corpus("tiny", lambda: pytest.fail("computed again"))
    again = second_moments(find_layout(model, hp), small_tokenizer, hp, never)
    assert all(torch.equal(first[layer], again[layer]) for layer in hp.layers)


@pytest.mark.parametrize("amount", ["0.5m", "2.25m", "auto", "1000m"])
def test_tokens_are_counted_by_the_layers_inputs(amount: str, small_tokenizer, model, hp, tmp_path: Path) -> None:
    run = hp.replace(mom2_n_samples=amount, stats_max_length=16)
    moments = second_moments(find_layout(model, run), small_tokenizer, run, CORPUS)
    wanted = math.ceil(48 * float(amount.removesuffix("m"))) if amount != "auto" else 480
    lengths = [len(small_tokenizer(text)["input_ids"][:16]) for text in TEXTS]
    order = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(1)).tolist()
    ends = list(itertools.accumulate(lengths[i] for i in order))
    texts = next((n for n, end in enumerate(ends, 1) if end >= wanted), len(TEXTS))
    file = tmp_path / f"model/tiny_stats/model.layers.1.mlp.down_proj_float64_mom2_{wanted}-tokens.npz"
    assert int(np.load(file)["mom2.count"]) == ends[texts - 1]
    whole = hp.replace(mom2_n_samples=texts, stats_max_length=16, stats_dir=str(tmp_path / "texts"))
    assert_close(moments[2], second_moments(find_layout(model, whole), small_tokenizer, whole, CORPUS)[2])
    never = Corpus("tiny", lambda: pytest.fail("computed again"))
    assert_close(second_moments(find_layout(model, run), small_tokenizer, run, never)[2], moments[2])


@pytest.mark.parametrize("amount", [10, "10", 10.0])
def test_a_number_of_texts_may_be_spelled_otherwise(amount: object) -> None:
    assert StatisticsConfig(layers=[1], mom2_n_samples=amount).mom2_n_samples == 10


@pytest.mark.parametrize("amount", [0, -3, True, 2.5, "m", "0m", "-1m", "1e3m", "10 m", "all", "", None, 2**63, [1]])
def test_an_amount_of_text_that_is_none_is_refused(amount: object) -> None:
    with pytest.raises(ConfigError, match="mom2_n_samples=.*a whole number of texts >= 1, 'auto', or tokens"):
        StatisticsConfig(layers=[1], mom2_n_samples=amount)


@pytest.mark.parametrize("what", ["weights", "dtype", "samples", "tokens", "corpus", "length"])
def test_what_differs_never_hits(what: str, small_tokenizer, model, hp) -> None:
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    asked: list[int] = []
    corpus = Corpus("other" if what == "corpus" else "tiny", lambda: asked.append(1) or TEXTS)
    changes = {
        "dtype": {"mom2_dtype": "float32"},
        "samples": {"mom2_n_samples": 40},
        "tokens": {"mom2_n_samples": "1m"},
        "length": {"stats_max_length": 5},
    }
    run = dataclasses.replace(hp, **changes.get(what, {}))
    if what == "weights":
        model.model.layers[0].self_attn.q_proj.weight.data.mul_(1.01)
    found = second_moments(find_layout(model, run), small_tokenizer, run, corpus)
    assert asked, f"a statistic of another {what} was used"
    if what in ("weights", "length"):
        expected = one_by_one(model, small_tokenizer, 1, run.stats_max_length)
        assert_close(found[1], expected, rtol=1e-9, atol=1e-12)
    # and both stay cached side by side
    second_moments(find_layout(model, run), small_tokenizer, run, Corpus(corpus.name, lambda: pytest.fail("again")))


def never(name: str = "tiny") -> Corpus:
    return Corpus(name, lambda: pytest.fail("taken again"))


def edited_and_saved(model, tokenizer, hp, folder: Path):
    """An edit of `model`, saved as `--output` does, loaded again from a folder of another name."""
    unlearn(model, tokenizer, FACTS, dataclasses.replace(hp, regularization_lam=3.0), CORPUS)
    model.save_pretrained(folder)
    Lineage.of(model).save(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    assert Lineage.of(loaded).origins == Lineage.of(model).origins != {}
    return loaded


def test_the_edited_model_goes_on_with_the_unedited_models_statistics(small_tokenizer, model, hp, tmp_path) -> None:
    layout = find_layout(model, hp)
    before = fingerprints(layout, hp.layers)
    loaded = edited_and_saved(model, small_tokenizer, hp, tmp_path / "copy")
    assert fingerprints(layout, [2]) != {2: before[2]}, "a fingerprint is measured, whatever is remembered"
    assert fingerprints(layout, [1]) == {1: before[1]}, "keys of the first edited layer do not depend on it"
    original = second_moments(find_layout(tiny("llama", len(small_tokenizer)), hp), small_tokenizer, hp, never())
    for each in (model, loaded):
        found = second_moments(find_layout(each, hp), small_tokenizer, hp, never())
        assert all(torch.equal(found[layer], original[layer]) for layer in hp.layers)
    assert not (tmp_path / "copy" / "tiny_stats").exists()


def test_another_layers_statistics_are_the_unedited_models_too(small_tokenizer, model, hp, tmp_path: Path) -> None:
    """A later edit may choose a layer above those of the first."""
    upper = dataclasses.replace(hp, layers=[3])
    original = second_moments(find_layout(model, upper), small_tokenizer, upper, CORPUS)[3]
    loaded = edited_and_saved(model, small_tokenizer, hp, tmp_path / "copy")
    assert torch.equal(second_moments(find_layout(loaded, upper), small_tokenizer, upper, never())[3], original)


def test_an_edited_models_statistics_are_never_given_to_the_original(
    small_tokenizer, model, hp, tmp_path: Path, caplog
) -> None:
    """Where the original's are not on disk: another machine, or another stats_dir."""
    loaded = edited_and_saved(model, small_tokenizer, hp, tmp_path / "copy")
    elsewhere = dataclasses.replace(hp, stats_dir=str(tmp_path / "elsewhere"))
    loaded.config._name_or_path = "model"  # under one name, as a copy of a folder has
    edited = second_moments(find_layout(loaded, elsewhere), small_tokenizer, elsewhere, CORPUS)
    assert "taken on the edited weights" in caplog.text and "zerounlearn stats" in caplog.text
    assert_close(edited[2], one_by_one(loaded, small_tokenizer, 2), rtol=1e-9, atol=1e-12)
    plain = tmp_path / "elsewhere/model/tiny_stats/model.layers.2.mlp.down_proj_float64_mom2_150.npz"
    assert not plain.exists(), "EasyEdit would take it for the original's"
    fresh = tiny("llama", len(small_tokenizer))
    original = second_moments(find_layout(fresh, elsewhere), small_tokenizer, elsewhere, CORPUS)
    assert_close(original[2], one_by_one(fresh, small_tokenizer, 2), rtol=1e-9, atol=1e-12)
    assert (original[2] - edited[2]).norm() > 0.01 * original[2].norm()
    again = second_moments(find_layout(loaded, elsewhere), small_tokenizer, elsewhere, never())
    assert torch.equal(again[2], edited[2]), "what was begun with is gone on with"


def test_sums_of_an_edited_model_do_not_join_those_of_the_original(
    small_tokenizer, model, hp, tmp_path: Path, monkeypatch
) -> None:
    loaded = edited_and_saved(model, small_tokenizer, hp, tmp_path / "copy")
    loaded.config._name_or_path = ""
    elsewhere = dataclasses.replace(hp, stats_dir=str(tmp_path / "elsewhere"))
    real, done = module.forward_until, []

    def interrupt(*args, **kwargs):
        done.append(len(kwargs["input_ids"]))
        if sum(done) > 100:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward_until", interrupt)
    fresh = tiny("llama", len(small_tokenizer))
    for each in (fresh, loaded):
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            second_moments(find_layout(each, elsewhere), small_tokenizer, elsewhere, CORPUS)
    assert len(list((tmp_path / "elsewhere").rglob(".*.partial.npz"))) == 2
    monkeypatch.setattr(module, "forward_until", real)
    for each in (loaded, fresh):
        found = second_moments(find_layout(each, elsewhere), small_tokenizer, elsewhere, CORPUS)
        assert_close(found[2], one_by_one(each, small_tokenizer, 2), rtol=1e-9, atol=1e-12)


def test_a_renamed_folder_finds_its_statistics(small_tokenizer, model, hp) -> None:
    expected = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    model.config._name_or_path = "models/renamed"
    assert torch.equal(second_moments(find_layout(model, hp), small_tokenizer, hp, never())[2], expected[2])


@pytest.mark.parametrize("what", ["tokenizer", "vocabulary", "rope", "attention window"])
def test_what_the_keys_depend_on_besides_the_weights_never_hits(what: str, small_tokenizer, hp) -> None:
    model = tiny("mistral", len(small_tokenizer))
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    other, tokenizer = copy.deepcopy(model), copy.deepcopy(small_tokenizer)
    if what == "tokenizer":
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    elif what == "vocabulary":
        tokenizer.add_tokens(["Lisbon"])
        other.resize_token_embeddings(len(tokenizer))
        tokenizer = small_tokenizer
    elif what == "rope":
        other.config.rope_parameters = {**other.config.rope_parameters, "rope_theta": 500.0}
    else:
        other.config.sliding_window = 3
    asked: list[int] = []
    second_moments(find_layout(other, hp), tokenizer, hp, Corpus("tiny", lambda: asked.append(1) or TEXTS))
    assert asked, f"a statistic of another {what} was used"


def test_calls_do_not_change_a_tokenizers_digest(small_tokenizer, tmp_path: Path) -> None:
    before = tokenizer_digest(small_tokenizer)
    tokenizer = copy.deepcopy(small_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "b c d"], truncation=True, max_length=2, padding=True)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_a_saved_models_configuration_is_that_of_the_model(small_tokenizer, model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    loaded.config.pad_token_id = 3
    assert config_digest(loaded) == config_digest(model)


def test_one_element_anywhere_changes_the_fingerprint(small_tokenizer, model, hp) -> None:
    """Also one that is not among those looked at."""
    layout = find_layout(model, hp)
    before = fingerprints(layout, [1, 2])
    weight = model.model.layers[1].mlp.up_proj.weight.data
    for place in ((0, 0), (17, 5), (31, 2)):
        kept = weight[place].clone()
        weight[place] *= 1 + 1e-12
        assert set(fingerprints(layout, [1, 2]).values()).isdisjoint(before.values())
        weight[place] = kept
    assert fingerprints(layout, [1, 2]) == before


def test_an_interrupted_pass_resumes_where_it_was(small_tokenizer, model, hp, monkeypatch) -> None:
    expected = second_moments(
        find_layout(model, hp), small_tokenizer, dataclasses.replace(hp, stats_dir=hp.stats_dir + "/x"), CORPUS
    )
    done: list[int] = []
    real = module.forward_until

    def interrupt(*args, **kwargs):
        done.append(kwargs["input_ids"].shape[0])
        if sum(done) > 100:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward_until", interrupt)
    with pytest.raises(KeyboardInterrupt):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    folder = Path(hp.stats_dir) / "model/tiny_stats"
    assert not list(folder.glob("*_mom2_*.npz"))
    assert len(list(folder.glob(".*.partial.npz"))) == 1
    rows: list[int] = []

    def count(*args, **kwargs):
        rows.append(kwargs["input_ids"].shape[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward_until", count)
    resumed = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    assert sum(rows) == 150 - 64
    assert all(torch.equal(resumed[layer], expected[layer]) for layer in hp.layers)
    assert not list(folder.glob(".*"))
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_what_was_done_is_kept_before_others_are_told_of_a_failure(
    small_tokenizer, model, hp, tmp_path: Path, monkeypatch
) -> None:
    """The others may be long in answering, and a launcher kills who does not end soon."""
    told: list[list[Path]] = []

    class Watching(Processes):
        def gather(self, value: Any) -> list[Any]:
            if isinstance(value, str) and "Interrupt" in value:
                told.append(list(tmp_path.rglob(".*.partial.npz")))
            return super().gather(value)

    real, done = module.forward_until, []

    def interrupt(*args, **kwargs):
        done.append(len(kwargs["input_ids"]))
        if sum(done) > 100:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward_until", interrupt)
    with pytest.raises(KeyboardInterrupt):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS, processes=Watching())
    assert [len(files) for files in told] == [1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no moment", "wrong size"])
def test_damaged_caches_are_named(damage: str, small_tokenizer, model, hp) -> None:
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    file = Path(hp.stats_dir) / "model/tiny_stats/model.layers.1.mlp.down_proj_float64_mom2_150.npz"
    whole = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("hello")
    elif damage == "no moment":
        np.savez(file, **{"mom2.count": 3})
    else:
        np.savez(file, **{"mom2.count": 3, "mom2.mom2": np.eye(5), "sample_size": 150})
    with pytest.raises(StatisticsError, match=r"mom2_150.npz.*(delete|belongs)"):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)


def test_statistics_that_are_not_finite_are_refused(small_tokenizer, model, hp) -> None:
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    file = Path(hp.stats_dir) / "model/tiny_stats/model.layers.2.mlp.down_proj_float64_mom2_150.npz"
    arrays = dict(np.load(file))
    arrays["mom2.mom2"][0, 0] = np.nan
    np.savez(file, **arrays)
    with pytest.raises(IllPosedError, match="layers.2.*NaN"):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written_leaves_nothing(code: int, small_tokenizer, model, hp, monkeypatch) -> None:
    def fail(stream, **_):
        stream.write(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OutputError, match="cannot write.*mom2_150.npz.*stats_dir"):
        second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    assert not [p for p in Path(hp.stats_dir).rglob("*") if p.is_file()]


def test_what_is_stored_describes_itself(small_tokenizer, model, hp) -> None:
    second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    file = Path(hp.stats_dir) / "model/tiny_stats/model.layers.1.mlp.down_proj_float64_mom2_150.npz"
    described = json.loads(str(np.load(file)["zerounlearn"]))
    assert described["samples"] == 150
    assert described["weights"] == fingerprints(find_layout(model, hp), [1])[1]


def test_fingerprints_of_all_layers_take_one_sweep(small_tokenizer, model, hp, monkeypatch) -> None:
    layout = find_layout(model, hp)
    one_by_one = {layer: fingerprints(layout, [layer])[layer] for layer in hp.layers}
    asked: list[str] = []
    real = Layout.tensor
    monkeypatch.setattr(Layout, "tensor", lambda self, name: asked.append(name) or real(self, name))
    assert fingerprints(layout, hp.layers) == one_by_one
    assert len(set(one_by_one.values())) == 2
    assert len(asked) == len(set(asked))
    assert "model.layers.2.mlp.up_proj.weight" in asked
    assert not [name for name in asked if "layers.3" in name or name in ("lm_head.weight", "model.norm.weight")]


def test_a_digest_is_of_the_bytes_in_order() -> None:
    C = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert tensor_digest(C) == hashlib.blake2b(C.numpy().tobytes(), digest_size=16).hexdigest()
    assert tensor_digest(C.mT) == tensor_digest(C.mT.contiguous()) != tensor_digest(C)


class _Allocations(TorchDispatchMode):
    """The bytes of the largest tensor that an operation makes anew."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        places = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in places:
                self.largest = max(self.largest, made.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("packed", [False, True])
def test_stored_moments_hold_one_layers_statistic_at_a_time(packed: bool, tmp_path: Path) -> None:
    m = 2048
    one = 4 * m * m
    files = {}
    for layer in range(3):
        key = Key(f"module.{layer}", "text", 10, 512, "float32", "w", "t", "c")
        files[layer] = MomentFile(tmp_path / key.file(), key, m)
        total = np.full((m, m), layer + 1.0, dtype=np.float32)
        (np.savez_compressed if packed else np.savez)(files[layer].path, **{"mom2.count": 4, "mom2.mom2": total})
        del total
    tracemalloc.start()
    with _Allocations() as made:
        for file in files.values():
            assert file.fits()
        moments = StoredMoments(files)
        for layer in moments:
            C = moments[layer]
            assert (C.dtype, float(C[5, 9])) == (torch.float32, (layer + 1) / 4)
            del C
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert one <= peak < 1.2 * one, "numpy reads one total at a time"
    assert held < 0.1 * one
    assert made.largest < 0.6 * one, "torch divides in place and looks for NaN in blocks"
    with pytest.raises(KeyError):
        moments[3]
    files[1].path.unlink()
    with pytest.raises(StatisticsError, match=r"module\.1.*unreadable"):
        moments[1]


def test_a_cache_replaced_during_a_run_is_not_taken_for_the_same(small_tokenizer, model, hp) -> None:
    moments = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    file = Path(hp.stats_dir) / "model/tiny_stats/model.layers.1.mlp.down_proj_float64_mom2_150.npz"
    arrays = dict(np.load(file))
    arrays["zerounlearn"] = np.array(json.dumps(json.loads(str(arrays["zerounlearn"])) | {"weights": "others"}))
    np.savez(file, **arrays)
    assert moments[2].shape == (48, 48)
    with pytest.raises(StatisticsError, match=r"layers\.1.*replaced during the run"):
        moments[1]


def test_batches_fill_the_memory_that_is_free(small_tokenizer, model, hp, monkeypatch) -> None:
    layout = find_layout(model, hp)

    def tokens(free: int, layers: list[int] | None = None, longest: int = 64, of: Layout = layout, **more: Any) -> int:
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        return auto_batch_tokens(of, layers or hp.layers, longest, **more)

    # 8 d + (3 + 2) m float64 numbers, one key picked and one in float64, a row of the mask
    assert tokens(10**6) == int(0.5 * 10**6 / (8 * (8 * 32 + 5 * 48) + 16 * 48 + 4 * 64))
    assert tokens(10**6, [1]) > tokens(10**6) > tokens(10**6, longest=512)
    assert tokens(2 * 10**6) in (2 * tokens(10**6), 2 * tokens(10**6) + 1)
    assert tokens(10**6, processes=Processes(0, 2)) == tokens(10**6) // 2
    half = find_layout(tiny("llama", len(small_tokenizer), dtype=torch.bfloat16), hp)
    eager = find_layout(tiny("llama", len(small_tokenizer), attention="eager"), hp)
    assert tokens(10**6, of=eager) < tokens(10**6) < tokens(10**6, of=half)
    assert tokens(0) == 1
    assert tokens(10**12) == good_tokens(torch.device("cpu"))
    assert 0 < free_memory(torch.device("cpu")) < 2**50


def test_batches_are_sized_by_memory_unless_a_size_is_given(small_tokenizer, model, hp, monkeypatch) -> None:
    shapes: list[int] = []
    real = module.forward_until
    monkeypatch.setattr(module, "forward_until", lambda *a, **k: shapes.append(k["input_ids"].numel()) or real(*a, **k))
    monkeypatch.setattr(module, "free_memory", lambda device: 10**6)
    room = auto_batch_tokens(find_layout(model, hp), hp.layers, 64)
    given = dataclasses.replace(hp, stats_dir=f"{hp.stats_dir}/given")
    expected = second_moments(find_layout(model, given), small_tokenizer, given, CORPUS)
    assert max(shapes) <= 256 != room
    shapes.clear()
    hp = hp.replace(stats_batch_tokens=None)
    found = second_moments(find_layout(model, hp), small_tokenizer, hp, CORPUS)
    assert room - 64 < max(shapes) <= room
    for layer in hp.layers:
        assert_close(found[layer], expected[layer], rtol=1e-12, atol=0)


def test_gpt2_and_texts_of_no_tokens(small_tokenizer, hp) -> None:
    model = tiny("gpt2", len(small_tokenizer))
    run = dataclasses.replace(hp, **GPT2)
    moments = second_moments(find_layout(model, run), small_tokenizer, run, Corpus("gaps", lambda: ["", *TEXTS, ""]))
    assert moments[1].shape == (128, 128)
    with pytest.raises(StatisticsError, match="no tokens"):
        second_moments(find_layout(model, run), small_tokenizer, run, Corpus("void", lambda: ["", ""]))


def test_local_files_and_names(tmp_path: Path) -> None:
    import pandas

    (tmp_path / "a.txt").write_text("One line.\nAnother line.\n")
    (tmp_path / "a.jsonl").write_text('{"text": "One line."}\n{"text": "Another line."}\n')
    pandas.DataFrame({"text": ["One line.", "Another line."]}).to_parquet(tmp_path / "a.parquet")
    names = set()
    for suffix in ("txt", "jsonl", "parquet"):
        corpus = open_corpus(str(tmp_path / f"a.{suffix}"))
        assert list(corpus.texts()) == ["One line.", "Another line."]
        names.add(corpus.name)
    assert len(names) == 3
    (tmp_path / "a.txt").write_text("Changed.\n")
    assert open_corpus(str(tmp_path / "a.txt")).name not in names, "the name must change with the content"
    for wrong in ("wikipaedia", str(tmp_path / "none.txt"), str(tmp_path / "a.docx")):
        with pytest.raises(ConfigError, match="mom2_dataset"):
            check_corpus(wrong)
    (tmp_path / "b.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(StatisticsError, match="no column 'text'"):
        open_corpus(str(tmp_path / "b.jsonl")).texts()
    assert open_corpus("embedded").name == "embedded"
    check_corpus("wikipedia")
