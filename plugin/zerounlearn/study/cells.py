"""Cells of a study: their identity, the jobs that they come to, and their record on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import zerounlearn
from zerounlearn.files import write_text
from zerounlearn.study.material import digest

DONE, FAILED = "done", "failed"

Record = dict[str, Any]
"""What a job gives and a file holds. A cell's has `id`, `cell` (its coordinates), `status` and `error`, the numbers
`before` and `after` by metric, the same for each of its `facts`, `seconds` by stage, `peak_bytes` of the unlearning,
the `weights` hash before it and whether they were `restored`, the `hparams` and the `environment`. A base's, which
the methods share, has `id`, `status`, `error`, `measures`, `facts`, `reference` (truth ratios or null), `seconds`
and `weights`."""


@dataclass(frozen=True)
class Draw:
    """One forget set: a data set's label, how many entries, drawn by which seed."""

    dataset: str
    n: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """A method on a draw."""

    method: str
    algorithm: str
    draw: Draw

    def coordinates(self) -> dict[str, Any]:
        """As a record has them."""
        return {"method": self.method, "algorithm": self.algorithm, **asdict(self.draw)}


@dataclass(frozen=True)
class PrepareJob:
    """Take the statistics that the methods of these labels share."""

    methods: tuple[str, ...]


@dataclass(frozen=True)
class BaseJob:
    """Measure the model as it is on a draw."""

    id: str
    draw: Draw


@dataclass(frozen=True)
class CellJob:
    """Unlearn, measure, undo. `base` is the record of the draw's BaseJob."""

    id: str
    cell: Cell
    base: Mapping[str, Any]


Job = PrepareJob | BaseJob | CellJob


def base_id(draw: Draw, depends_on: Mapping[str, Any]) -> str:
    """A name that changes with anything that the base model's numbers depend on."""
    versions = [zerounlearn.__version__, *(metadata.version(name) for name in ("torch", "transformers"))]
    key = digest({**depends_on, "versions": versions, "draw": asdict(draw)})
    return f"{_slug(draw.dataset)}-n{draw.n}-s{draw.seed}-{key}"


def cell_id(cell: Cell, base: str, settings: Mapping[str, Any]) -> str:
    """A name that changes with anything that the cell's numbers depend on."""
    draw = cell.draw
    key = digest({"base": base, "settings": settings, "cell": cell.coordinates()})
    return f"{_slug(cell.method)}-{_slug(draw.dataset)}-n{draw.n}-s{draw.seed}-{key}"


def failed(job: Job, error: str) -> Record:
    """The record of a job that came to nothing."""
    if isinstance(job, CellJob):
        before = job.base.get("measures", {})
        record: Record = {"id": job.id, "cell": job.cell.coordinates(), "status": FAILED, "error": error}
        empty: Record = {"after": {}, "facts": [], "seconds": {"unlearn": 0.0, "evaluate": 0.0}, "peak_bytes": 0}
        rest = {"weights": job.base.get("weights", ""), "restored": True, "hparams": {}, "environment": {}}
        return record | {"before": before} | empty | rest
    return {"id": "" if isinstance(job, PrepareJob) else job.id, "status": FAILED, "error": error}


def read(file: Path) -> Record | None:
    """A record, or None where there is none that can be read: it is then made again."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("id") == file.stem else None


def write(folder: Path, record: Record) -> None:
    """Write a record under its id, as a whole.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(folder / f"{record['id']}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _slug(label: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", label).strip("-.")[:60] or "unnamed"
