"""ZeroUnlearn-GD's additive update: the exact minimiser against its objective, against Adam, and on kept keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from zerounlearn.core.nullspace import FreeSpace, Weights, free_space, solve_adam, solve_exact
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.errors import IllPosedError

WEIGHTS = Weights(sensitive=1.0, target=100.0, norm=0.1)


def draw(seed: int, n: int = 5, d: int = 12, m: int = 24, kept: int = 10) -> dict[str, Tensor]:
    """A layer whose ordinary keys span `kept` of m dimensions."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    X = normal(200, kept) @ normal(kept, m)
    return {
        "W": normal(d, m), "C": X.mT @ X / 200, "X": X, "K": normal(n, m), "R": normal(n, d),
        "Q": orthonormal_basis(normal(n, d)),
    }  # fmt: skip


def objective(p: dict[str, Tensor], space: FreeSpace, hat: Tensor) -> Tensor:
    """As the published code writes it, in Δ̂."""
    change = hat @ space.root
    written = (p["W"] + change) @ p["K"].mT
    target = p["W"] @ p["K"].mT + p["R"].mT
    penalty = (change if space.directions else hat).square().sum()
    return (p["Q"].mT @ written).square().sum() + 100 * (written - target).square().sum() + 0.1 * penalty


def hat_of(space: FreeSpace, change: Tensor) -> Tensor:
    return change if space.directions else change @ torch.linalg.inv(space.root)


def exact(p: dict[str, Tensor], space: FreeSpace) -> Tensor:
    return solve_exact(p["W"], space, p["K"], p["R"], p["Q"], WEIGHTS).apply(p["W"]) - p["W"]


spaces = st.sampled_from(["hard", "soft"])
seeds = st.integers(0, 2**32 - 1)


def space_of(p: dict[str, Tensor], form: str) -> FreeSpace:
    return free_space(p["C"], 0.01, soft=form == "soft")


@given(seeds, spaces)
def test_the_exact_solution_is_a_stationary_point(seed: int, form: str) -> None:
    p = draw(seed)
    space = space_of(p, form)
    hat = hat_of(space, exact(p, space)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(p, space, hat), hat)
    start = torch.zeros_like(hat, requires_grad=True)
    (scale,) = torch.autograd.grad(objective(p, space, start), start)
    assert gradient.norm() < 1e-9 * scale.norm()


@given(seeds, spaces, seeds)
def test_no_perturbation_is_better(seed: int, form: str, other: int) -> None:
    p = draw(seed)
    space = space_of(p, form)
    hat = hat_of(space, exact(p, space))
    best = objective(p, space, hat)
    g = torch.Generator().manual_seed(other)
    for size in (1e-3, 1.0):
        step = torch.randn(hat.shape, generator=g, dtype=torch.float64) @ space.root
        assert objective(p, space, hat + size * step) > best


@pytest.mark.integration
@pytest.mark.parametrize(("steps", "lr", "gap"), [(500, 1e-3, None), (5_000, 4e-3, 1e-3), (20_000, 1e-3, 1e-3)])
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_adam_is_never_better_and_comes_close(form: str, steps: int, lr: float, gap: float | None) -> None:
    p = draw(3)
    space = space_of(p, form)
    best = objective(p, space, hat_of(space, exact(p, space)))
    update = solve_adam(p["W"], space, p["K"], p["R"], p["Q"], WEIGHTS, steps=steps, lr=lr)
    reached = objective(p, space, update.left)
    start = objective(p, space, torch.zeros_like(p["W"]))
    assert best <= reached < start
    if gap is not None:
        assert reached - best < gap * (start - best)
    assert_close(update.apply(p["W"]), p["W"] + update.left @ space.root)


@given(seeds)
def test_kept_keys_are_untouched_and_forget_keys_are_not(seed: int) -> None:
    p = draw(seed)
    space = space_of(p, "hard")
    assert space.directions == 14
    change = exact(p, space)
    assert (change @ p["X"].mT).norm() < 1e-9 * change.norm() * p["X"].norm()
    assert (change @ p["K"].mT).norm() > 1e-3 * change.norm() * p["K"].norm()
    assert torch.linalg.matrix_rank(change, rtol=1e-9) <= 5


@given(seeds)
def test_the_soft_form_moves_kept_keys_less_than_plain_ridge(seed: int) -> None:
    p = draw(seed, kept=24)
    hard = free_space(p["C"], 1e-12)
    assert hard.directions == 0, "nothing is free here, and the soft form stands in by itself"
    plain = FreeSpace(torch.eye(24, dtype=torch.float64), 24)
    soft, free = exact(p, free_space(p["C"], 1.0, soft=True)), exact(p, plain)
    assert soft.norm() > 0
    assert (soft @ p["X"].mT).norm() < (free @ p["X"].mT).norm()


def test_thresholds_by_rule() -> None:
    C = torch.diag(torch.tensor([8.0, 1.0, 0.9, 0.1], dtype=torch.float64))
    thresholds = {
        "absolute": [0.05, 0.1, 0.95, 8.0],
        "relative": [0.01, 0.0125, 0.12, 1.0],
        "energy": [0.005, 0.02, 0.1, 1.0],
    }
    counts = {rule: [free_space(C, t, rule).directions for t in ts] for rule, ts in thresholds.items()}
    assert counts == {"absolute": [0, 1, 2, 4], "relative": [0, 1, 2, 4], "energy": [0, 1, 2, 4]}


def test_what_is_not_finite_is_refused() -> None:
    C = torch.eye(4)
    C[1, 1] = float("inf")
    with pytest.raises(IllPosedError, match="layer 3.*NaN"):
        free_space(C, 0.01, where="layer 3")
