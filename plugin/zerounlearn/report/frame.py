"""A study's cells as tidy tables, in one order whatever theirs was."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from zerounlearn.errors import ConfigError
from zerounlearn.evaluation.joint_score import joint_score
from zerounlearn.report.table import BASE

RESULTS = ("dataset", "n", "seed", "method", "algorithm", "id", "status", "phase", "metric", "value")
FAILURES = ("dataset", "n", "seed", "method", "algorithm", "id", "error")
FACTS = (
    "dataset",
    "n",
    "seed",
    "method",
    "prompt",
    "answer",
    "wording",
    *(f"{what}_{phase}" for what in ("said", "probability", "completion") for phase in ("before", "after")),
)
_GROUP = ["dataset", "n", "seed", "metric"]
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_PHASES = ("before", "after")
_COST = {"unlearn": "unlearn_seconds", "evaluate": "evaluate_seconds"}


@dataclass(frozen=True)
class Frames:
    """What the cells say.

    Attributes:
        cells: as given, sorted by data set, size, method and seed.
        results: one number a row (`RESULTS`); `phase` is before, after or cost. A metric that a cell lacks has no
            row there; NaN and infinity are values.
        failures: one failed cell a row (`FAILURES`).
        facts: one wording of one forgotten fact of one cell a row (`FACTS`): its prompt, which alone has a
            completion, and each paraphrase.
        warnings: what a reader of any number must know.
    """

    cells: tuple[Mapping[str, Any], ...]
    results: pd.DataFrame
    failures: pd.DataFrame
    facts: pd.DataFrame
    warnings: tuple[str, ...]

    @property
    def dates(self) -> list[str]:
        """Of the cells, each once, in order."""
        return sorted({cell["date"] for cell in self.cells if cell.get("date")})

    @property
    def methods(self) -> list[str]:
        """Labels, in the order of print."""
        return list(dict.fromkeys(sorted((c["cell"]["method"] for c in self.cells), key=_by_name)))

    @classmethod
    def of(cls, cells: Sequence[Mapping[str, Any]]) -> Frames:
        """Check the cells and lay them out.

        Raises:
            ConfigError: there is no cell, one lacks a field or has a value of another type, or two are of one
                method, data set, size and seed.
        """
        if not cells:
            raise ConfigError("cells=[]: expected at least one finished cell; run the study first")
        for cell in cells:
            _check(cell)
        ordered = sorted(cells, key=_place)
        for one, other in pairwise(ordered):
            if _place(one)[:-1] == _place(other)[:-1]:
                raise ConfigError(
                    f"cells {one['id']!r} and {other['id']!r} are of the same method, data set, size and seed "
                    f"({dict(one['cell'])}): pass the cells of one study, without those of an older one"
                )
        numbers = [row for cell in ordered for row in _numbers(cell)]
        results = pd.DataFrame(numbers, columns=list(RESULTS)).astype({"value": np.float64})
        failures = [(*_key(cell), str(cell.get("error"))) for cell in ordered if cell["status"] == "failed"]
        return cls(
            tuple(ordered),
            results,
            pd.DataFrame(failures, columns=list(FAILURES)),
            pd.DataFrame([row for cell in ordered for row in _facts(cell)], columns=list(FACTS)),
            tuple(_warnings(ordered, results)),
        )


class _Coordinates(BaseModel, strict=True):
    method: str
    algorithm: str
    dataset: str
    n: int
    seed: int


class _Cell(BaseModel, strict=True):
    """What no output can do without."""

    id: str
    cell: _Coordinates
    status: Literal["done", "failed"]
    before: dict[str, float | None] | None = None
    after: dict[str, float | None] | None = None
    seconds: dict[str, float | None] | None = None


def _check(cell: Mapping[str, Any]) -> None:
    name = cell.get("id")
    try:
        _Cell.model_validate(cell)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"cell {name!r}: {place}={first['input']!r}: {first['msg']}; remove its file and run the study again"
        ) from None
    if cell["cell"]["method"] == BASE:
        raise ConfigError(
            f"cell {name!r}: cell.method={BASE!r} is the name of the row before unlearning; call the method otherwise"
        )


def _by_name(label: str) -> tuple[list[str | float], str]:
    """Whatever the case, and numbers by their size: the settings of a sweep stand in their order."""
    parts = _NUMBER.split(label.casefold())  # texts and numbers by turns
    return [float(part) if i % 2 else part for i, part in enumerate(parts)], label


def _place(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    what = cell["cell"]
    return *_by_name(what["dataset"]), what["n"], *_by_name(what["method"]), what["seed"], cell["id"]


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    what = cell["cell"]
    return what["dataset"], what["n"], what["seed"], what["method"], what["algorithm"], cell["id"]


def _numbers(cell: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    seconds = cell.get("seconds") or {}
    cost = {name: seconds.get(key) for key, name in _COST.items()} | {"peak_bytes": cell.get("peak_bytes")}
    phases = {"before": cell.get("before") or {}}
    if cell["status"] == "done":  # what a failed cell cost, or had measured by then, is no result
        after = cell.get("after") or {}
        phases |= {"after": {**after, "score": joint_score(phases["before"], after)}, "cost": cost}
    return [
        (*_key(cell), cell["status"], phase, metric, float(value))
        for phase, values in phases.items()
        for metric, value in sorted(values.items())
        if value is not None
    ]


def _facts(cell: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    if cell["status"] != "done":
        return []
    what, found = cell["cell"], []
    for fact in cell.get("facts") or ():
        pairs = zip(
            *(({**fact[x], "prompt": fact["prompt"]}, *fact[x].get("paraphrases", ())) for x in _PHASES), strict=True
        )
        for phases in pairs:  # of each wording
            numbers = (one.get(name) for name in ("said", "probability", "completion") for one in phases)
            place = (what["dataset"], what["n"], what["seed"], what["method"], fact["prompt"], fact["answer"])
            found.append((*place, phases[0]["prompt"], *numbers))
    return found


def _warnings(cells: Sequence[Mapping[str, Any]], results: pd.DataFrame) -> list[str]:
    found = []
    for cell in cells:
        if cell.get("restored") is False:
            what = cell["cell"]
            found.append(
                f"The weights were not restored after {what['method']} on {what['dataset']}, n = {what['n']}, "
                f"seed {what['seed']} (cell {cell['id']}): numbers of later cells may be of another model."
            )
    weights = {cell["weights"] for cell in cells if cell.get("weights")}
    if len(weights) > 1:
        found.append(f"The cells start from {len(weights)} different sets of weights: they cannot be compared.")
    before = results[results["phase"] == "before"]
    for place, values in before.groupby(_GROUP, sort=True)["value"]:
        array = values.to_numpy()
        if not np.allclose(array, array[0], rtol=1e-6, atol=1e-9, equal_nan=True):
            dataset, n, seed, metric = place
            spread = float(np.ptp(array))
            size = f"{spread:.2g}" if math.isfinite(spread) else "more than any number"
            found.append(
                f"The base model's {metric} on {dataset}, n = {n}, seed {seed} differs by {size} between methods; "
                "the first method's is shown."
            )
    return found
