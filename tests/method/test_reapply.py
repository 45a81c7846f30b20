"""A stored change on a model that descends from the edit's: added, and refused where it cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from zerounlearn.data.fact import Fact
from zerounlearn.errors import EditError
from zerounlearn.method.edit import Edit
from zerounlearn.method.reapply import moved, reapply

DOWN = "model.layers.{}.mlp.down_proj.weight"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.fixture
def parent(small_tokenizer: Any) -> Any:
    return tiny("llama", len(small_tokenizer), dtype=torch.float32)


@pytest.fixture
def edit(parent: Any, small_tokenizer: Any, tmp_path: Path) -> Edit:
    """Of the parent, and read from its file again."""
    method = zu.ZeroUnlearn(layers=[1, 2], v_num_grad_steps=8, mom2_adjustment=False)
    made = zu.unlearn(parent, small_tokenizer, map(Fact, FACTS), method)
    made.revert(parent)
    made.save(tmp_path / "edit.safetensors")
    return Edit.load(tmp_path / "edit.safetensors")


def fine_tuned(model: Any, scale: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(scale * value.std() * torch.randn(value.shape, generator=generator).to(value.dtype))


def to_int8_and_back(model: Any) -> None:
    with torch.no_grad():
        for value in model.parameters():
            step = value.abs().amax() / 127
            value.copy_((value / step).round() * step)


@pytest.mark.parametrize("child", ["fine-tuned", "dequantised", "bfloat16"])
def test_the_change_is_added_to_what_is_there_and_taken_off_bit_for_bit(child: str, parent: Any, edit: Edit) -> None:
    origin = weights(parent)
    model = {"fine-tuned": fine_tuned, "dequantised": to_int8_and_back, "bfloat16": lambda m: m.bfloat16()}[child]
    model(parent)
    before = weights(parent)
    made = reapply(edit, parent)
    step = 2.0**-8 if child == "bfloat16" else 2.0**-23
    for name, (left, right) in edit.factors.items():
        change = parent.get_parameter(name).double() - before[name].double()
        wanted = left.double() @ right.double()
        assert ((change - wanted).abs() <= step * parent.get_parameter(name).double().abs() + 1e-12).all()
        assert not torch.equal(before[name].float(), origin[name])
    assert not edit.before, "the edit of the parent is as it was"
    made.revert(parent)
    assert same(parent, before)


def test_how_far_a_weight_has_moved_is_said_where_it_can_be_known(parent: Any, edit: Edit) -> None:
    child = tiny("llama", parent.config.vocab_size, dtype=torch.float32)
    unmoved = moved(edit, child)
    assert [(row.moved, row.held) for row in unmoved] == [(0, 0), (0, 0)], "the digests are those of the parent"
    fine_tuned(child)
    assert [(row.moved, row.held) for row in moved(edit, child)] == [(None, None)] * 2
    for row in moved(edit, child, parent):
        now, old = (model.get_parameter(row.name).detach().double() for model in (child, parent))
        left, right = edit.factors[row.name]
        change = left.double() @ right.double()
        assert row.moved == pytest.approx(float((now - old).norm() / old.norm()))
        assert row.change == pytest.approx(float(change.norm() / now.norm()))
        assert row.held == pytest.approx(float(((now - old) * change).sum() / change.norm() ** 2))
    with pytest.raises(EditError, match="of the parent is not the weight that this edit was made on"):
        moved(edit, child, child)


def test_a_model_that_has_the_edit_already_is_refused(parent: Any, edit: Edit, small_tokenizer: Any) -> None:
    """As it was left, and fine-tuned since."""
    edited = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    edit.apply(edited)
    with pytest.raises(EditError, match="the model has the edit already"):
        moved(edit, edited)
    fine_tuned(edited)
    with pytest.raises(EditError, match=r"the model has (9\d|10\d)% of this edit's change already"):
        moved(edit, edited, parent)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (DOWN.format(9), (32, 48), "is not there in the model"),
        (DOWN.format(1), (48, 32), r"is \(32, 48\) in the model, \(48, 32\) in the edit"),
    ],
)
def test_another_architecture_is_refused(name: str, shape: tuple[int, ...], message: str, parent: Any) -> None:
    before = weights(parent)
    with pytest.raises(EditError, match=message):
        reapply(Edit("made", {}, changes={name: torch.ones(shape)}), parent)
    with pytest.raises(EditError, match="wraps modules"):
        reapply(Edit("GRACE", {}, undo=lambda: None), parent)
    assert same(parent, before)


def test_a_change_that_does_not_fit_or_is_interrupted_leaves_the_model_as_it_was(
    parent: Any, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(parent)
    monkeypatch.setattr(Edit, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reapply(edit, parent)
    assert same(parent, before)
    half = parent.half()
    before = weights(half)
    huge = Edit("made", {}, changes={DOWN.format(1): torch.full((32, 48), 1e6)})
    with pytest.raises(EditError, match=r"does not fit torch\.float16"):
        reapply(huge, half)
    assert same(half, before)
