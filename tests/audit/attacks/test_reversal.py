"""Reversal: what an edit of few strong directions wrote is gone when they are, and its layers are told by them."""

from __future__ import annotations

import pytest
import torch

from tests.audit.conftest import Forgetful
from tests.helpers import tiny
from zerounlearn.audit.attacks.reversal import Top, guessed, reversal
from zerounlearn.audit.pair import Pair
from zerounlearn.audit.states import layout_of
from zerounlearn.model.weights import with_weights


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_the_top_directions_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    W = matrix(*shape)
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    top = Top.of(W, 6, generator())
    torch.testing.assert_close(top.values, S[:6])
    for rank in (0, 1, 5):
        torch.testing.assert_close(top.peeled(W, rank, shrink=False), U[:, rank:] * S[rank:] @ V[rank:])
        level = S.clone()
        level[:rank] = S[rank]
        torch.testing.assert_close(top.peeled(W, rank, shrink=True), U * level @ V)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_directions_that_stand_out_of_a_large_matrix_are_found_by_iteration(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    strong = 40 * torch.linalg.qr(matrix(shape[0], 4)).Q @ torch.linalg.qr(matrix(shape[1], 4)).Q.mT
    W = matrix(*shape) + strong
    exact = Top.of(W, 5, generator())
    monkeypatch.setattr("zerounlearn.audit.attacks.reversal._EXACT", 10)
    found = Top.of(W, 5, generator())
    torch.testing.assert_close(found.values, exact.values, rtol=0.02, atol=0)
    torch.testing.assert_close(found.peeled(W, 4, shrink=False), exact.peeled(W, 4, shrink=False), rtol=0, atol=1e-4)


def test_layers_with_directions_that_stand_out_are_guessed() -> None:
    tops = {}
    for layer in range(12):
        W = torch.randn(30, 60, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
        if layer in (4, 7):
            W += 30 * torch.linalg.qr(matrix(30, 3)).Q @ torch.linalg.qr(matrix(60, 3)).Q.mT
        tops[layer] = Top.of(W, 9, generator())
    found = guessed(tops)
    assert {4, 7} <= set(found) and found == sorted(found) and len(found) == 5


def test_a_fact_that_strong_directions_suppress_comes_back_without_them(forgetful: Forgetful) -> None:
    """The base model with a strong direction in each down projection forgets; peeled, it says every fact again."""
    with Pair.of(forgetful.model, forgetful.edit).as_base():
        target = forgetful.target()
        base = target.outcome("", target.plain())
        layout = layout_of(target, projections=True)
        edited = {}
        for layer, name in layout.weight_names.items():
            W = layout.read(layer)
            u, v = (matrix(n, 1).float() for n in W.shape)
            edited[name] = W + 50 * torch.linalg.matrix_norm(W, 2) * (u / u.norm()) @ (v / v.norm()).mT
        with with_weights(forgetful.model, edited):
            plain = target.outcome("", target.plain())
            outcomes = {
                one.variant: one
                for one in reversal(target, ranks=(1,), where=("guessed layers", "all layers", "one layer"), each=(1,))
            }
    assert plain.share < base.share == 1
    assert outcomes["all layers, dropped"].share == 1
    assert outcomes["all layers, dropped"].alarms <= base.alarms + 0.1
    assert outcomes["one layer, dropped"].share < 1  # each of the two layers has one
    assert set(outcomes) == {
        f"{place}, {form}" for place in ("guessed layers", "all layers") for form in ("dropped", "shrunk")
    } | {"one layer, dropped"}
    assert all(one.how.startswith("directions 1") for one in outcomes["all layers, shrunk"].facts)


def test_the_best_layer_is_named(forgetful: Forgetful) -> None:
    [outcome] = reversal(forgetful.target(), ranks=(1,), where=("one layer",), each=(1, 2))
    assert [point.x for point in outcome.curve] == [1, 2]
    assert all(", layer " in one.how for one in outcome.facts)


def test_more_directions_than_a_matrix_has_are_all_but_one() -> None:
    W = matrix(5, 8)
    top = Top.of(W, 64, generator())
    assert torch.linalg.matrix_rank(top.peeled(W, 64, shrink=False), atol=1e-9) == 1


def test_a_model_whose_weights_are_transposed_is_peeled_the_same(small_tokenizer: object) -> None:
    from types import SimpleNamespace

    model = tiny("gpt2", 400)
    layout = layout_of(SimpleNamespace(model=model), projections=True)  # type: ignore[arg-type]
    assert layout.read(0).shape == (32, 128)
    assert Top.of(layout.read(0), 3, generator()).left
