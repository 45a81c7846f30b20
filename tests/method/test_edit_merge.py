"""Two edits as one: what the digests allow, to the last bit where that can be; everything else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zerounlearn as zu
from tests.helpers import FACTS, tiny
from tests.method.test_edit import RUNS, closed, remembered, same, weights
from zerounlearn.errors import EditError
from zerounlearn.method.edit_merge import merged, relation


@pytest.fixture
def model(small_tokenizer: Any) -> Any:
    return tiny("llama", len(small_tokenizer), dtype=torch.float32)


@pytest.fixture
def forget(model: Any, small_tokenizer: Any, tmp_path: Path) -> Callable[..., zu.Edit]:
    def made(fact: int, run: Any = None, *, originals: bool = True) -> zu.Edit:
        """Forget a fact, in place; the edit from its file, which knows no original in memory."""
        edit = zu.unlearn(model, small_tokenizer, [zu.Fact(FACTS[fact])], run or closed())
        edit.save(tmp_path / f"{fact}", originals=originals)
        return zu.Edit.load(tmp_path / f"{fact}")

    return made


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_one_on_top_of_the_other(run: str, swapped: bool, model: Any, forget: Any, tmp_path: Path) -> None:
    before = weights(model)
    first, second = forget(0, RUNS[run]()), forget(1, RUNS[run]())
    after, left = weights(model), remembered(model)
    both = merged(second, first) if swapped else merged(first, second)
    assert relation(first, second) == "first then second" and relation(second, first) == "second then first"
    both.save(tmp_path / "both")
    both = zu.Edit.load(tmp_path / "both")
    assert both.facts == [*first.facts, *second.facts]
    second.revert(model)
    first.revert(model)
    assert same(model, before)
    both.apply(model)
    if both.factors:
        assert all(old == first.digests[n][0] and new == second.digests[n][1] for n, (old, new) in both.digests.items())
        assert same(model, after) and remembered(model)[1] == left[1]
        # The model between the two, which it has not been, is not among the origins.
        assert remembered(model)[0].items() <= left[0].items()
    for name, value in after.items():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-5, atol=1e-6)
    both.revert(model)
    assert same(model, before) and remembered(model) == ({}, {})


@pytest.mark.parametrize("run", RUNS)
def test_of_one_original_it_is_the_sum(run: str, model: Any, forget: Any, tmp_path: Path) -> None:
    before = weights(model)
    edits = []
    for fact in (0, 1):
        edits.append(forget(fact, RUNS[run]()))
        edits[-1].revert(model)
    assert relation(*edits) == "sum"
    both = merged(*edits)
    both.save(tmp_path / "both")
    for source in (both, zu.Edit.load(tmp_path / "both")):
        assert {new for _, new in source.digests.values()} == {""}
        source.apply(model)
        for name in source.digests:
            expected = before[name].double() + sum(edit.change_of(name) for edit in edits)
            torch.testing.assert_close(model.get_parameter(name), expected.float(), rtol=2e-7, atol=5e-8)
        assert "" not in {new for _, new in source.digests.values()}
        source.revert(model)
        assert same(model, before)


def test_of_different_weights_the_order_is_no_matter(model: Any, forget: Any, tmp_path: Path) -> None:
    before = weights(model)
    low, high = forget(0, closed(layers=[1])), forget(1, closed(layers=[3]))
    after = weights(model)
    low.revert(model)  # the first of two: another's weights are not in its way
    high.revert(model)
    assert same(model, before)
    assert relation(low, high) == "disjoint"
    both = merged(low, high)
    both.save(tmp_path / "both", originals=both.exact)
    for edits in ([low, high], [high, low], [zu.Edit.load(tmp_path / "both")]):
        for edit in edits:
            edit.apply(model)
        assert same(model, after)
        for edit in edits:
            edit.revert(model)
        assert same(model, before)
    low.apply(model)
    with pytest.raises(EditError, match="is on this model already"):
        zu.Edit.load(tmp_path / "both").apply(model)
    low.revert(model)
    zu.Edit.load(tmp_path / "both").apply(model)
    zu.Edit.load(tmp_path / "both").revert(model)  # by the originals that both files had
    assert same(model, before)


def test_edits_of_one_original_do_not_go_on_one_after_the_other(model: Any, forget: Any) -> None:
    first = forget(0)
    first.revert(model)
    second = forget(1)
    with pytest.raises(EditError, match="made on .*: load that model, unedited, or put edits .* `zerounlearn merge`"):
        first.apply(model)
    third = forget(2)
    before = weights(model)
    with pytest.raises(EditError, match="take back later edits first"):
        second.revert(model)
    assert same(model, before)
    with pytest.raises(EditError, match="neither made on one original nor one on top of the other"):
        merged(first, third)
    with pytest.raises(EditError, match="the two edits are the same"):
        merged(first, first)
    second.undo = lambda: None
    with pytest.raises(EditError, match="wraps modules"):
        merged(first, second)
