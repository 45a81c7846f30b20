"""Cells of a study: their identity, the jobs that they come to, and their record on disk."""

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

import zerounlearn
from zerounlearn.errors import OutputError
from zerounlearn.files import write_text
from zerounlearn.model.fingerprint import value_digest

log = logging.getLogger(__name__)

DONE, FAILED = "done", "failed"

Record = dict[str, Any]
"""What a job gives and a file holds. A cell's has `id`, `cell` (its coordinates), `status` and `error`, the numbers
`before` and `after` by metric, the same for each of its `facts`, `seconds` by stage, `peak_bytes` of the unlearning,
the `weights` hash before it and whether they were `restored`, the `hparams`, the `environment`, and the `date` on
which it was made (UTC). A base's, which the methods share, has `id`, `status`, `error`, `measures`, `facts`,
`reference` (truth ratios or null), `seconds` and `weights`. The file has a checksum beside them."""


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
    key = value_digest({**depends_on, "versions": versions, "draw": asdict(draw)})
    return f"{_slug(draw.dataset)}-n{draw.n}-s{draw.seed}-{key}"


def cell_id(cell: Cell, base: str, settings: Mapping[str, Any]) -> str:
    """A name that changes with anything that the cell's numbers depend on."""
    draw = cell.draw
    key = value_digest({"base": base, "settings": settings, "cell": cell.coordinates()})
    return f"{_slug(cell.method)}-{_slug(draw.dataset)}-n{draw.n}-s{draw.seed}-{key}"


def failed(job: Job, error: str) -> Record:
    """The record of a job that came to nothing."""
    if isinstance(job, CellJob):
        before = job.base.get("measures", {})
        record: Record = {"id": job.id, "cell": job.cell.coordinates(), "status": FAILED, "error": error}
        empty: Record = {"after": {}, "facts": [], "seconds": {"unlearn": 0.0, "evaluate": 0.0}, "peak_bytes": 0}
        rest = {"weights": job.base.get("weights", ""), "restored": True, "hparams": {}, "environment": {}}
        return record | {"before": before, "date": datetime.now(timezone.utc).date().isoformat()} | empty | rest
    return {"id": "" if isinstance(job, PrepareJob) else job.id, "status": FAILED, "error": error}


def read_cell(file: Path, cell: Cell) -> Record | None:
    """A cell's record, or None where there is none, or none that is whole and of this cell: it is then made again.

    Raises:
        OutputError: what lies there is not a file, or cannot be read.
    """
    record = _read(file, _CellRecord)
    if record is not None and record["cell"] != cell.coordinates():
        log.warning("%s is the record of %s, not of %s: the cell is run again", file, record["cell"], cell)
        return None
    return record


def read_base(file: Path) -> Record | None:
    """A base's record, or None where there is none, or none that is whole: it is then made again.

    Raises:
        OutputError: what lies there is not a file, or cannot be read.
    """
    return _read(file, _BaseRecord)


def write(folder: Path, record: Record) -> None:
    """Write a record under its id, as a whole, with a checksum.

    Raises:
        OutputError: it cannot be written.
    """
    whole = {**record, _CHECKSUM: value_digest(json.loads(json.dumps(record)))}
    write_text(folder / f"{record['id']}.json", json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


_CHECKSUM = "checksum"
_LARGEST = 1 << 28  # bytes of a record

Numbers = dict[str, float | None]


class _Checked(BaseModel):
    """Types as JSON has them, none converted; fields that a later version adds are kept."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Coordinates(_Checked):
    method: str
    algorithm: str
    dataset: str
    n: int
    seed: int


class _Said(_Checked):
    said: bool
    probability: float


class _Reworded(_Said):
    prompt: str


class _Asked(_Said):
    completion: str = ""
    paraphrases: list[_Reworded] = []


class _Fact(_Checked):
    prompt: str
    answer: str
    before: _Asked
    after: _Asked


class _Known(_Checked):
    asked: int
    said: int


class _Stored(_Checked):
    id: str
    status: Literal["done", "failed"]
    error: str | None
    seconds: dict[str, float]
    weights: str
    known: dict[str, _Known] = {}

    @model_validator(mode="after")
    def _says_why_it_failed(self) -> _Stored:
        if (self.status == FAILED) != (self.error is not None):
            raise ValueError("status and error contradict each other")
        return self


class _CellRecord(_Stored):
    cell: _Coordinates
    before: Numbers
    after: Numbers
    facts: list[_Fact]
    peak_bytes: int
    restored: bool
    hparams: dict[str, Any]
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _holds_results_if_done(self) -> _CellRecord:
        if self.status == DONE and not (self.after and self.facts and {"unlearn", "evaluate"} <= self.seconds.keys()):
            raise ValueError("it is done, and has no results")
        return self


class _BaseRecord(_Stored):
    measures: Numbers
    facts: list[_Asked]
    reference: list[float] | None

    @model_validator(mode="after")
    def _holds_results_if_done(self) -> _BaseRecord:
        if self.status == DONE and not (self.measures and self.facts):
            raise ValueError("it is done, and has no results")
        return self


def _read(file: Path, kind: type[_Stored]) -> Record | None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise OutputError(f"{str(file)!r} is not a file, and a record is to be written there: move it away")
        content = file.read_bytes() if status.st_size <= _LARGEST else b""
    except FileNotFoundError:
        return None
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{str(file)!r} cannot be read: {error}; move it away, or make it readable") from error
    try:
        record = json.loads(content)
        checked = kind.model_validate(record)
        if checked.id != file.stem:
            raise ValueError(f"its id is {checked.id!r}")
        if record.pop(_CHECKSUM, None) != value_digest(record):
            raise ValueError("its checksum is missing or wrong")
    except (ValueError, RecursionError) as error:  # of json, its decoder and pydantic
        log.warning("%s is damaged (%s): it is made again", file, _shortened(error))
        return None
    return dict(record)


def _shortened(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return " ".join(str(error).split())[:200]


def _slug(label: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", label).strip("-.")[:60] or "unnamed"
