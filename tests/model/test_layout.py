"""Layout: modules found or refused, weights read and written wherever accelerate keeps them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from tests.helpers import GPT2, PREFIXES, hparams_for, tiny
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import LayoutError
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.method.zerounlearn.vectors import optimise
from zerounlearn.model.fingerprint import fingerprints
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.replay import Suffix
from zerounlearn.model.tape import record
from zerounlearn.statistics.collect import second_moments

KINDS = ["llama", "gpt2"]
PLACES = ["mixed", "disk", "memory", "checkpoint", "by parent"]
IDS = torch.tensor([[5, 9, 30, 41, 7, 8], [11, 3, 77, 2, 60, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


def offloaded(kind: str, place: str, folder: Path, size: int = 400, dtype: torch.dtype = torch.float64) -> Layout:
    """The same model as `plain`, with blocks 1 and 3 on disk, or all of it, or all of it in a dictionary."""
    model = tiny(kind, size, dtype=dtype)
    if place in ("mixed", "checkpoint"):
        prefix = "transformer.h" if kind == "gpt2" else "model.layers"
        places = {name: "cpu" for name, _ in model.named_modules() if name.count(".") == 1} | {"lm_head": "cpu"}
        places.pop(prefix)
        places |= {f"{prefix}.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
        if place == "mixed":
            dispatch_model(model, places, offload_dir=folder / "store")
        else:
            model.save_pretrained(folder / "checkpoint")
            model = AutoModelForCausalLM.from_pretrained(
                folder / "checkpoint", dtype=dtype, device_map=places, offload_folder=folder / "store"
            )
    elif place == "disk":
        disk_offload(model, folder / "store")
    elif place == "memory":
        cpu_offload(model)
    else:
        cpu_offload(model, preload_module_classes=["LlamaMLP", "GPT2MLP"])
    layout = find_layout(model, hparams(kind))
    assert layout.parameter(1).is_meta, "the test is about offloaded weights"
    return layout


def plain(kind: str, size: int = 400) -> Layout:
    return find_layout(tiny(kind, size), hparams(kind))


def hparams(kind: str, **changes: object):
    return hparams_for([1, 2], **(GPT2 if kind == "gpt2" else {}), **changes)


def logits(layout: Layout) -> torch.Tensor:
    with torch.no_grad():
        return layout.model(input_ids=IDS, attention_mask=MASK).logits


def hooks(layout: Layout) -> list[tuple[str, int]]:
    return [(name, id(m._hf_hook)) for name, m in layout.model.named_modules() if hasattr(m, "_hf_hook")]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_weight_is_edited_like_any_other(kind: str, place: str, tmp_path: Path) -> None:
    there, here = offloaded(kind, place, tmp_path), plain(kind)
    before, attached = logits(here), hooks(there)
    assert attached
    assert torch.equal(logits(there), before)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    there.check_writable()
    for layer in (1, 2):
        W = here.read(layer)
        assert W.shape == (32, there.inputs(layer))
        assert torch.equal(there.read(layer), W)
        for layout in (there, here):
            layout.write(layer, 1.5 * W + layer)
    assert torch.equal(there.read(1), here.read(1))
    for _ in range(2):  # it is still there after the weight has been dropped and loaded again
        assert torch.equal(logits(there), logits(here))
    assert not torch.allclose(logits(here), before)
    assert there.parameter(1).is_meta
    assert hooks(there) == attached
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files, "a checkpoint's file was changed"
    if place not in ("mixed", "checkpoint"):
        return  # transformers itself saves such a model without its weights
    there.model.save_pretrained(tmp_path / "edited")
    saved = load_file(tmp_path / "edited/model.safetensors")
    for layer, name in here.weight_names.items():
        assert torch.equal(saved[name], here.parameter(layer))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_written_is_stored_in_the_weights_own_dtype(dtype: torch.dtype, place: str, tmp_path: Path) -> None:
    there = offloaded("llama", place, tmp_path, dtype=dtype)
    W = torch.randn(32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there.write(1, W)
    logits(there)
    assert there.read(1).dtype == there.parameter(1).dtype == dtype
    assert torch.equal(there.read(1), W.to(dtype))


@pytest.mark.parametrize("place", PLACES)
def test_offloaded_weights_are_put_back_if_anything_fails(place: str, tmp_path: Path) -> None:
    there = offloaded("gpt2", place, tmp_path)
    before = logits(there)
    with pytest.raises(KeyboardInterrupt), there.restored([1, 2]) as saved:
        assert {name: value.shape for name, value in saved.items()} == {
            f"transformer.h.{i}.mlp.c_proj.weight": (128, 32) for i in (1, 2)
        }
        there.write(1, torch.zeros(32, 128, dtype=torch.float64))
        there.write(2, torch.zeros(32, 128, dtype=torch.float64))
        assert not torch.allclose(logits(there), before)
        raise KeyboardInterrupt
    assert torch.equal(logits(there), before)
    with there.restored([1]):
        there.write(1, torch.zeros(32, 128, dtype=torch.float64))
    assert not torch.allclose(logits(there), before), "without a failure nothing is put back"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_plain_model(kind: str, place: str, small_tokenizer, tmp_path: Path) -> None:
    there = offloaded(kind, place, tmp_path, len(small_tokenizer))
    here = plain(kind, len(small_tokenizer))
    assert fingerprints(there, [1, 2]) == fingerprints(here, [1, 2])
    corpus = Corpus("tiny", lambda: [f"In the year {i} the weather was fine." for i in range(20)])
    found = []
    for name, layout in (("there", there), ("here", here)):
        hp = hparams(kind, mom2_n_samples=20, mom2_dtype="float64", stats_dir=str(tmp_path / name))
        attached = hooks(layout)
        found.append(second_moments(layout, small_tokenizer, hp, corpus))
        assert hooks(layout) == attached
        assert not [m for m in layout.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    for layer in (1, 2):
        assert_close(found[0][layer], found[1][layer], rtol=1e-12, atol=0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_replay_is_that_of_the_plain_model(kind: str, place: str, tmp_path: Path) -> None:
    found = []
    for layout in (offloaded(kind, place, tmp_path), plain(kind)):
        tape = record(layout, IDS, MASK, replayed=range(2, 4), outputs=[1, 3], written=[1], attention=True)
        rows, start = torch.tensor([0, 1]), torch.tensor([2, 1])
        for whole in (False, True):
            suffix = Suffix(tape, rows, start, [4, 3], whole=whole)
            hidden = suffix.enter(tape.outputs[1], slice(0, 2)).clone().requires_grad_()
            state = hidden
            for layer in (2, 3):
                state = suffix.run(layer, state, 2)
            scores = layout.logits(state)
            scores.square().sum().backward()
            found.append([state, scores, hidden.grad, tape.outputs[3], tape.written[1]])
    for there, here in zip(found[:2], found[2:], strict=True):
        for a, b in zip(there, here, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("place", PLACES)
def test_vectors_are_those_of_the_plain_model(place: str, small_tokenizer, tmp_path: Path) -> None:
    from tests.method.zerounlearn.test_vectors import problems_for

    problems = problems_for(small_tokenizer, [1, 2])
    found = [
        optimise(layout, small_tokenizer, problems, PREFIXES, hparams("llama"), progress=None)
        for layout in (offloaded("llama", place, tmp_path, len(small_tokenizer)), plain("llama", len(small_tokenizer)))
    ]
    assert_close(found[0].vectors, found[1].vectors, rtol=1e-8, atol=1e-10)


def test_weights_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    layout = offloaded("llama", "disk", tmp_path)
    hook: AlignDevicesHook = layout.projections[2]._hf_hook
    hook.weights_map = MappingProxyType({"weight": layout.read(2)})
    with pytest.raises(LayoutError, match=r"layers\.2.*offloaded to a mappingproxy"):
        layout.check_writable()
    with torch.device("meta"):
        empty = find_layout(tiny("llama", 400), hparams("llama"))
    for attempt in (empty.check_writable, lambda: empty.read(1), lambda: empty.tensor("lm_head.weight")):
        with pytest.raises(LayoutError, match="no hook of accelerate loads it"):
            attempt()


def test_token_ids_go_where_an_offloaded_embedding_computes(tmp_path: Path) -> None:
    layout = offloaded("llama", "disk", tmp_path)
    assert layout.model.get_input_embeddings().weight.is_meta
    assert layout.device == layout.device_of(1) == torch.device("cpu")


@pytest.mark.parametrize("place", ["mixed", "memory"])
def test_frozen_leaves_an_offloaded_models_flags_as_they_were(place: str, tmp_path: Path) -> None:
    layout = offloaded("llama", place, tmp_path)
    layout.model.get_parameter("model.layers.1.mlp.up_proj.weight").requires_grad_(False)
    layout.model.get_parameter("model.layers.2.mlp.up_proj.weight").requires_grad_(False)
    before = {name: p.requires_grad for name, p in layout.model.named_parameters()}
    assert set(before.values()) == {True, False}
    with frozen(layout.model):
        assert not any(p.requires_grad for p in layout.model.parameters())
        logits(layout)
        assert not any(p.requires_grad for p in layout.model.parameters())
    assert {name: p.requires_grad for name, p in layout.model.named_parameters()} == before


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("kind", [*KINDS, "gemma2", "granite", "cohere"])
def test_logits_are_the_models_own(kind: str, dtype: torch.dtype, expected: torch.dtype) -> None:
    layout = find_layout(tiny(kind, 400, dtype=dtype), hparams(kind))
    with torch.no_grad():
        tape = record(layout, IDS, MASK, replayed=[], outputs=[3])
        found = layout.logits(tape.outputs[3])
    assert found.dtype == expected
    assert torch.equal(found, logits(layout).to(expected))


def test_templates_that_match_nothing_are_named() -> None:
    model = tiny("llama", 400)
    for changes, message in [
        ({"layer_module_tmp": "model.block.{}"}, r"layer_module_tmp.*model\.layers\.\{\}"),
        ({"rewrite_module_tmp": "model.layers.{}.mlp.fc"}, r"rewrite_module_tmp \(layer 1\)"),
        ({"ln_f_module": "model.final"}, "ln_f_module"),
        ({"lm_head_module": "head"}, "lm_head_module"),
        ({"layers": [3, 4]}, r"\[4\] is outside.*0 to 3"),
    ]:
        with pytest.raises(LayoutError, match=message):
            find_layout(model, hparams_for(**({"layers": [1, 2]} | changes)))
