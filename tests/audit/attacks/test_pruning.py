"""Pruning: as many weights as asked for, the least important ones, by ordinary text's activations where it is Wanda."""

from __future__ import annotations

import pytest
import torch

from tests.audit.conftest import TEXT, Forgetful
from zerounlearn.audit.attacks.pruning import input_norms, pruning, smallest_to_nought
from zerounlearn.audit.matrices import matrices
from zerounlearn.model.hooks import inputs_of


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_least_important_share_goes(share: float, by_row: bool) -> None:
    W = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    importance = W.abs() * torch.linspace(0.1, 3, 50)
    found = smallest_to_nought(W, importance, share, by_row=by_row)
    gone = found == 0
    assert torch.equal(found[~gone], W[~gone])
    assert gone.sum() == round(share * 1000)
    groups = zip(importance, gone, strict=True) if by_row else [(importance.flatten(), gone.flatten())]
    for values, out in groups:
        assert out.float().mean() == pytest.approx(share)
        assert not share or values[out].max() < values[~out].min()


def test_norms_are_those_of_the_inputs_of_ordinary_text(forgetful: Forgetful) -> None:
    target = forgetful.target()
    names = matrices(forgetful.model)
    rows = [torch.tensor([forgetful.tokenizer(text)["input_ids"]]) for text in TEXT]
    squares = dict.fromkeys(names, 0.0)
    for row in rows:
        with torch.no_grad(), inputs_of(dict(enumerate(names.values()))) as seen:
            forgetful.model(input_ids=row)
        for i, name in enumerate(names):
            squares[name] = squares[name] + seen[i][0].square().sum(0)
    found = input_norms(target, names, 10_000)
    assert set(found) == set(names)
    for name, total in squares.items():
        torch.testing.assert_close(found[name], torch.as_tensor(total).sqrt(), rtol=1e-5, atol=1e-6)
    few = input_norms(target, names, 3)
    assert all((few[name] <= found[name] + 1e-6).all() for name in names)


def test_wanda_needs_text_and_magnitude_does_not(forgetful: Forgetful) -> None:
    both = list(pruning(forgetful.target(), shares=(0.3, 0.1), tokens=100))
    assert [one.variant for one in both] == ["magnitude", "wanda"]
    assert [point.x for point in both[0].curve] == [0.1, 0.3]
    assert both[0].facts != both[1].facts
    [alone] = pruning(forgetful.target(texts=()), shares=(0.1,), tokens=100)
    assert alone.variant == "magnitude"


def test_pruning_nothing_finds_what_the_question_finds(forgetful: Forgetful) -> None:
    target = forgetful.target()
    for outcome in pruning(target, shares=(0.0,), tokens=100):
        assert outcome == target.along(outcome.variant, {0.0: target.plain()}, "share pruned")
