"""Cells of a study as the engine writes them, with numbers made up by formula."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

BEFORE = {
    "eff": 1.0,
    "gen": 0.7,
    "spe": 0.9,
    "spe_relation": 1.0,
    "spe_subject": 0.95,
    "spe_unrelated": 1.0,
    "eff_probability": 0.62,
    "gen_probability": 0.41,
    "spe_probability": 0.55,
    "ppl": 29.46,
}


def cell(
    method: str = "ZeroUnlearn",
    seed: int = 0,
    n: int = 10,
    dataset: str = "packaged",
    *,
    after: dict[str, float] | None = None,
    error: str | None = None,
    facts: int | list[Any] = 3,
    **changes: Any,
) -> dict[str, Any]:
    """One cell; `after` replaces single numbers of the plausible default."""
    rng = random.Random(f"{method} {seed} {n} {dataset}")
    skill = random.Random(method).random()
    base = BEFORE | {"ppl": 29.46 + 0.01 * seed}

    def share(p: float) -> float:
        return round(min(1.0, max(0.0, rng.gauss(p, 0.06))), 2)

    numbers = {
        "eff": share(0.4 * (1 - skill) ** 2),
        "gen": share(0.6 * (1 - skill)),
        "spe": share(0.9 - 0.5 * skill),
        "spe_relation": share(0.9 - 0.6 * skill),
        "spe_subject": share(0.9 - 0.3 * skill),
        "spe_unrelated": share(0.95 - 0.2 * skill),
        "eff_probability": 0.2 * rng.random(),
        "gen_probability": 0.3 * rng.random(),
        "spe_probability": 0.5 - 0.2 * skill,
        "ppl": 29.5 + 3 * skill,
    }
    made = {
        "id": f"{dataset}-{n}-{seed}-{method}",
        "cell": {"method": method, "algorithm": "ZeroUnlearn", "dataset": dataset, "n": n, "seed": seed},
        "status": "failed" if error else "done",
        "error": error,
        "before": base,
        "after": {} if error else numbers | (after or {}),
        "facts": []
        if error
        else facts
        if isinstance(facts, list)
        else [
            {
                "prompt": f"The capital of country {i} of seed {seed} is",
                "answer": f"City {i}",
                "before": {"said": True, "probability": 0.5 + 0.04 * i, "completion": f" City {i}, of course."},
                "after": {
                    "said": rng.random() < 0.3 * (1 - skill),
                    "probability": 0.4 * rng.random() * (1 - skill),
                    "completion": f" <b>a place</b> that {method} names.",
                },
            }
            for i in range(facts)
        ],
        "seconds": {"unlearn": 0.0 if error else 3 + 40 * skill * n / 10, "evaluate": 12.5},
        "peak_bytes": 1_500_000_000 + int(5e8 * skill),
        "weights": "5f1c9a",
        "restored": True,
        "date": f"2026-11-{20 + seed}",
        "hparams": {"alg_name": "ZeroUnlearn", "layers": [17, 18, 19], "v_lr": 0.1},
        "environment": {"torch": "2.13.0", "device": "cpu", "dtype": "float32", "threads": "1"},
    }
    return made | changes


def study(
    methods: Sequence[str] = ("FT", "GA", "MEMIT", "ZeroUnlearn"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    sizes: Sequence[int] = (10,),
    dataset: str = "packaged",
) -> list[dict[str, Any]]:
    """Every method with every seed and size."""
    return [cell(method, seed, n, dataset) for n in sizes for seed in seeds for method in methods]
