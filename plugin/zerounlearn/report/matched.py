"""What a swept method reaches where another method stands.

A method whose settings were swept (`grid`) is no point but a trade-off, from the base model, which is its weakest
setting, to a model that says nothing right. Compared with a method that is a point, it is read off at that point:
how much it still says at an equal specificity, and how much it keeps when it says no more. Each seed is read by
itself, from the settings that no other of the sweep beats in that seed, linearly between neighbours. That the best
settings are picked from the same values favours the swept method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Point = tuple[float, float]
"""What is kept (more is better) and what is still said (less is better)."""

KEPT, SAID = "spe", ("eff", "gen")
"""Metrics that are matched: specificity, and Eff. and Gen."""

Values = Mapping[tuple[str, str], Mapping[int, float]]
"""By method's label and metric, then by seed."""


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats, from the least kept to the most; what is said rises with it, strictly."""
    best: list[Point] = []
    for kept, said in sorted(set(points), key=lambda p: (-p[0], p[1])):
        if not best or said < best[-1][1]:
            best.append((kept, said))
    return best[::-1]


def said_at(points: Iterable[Point], kept: float) -> float:
    """The least that is said while so much is kept; beyond the points, what the nearest end of the front says."""
    xs, ys = zip(*front(points), strict=True)
    return float(np.interp(kept, xs, ys))


def kept_at(points: Iterable[Point], said: float) -> float | None:
    """The most that is kept while no more is said; None where no point says so little."""
    xs, ys = zip(*front(points), strict=True)
    return None if said < ys[0] else float(np.interp(said, ys, xs))


def matched(
    after: Values, base: Mapping[str, Mapping[int, float]], at: str, sweeps: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], dict[int, float]]:
    """Eff. and Gen. at a method's Spe., and Spe. at its Eff., of it and of every sweep, by label, metric and seed.

    Args:
        after: what the study measured.
        base: the model before, by metric and seed: a setting of every sweep.
        at: label of the method that is the point.
        sweeps: labels of the settings by that of their sweep. A setting that failed in a seed is not there in it; a
            sweep without any has no values in it.
    """

    def point(label: str, metric: str, seed: int) -> list[Point]:
        pair = [after.get((label, name), {}).get(seed, np.nan) for name in (KEPT, metric)]
        return [(pair[0], pair[1])] if np.isfinite(pair).all() else []

    found: dict[tuple[str, str], dict[int, float]] = {}
    for seed in base.get(KEPT, {}):
        for metric in SAID:
            own = point(at, metric, seed)
            if not own or seed not in base.get(metric, {}):
                continue
            kept, said = own[0]
            found.setdefault((at, metric), {})[seed] = said
            found.setdefault((at, KEPT), {})[seed] = kept
            for sweep, labels in sweeps.items():
                points = [p for label in labels for p in point(label, metric, seed)]
                if not points:
                    continue
                points.append((base[KEPT][seed], base[metric][seed]))
                found.setdefault((sweep, metric), {})[seed] = said_at(points, kept)
                if metric == SAID[0] and (keeps := kept_at(points, said)) is not None:
                    found.setdefault((sweep, KEPT), {})[seed] = keeps
    return found
