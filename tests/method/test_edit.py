"""Edits: the same bits from memory and from a file; what is not whole, or not its model's, is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.data.request import fact_digest
from zerounlearn.errors import EditError, RequestError
from zerounlearn.model.lineage import STATE_FILE, Lineage

SPECIFIC = {"preset": "specific", "retain_set": "none", "z_objective": "neutral", "n_contexts": 1}
RUNS: dict[str, Callable[[], Any]] = {
    "paper": lambda: closed(),
    "specific": lambda: closed(**SPECIFIC),
    "published rounding": lambda: closed(projection_eps=0.01),
    "two sites": lambda: closed(sites=[{"layers": [1, 2]}, {"layers": [2], "fact_token": "last"}]),
    "every parameter": lambda: zu.GA(layers=[], steps=2, lr=1e-3),
    "NPO": lambda: zu.NPO(layers=[1, 2], retain_weight=0, steps=3, lr=1e-2),
}


def closed(**changes: Any) -> zu.ZeroUnlearn:
    return zu.ZeroUnlearn(**({"layers": [1, 2], "v_num_grad_steps": 3, "mom2_adjustment": False} | changes))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def remembered(model: Any) -> Any:
    lineage = Lineage.of(model)
    traces = {
        name: [tuple(x.tolist() for x in vars(t).values()) for t in held] for name, held in lineage.traces.items()
    }
    return dict(lineage.origins), {name: held for name, held in traces.items() if held}


@pytest.fixture
def make(small_tokenizer: Any) -> Any:
    def made(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
        return tiny(kind, len(small_tokenizer), dtype=dtype)

    return made


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_file_holds_the_edit_to_the_last_bit(
    kind: str, dtype: torch.dtype, run: str, make: Any, small_tokenizer: Any, tmp_path: Path
) -> None:
    model, file = make(kind, dtype), tmp_path / "edit.safetensors"
    before, forgotten = weights(model), [zu.Fact(request) for request in FACTS]
    edit = zu.unlearn(model, small_tokenizer, forgotten, RUNS[run]())
    after, left = weights(model), remembered(model)
    edit.save(file, originals=True)
    edit.revert(model)
    assert same(model, before) and remembered(model) == ({}, {})
    for source in (edit, zu.Edit.load(file)):
        source.apply(model)
        assert same(model, after) and remembered(model) == left
        assert set(source.before) == set(source.digests)
        if source is edit:
            source.revert(model)
    zu.Edit.load(file).revert(model)  # from the file alone
    assert same(model, before) and remembered(model) == ({}, {})

    read = zu.Edit.load(file)
    for name in ("method", "hparams", "digests", "layers", "statistics", "steps", "facts", "dtypes", "version"):
        assert getattr(read, name) == getattr(edit, name), name
    assert read.facts == [fact_digest(request) for request in FACTS]
    assert read.requests == () and not any(b"Paris" in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_originals_a_file_takes_back_exactly_or_not_at_all(
    dtype: torch.dtype, make: Any, small_tokenizer: Any, tmp_path: Path
) -> None:
    model, file = make(dtype=dtype), tmp_path / "edit.safetensors"
    edit = zu.unlearn(model, small_tokenizer, [zu.Fact(FACTS[0])], closed())
    after = weights(model)
    edit.save(file)
    with pytest.raises(EditError, match="cannot be had exactly.*--originals"):
        zu.Edit.load(file).revert(model)
    assert same(model, after)
    with pytest.raises(EditError, match="put it on its model, then save it"):
        zu.Edit.load(file).save(file, originals=True)


def test_the_sum_has_the_same_bits_however_many_threads(make: Any, small_tokenizer: Any) -> None:
    model = make()
    edit = zu.unlearn(model, small_tokenizer, [zu.Fact(request) for request in FACTS], closed())
    for name, (left, right) in edit.factors.items():
        expected = edit.before[name].double()
        for j in range(len(right)):
            expected = expected + left[:, j].double()[:, None] * right[j].double()
        assert torch.equal(expected.float(), model.get_parameter(name))


def test_a_sequence_over_files_and_saved_models_is_the_one_in_memory(
    make: Any, small_tokenizer: Any, tmp_path: Path
) -> None:
    """The third set is forgotten by a model that was saved, loaded, and put together from two files."""
    at_once, last = make(), closed()
    edits = []
    for request in FACTS[:2]:
        edits.append(zu.unlearn(at_once, small_tokenizer, [zu.Fact(request)], closed()))
        edits[-1].save(tmp_path / f"{len(edits)}.safetensors")
    zu.unlearn(at_once, small_tokenizer, [zu.Fact(FACTS[2])], last)

    from zerounlearn.model.loading import load_model, save_checkpoint

    in_turn = make()
    for i in (1, 2):
        zu.Edit.load(tmp_path / f"{i}.safetensors").apply(in_turn)
        save_checkpoint(in_turn, small_tokenizer, tmp_path / f"model-{i}")
        assert (tmp_path / f"model-{i}" / STATE_FILE).is_file()
        in_turn, _ = load_model(str(tmp_path / f"model-{i}"), device="cpu")
    edit = zu.unlearn(in_turn, small_tokenizer, [zu.Fact(FACTS[2])], last)
    assert [layer.kept for layer in edit.layers] == [2, 2]
    assert same(in_turn, weights(at_once)) and remembered(in_turn) == remembered(at_once)


def test_the_facts_digests(make: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    """The same whatever the Unicode form; under a key nobody else can make them."""
    composed = zu.Request.of("The capital of {} is", "Türkiye", "Ankara")
    decomposed = zu.Request.of("The capital of {} is", "Tu\u0308rkiye", "Ankara")
    assert (
        fact_digest(composed) == fact_digest(decomposed) != fact_digest(dataclasses.replace(composed, answer="Bursa"))
    )
    assert fact_digest(composed, b"k") not in (fact_digest(composed), fact_digest(composed, b"l"))
    edit = zu.unlearn(make(), small_tokenizer, [zu.Fact(composed)], closed())
    edit.save(tmp_path / "edit", key=b"k")
    read = zu.Edit.load(tmp_path / "edit")
    assert read.facts == [fact_digest(composed, b"k")] and edit.facts == [fact_digest(composed)]
    with pytest.raises(RequestError, match="knows no facts in clear"):
        read.save(tmp_path / "edit", key=b"l")


@pytest.mark.parametrize(("preset", "columns", "layers"), [("paper", 2, 3), ("specific", 1, 5)])
def test_fifty_facts_of_a_3b_llama_are_less_than_ten_megabytes(
    preset: str, columns: int, layers: int, make: Any, small_tokenizer: Any, tmp_path: Path
) -> None:
    """By the shapes: so many columns a fact and its key, for bfloat16 in two bytes a number.

    The same sum over a small model's shapes is the size of its file, up to the description and the exponents.
    """

    def size(facts: int, layers: int, d: int, m: int) -> int:
        return layers * facts * (columns * (d + m) + m) * 2

    assert size(50, layers, 3072, 8192) < 10e6
    model, method = make(dtype=torch.bfloat16), closed(preset=preset, retain_set="none")
    edit = zu.unlearn(model, small_tokenizer, [zu.Fact(request) for request in FACTS], method)
    edit.save(tmp_path / "edit")
    with safe_open(tmp_path / "edit", framework="pt") as stored:
        tensors = [stored.get_tensor(name) for name in stored.keys() if not name.endswith("exponents")]  # noqa: SIM118
    assert sum(x.numel() * x.element_size() for x in tensors) == size(len(FACTS), len(method.layers), 32, 48)
    assert all(x.dtype == torch.float16 for x in tensors if x.numel())


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """The file with another description and other tensors, its digest as it was."""
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    described = json.loads(metadata["zerounlearn"])
    change(described, tensors)
    save_file(
        tensors, file, metadata={"zerounlearn": json.dumps(described, sort_keys=True), "digest": metadata["digest"]}
    )


LEFT = "model.layers.1.mlp.down_proj.weight/left"
DAMAGED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "format": (lambda d, t: d.update(format=1), "has format 1, and zerounlearn .* reads 2: install the version"),
    "lacking": (lambda d, t: t.pop(LEFT), f"lacks the tensor {LEFT}"),
    "extra": (lambda d, t: t.update(more=torch.zeros(2)), "has a tensor too many: more"),
    "shape": (lambda d, t: t.update({LEFT: t[LEFT][:, :5].contiguous()}), f"damaged: {LEFT} is"),
    "dtype": (lambda d, t: t.update({LEFT: t[LEFT].double()}), f"damaged: {LEFT} is torch.float64"),
    "NaN": (lambda d, t: t[LEFT].view(-1)[0:1].fill_(float("nan")), f"damaged: {LEFT} is not finite"),
    "infinite": (lambda d, t: t[LEFT].view(-1)[0:1].fill_(float("inf")), f"damaged: {LEFT} is not finite"),
    "a bit": (lambda d, t: t[LEFT].view(torch.int32).view(-1)[3:4].bitwise_xor_(1), "its content is not what was"),
    "hparams": (lambda d, t: d["hparams"].update(layers=[3]), "its content is not what was written"),
    "digests": (lambda d, t: d.pop("digests"), "its content is not what was written"),
    "no tensors": (lambda d, t: (d.update(tensors={}), t.clear()), "its content is not what was written"),
    "nothing": (lambda d, t: (d.clear(), t.clear()), "is no edit, or damaged"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_not_whole_is_refused(kind: str, make: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "edit.safetensors"
    zu.unlearn(make(), small_tokenizer, [zu.Fact(FACTS[0])], closed()).save(file)
    change, message = DAMAGED[kind]
    rewritten(file, change)
    with pytest.raises(EditError, match=f"edit.safetensors' .*{message}"):
        zu.Edit.load(file)


def test_what_is_no_edit_is_refused(make: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "edit.safetensors"
    edit = zu.unlearn(make(), small_tokenizer, [zu.Fact(FACTS[0])], closed())
    edit.save(file)
    whole = file.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(EditError, match="is no edit, or damaged"):
            zu.Edit.load(file)
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(EditError, match="is a safetensors file, but no edit"):
        zu.Edit.load(file)
    with pytest.raises(EditError, match="gone' does not exist"):
        zu.Edit.load(tmp_path / "gone")
    with pytest.raises(EditError, match=str(tmp_path)):
        zu.Edit.load(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(zu.OutputError, match="name another file"):
        edit.save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_an_edit_goes_on_its_own_model_alone(make: Any, small_tokenizer: Any, tmp_path: Path) -> None:
    model = make()
    edit = zu.unlearn(model, small_tokenizer, [zu.Fact(FACTS[0])], closed())
    with pytest.raises(EditError, match="is on this model already"):
        edit.apply(model)
    edit.save(tmp_path / "edit")
    read = zu.Edit.load(tmp_path / "edit")
    for other, message in [
        (make("gpt2"), "is not there: the edit was made on another model"),
        (make(dtype=torch.bfloat16), r"is torch.bfloat16, and the edit was made on torch.float32: load the model in"),
        (make("qwen3"), "is not the weight that this edit was made on"),
    ]:
        before = weights(other)
        with torch.no_grad():
            for name in before.keys() & edit.digests.keys():
                other.get_parameter(name).mul_(0.5)
        before = weights(other)
        with pytest.raises(EditError, match=message):
            read.apply(other)
        assert same(other, before) and remembered(other) == ({}, {})


def test_an_interrupted_apply_leaves_the_model_as_it_was(
    make: Any, small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    before = weights(model)
    edit = zu.unlearn(model, small_tokenizer, [zu.Fact(FACTS[0])], closed())
    after, left = weights(model), remembered(model)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "add", interrupted)
        edit.revert(model)
        with pytest.raises(KeyboardInterrupt):
            edit.apply(model)
        assert same(model, before) and remembered(model) == ({}, {})
    edit.apply(model)
    with monkeypatch.context() as patch:
        patch.setattr("zerounlearn.model.traces._read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            edit.revert(model)
    assert same(model, after) and remembered(model) == left
