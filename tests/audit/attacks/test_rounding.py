"""Rounding: never further than half a step, the same as the libraries that users round with, and the head left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.audit.conftest import Forgetful
from zerounlearn.audit.attacks.rounding import NF4, round_asymmetric, round_nf4, round_symmetric, rounding
from zerounlearn.audit.matrices import changed, matrices

Round = Callable[[Tensor, int, int | None], Tensor]


def matrix(rows: int = 24, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, rows)[:, None]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 32, 40, 128])
@pytest.mark.parametrize("rounded", [round_symmetric, round_asymmetric])
def test_nothing_moves_further_than_half_a_step(rounded: Round, group: int | None, bits: int) -> None:
    W = matrix()
    moved = (rounded(W, bits, group) - W).abs()
    for start in range(0, 96, group or 96):
        part = W[:, start : start + (group or 96)]
        magnitude = 2 * part.abs().amax(1)
        width = part.amax(1).clamp(min=0) - part.amin(1).clamp(max=0)
        step = (magnitude if rounded is round_symmetric else width) / (2**bits - 1)
        edge = 0.5 if rounded is round_symmetric else 1.0  # where nought is put on the grid, the ends may fall off it
        worst = moved[:, start : start + (group or 96)].amax(1)
        assert (worst <= edge * step * (1 + 1e-4)).all()
        assert (worst > 0.3 * step).all()


@pytest.mark.parametrize("rounded", [round_symmetric, round_asymmetric])
def test_a_matrix_has_no_more_values_a_group_than_bits_allow_and_noughts_stay(rounded: Round) -> None:
    W = matrix()
    W[:, 5], W[3] = 0, 0
    found = rounded(W, 4, 32)
    assert max(len(group.unique()) for group in found.unflatten(1, (-1, 32)).flatten(0, 1)) <= 16
    assert (found[:, 5] == 0).all() and (found[3] == 0).all()


def test_what_is_on_the_grid_stays_there() -> None:
    once = round_asymmetric(matrix(), 4, 32)
    torch.testing.assert_close(round_asymmetric(once, 4, 32), once, rtol=1e-5, atol=0)


SMALL = torch.tensor(
    [[0.31, -0.07, 0.52, 0.11, -0.93, 0.44, 0.26, -0.18], [1.7, -2.2, 0.05, 0.6, 0.9, 0.35, 0.7, 0.15]]
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            round_symmetric(SMALL, 8),
            [
                [0.30635, -0.07294, 0.51788, 0.10941, -0.93365, 0.43765, 0.26259, -0.18235],
                [1.70824, -2.20863, 0.05176, 0.60392, 0.89725, 0.3451, 0.70745, 0.15529],
            ],
        ),
        (
            round_symmetric(SMALL, 4, 4),
            [
                [0.27733, -0.06933, 0.48533, 0.13867, -0.992, 0.496, 0.248, -0.124],
                [1.76, -2.34667, 0.0, 0.58667, 0.84, 0.36, 0.72, 0.12],
            ],
        ),
        (
            round_asymmetric(SMALL, 4, 4),
            [
                [0.31467, -0.07867, 0.51133, 0.118, -0.91333, 0.45667, 0.274, -0.18267],
                [1.82, -2.08, 0.0, 0.52, 0.9, 0.36, 0.72, 0.18],
            ],
        ),
    ],
    ids=["int8", "int4", "int4 asymmetric"],
)
def test_it_rounds_as_torchao_did(ours: Tensor, theirs: list[list[float]]) -> None:
    """What torchao 0.18 made of the same matrix on a CPU: no need to have it installed."""
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=0, atol=6e-6)


def test_nf4_takes_the_levels_that_bitsandbytes_took() -> None:
    """Of 64 entries from -1 to 2, by version 0.50.2."""
    counts = {2: 2, 3: 5, 4: 5, 5: 4, 6: 4, 7: 3, 8: 4, 9: 3, 10: 4, 11: 4, 12: 5, 13: 5, 14: 10, 15: 6}
    expected = [2 * NF4[level] for level, count in counts.items() for _ in range(count)]
    assert round_nf4(torch.linspace(-1, 2, 64)[None])[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("group", [None, 32])
def test_torchao_rounds_the_same(group: int | None) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    from torchao.quantization.quant_primitives import MappingType

    W = matrix(24, 128)

    def theirs(config: object) -> Tensor:
        layer = nn.Sequential(nn.Linear(128, 24, bias=False))
        layer[0].weight.data.copy_(W)
        torchao.quantize_(layer, config)
        return layer[0].weight.dequantize()  # type: ignore[operator]

    if group is None:
        pairs = [(round_symmetric(W, 8), torchao.Int8WeightOnlyConfig())]
    else:
        pairs = [
            (
                rounded(W, 4, group),
                torchao.IntxWeightOnlyConfig(
                    weight_dtype=torch.int4, granularity=torchao.PerGroup(group), mapping_type=mapping
                ),
            )
            for rounded, mapping in (
                (round_symmetric, MappingType.SYMMETRIC),
                (round_asymmetric, MappingType.ASYMMETRIC),
            )
        ]
    for ours, config in pairs:
        same = torch.isclose(ours, theirs(config), rtol=1e-4, atol=1e-7)
        assert same.float().mean() > 0.99  # what lies in the middle of a step may go either way


def test_an_edit_smaller_than_half_a_step_is_rounded_away(forgetful: Forgetful) -> None:
    """A model whose weights lie on the int8 grid, moved by a third of a step: rounding brings them back."""
    model = forgetful.model
    names = matrices(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with changed(model, names, lambda _, W: round_asymmetric(W, 8)):
        grid = {name: model.get_parameter(name).detach().clone() for name in names}

    def moved(name: str, _: Tensor) -> Tensor:
        W = grid[name]
        step = (W.amax(1, keepdim=True).clamp(min=0) - W.amin(1, keepdim=True).clamp(max=0)) / 255
        inside = (W.amax(1, keepdim=True) > W) & (W.amin(1, keepdim=True) < W)  # the ends make the grid
        return W + step / 3 * inside

    with (
        changed(model, names, moved),
        changed(model, names, lambda _, W: round_asymmetric(W, 8)),
    ):
        for name in names:
            torch.testing.assert_close(model.get_parameter(name), grid[name], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_each_kind_is_a_variant_and_what_changes_nothing_finds_what_the_question_finds(forgetful: Forgetful) -> None:
    target = forgetful.target()
    kinds = ("int8", "int4 in groups of 32, asymmetric", "bfloat16", "float16")
    outcomes = {one.variant: one for one in rounding(target, kinds=kinds)}
    assert tuple(outcomes) == kinds
    plain = target.outcome("", target.plain())
    close = [(a.score, b.score) for a, b in zip(outcomes["float16"].facts, plain.facts, strict=True)]
    assert all(a == pytest.approx(b, rel=0.05) for a, b in close)
    assert outcomes["int4 in groups of 32, asymmetric"].facts != plain.facts


@pytest.mark.parametrize("shape", [(6, 128), (5, 40)])
def test_bitsandbytes_rounds_the_same(shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    W = matrix(*shape)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(W, blocksize=64, quant_type="nf4"))
    torch.testing.assert_close(round_nf4(W), theirs, rtol=1e-5, atol=1e-7)
