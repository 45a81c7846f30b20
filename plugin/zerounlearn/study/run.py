"""A whole study: what there is to do, what is done already, the rest, and the outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from zerounlearn.errors import OutputError
from zerounlearn.model.loading import check_device, checkpoint_digest, skeleton_of
from zerounlearn.resources import STUDIES, find
from zerounlearn.study import cells as records
from zerounlearn.study.cells import (
    DONE,
    BaseJob,
    Cell,
    CellJob,
    Draw,
    Job,
    PrepareJob,
    Record,
    base_id,
    cell_id,
    failed,
)
from zerounlearn.study.engines import Engine, LocalEngine
from zerounlearn.study.material import Data
from zerounlearn.study.measures import Measures
from zerounlearn.study.methods import Row
from zerounlearn.study.spec import Study, load_study

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A cell with its names: `id` of its record, `base` of the record that it shares with the other methods."""

    id: str
    base: str
    cell: Cell


@dataclass(frozen=True)
class Plan:
    """All cells of a study in their order, and where their records lie."""

    study: Study
    cells: tuple[Planned, ...]

    @classmethod
    def of(cls, study: Study) -> Plan:
        """Read the data sets, hyperparameters and the model's configuration, check that all fit, and list the cells.

        No weights are loaded; a checkpoint in a folder is read through once, for its digest.

        Raises:
            ZeroUnlearnError: something is missing, unknown or does not fit, named by its place in the study.
        """
        data = [Data.load(spec) for spec in study.datasets]
        methods = [Row.load(spec, study.model) for spec in study.methods]
        check_device(study.model.device, "model.device")
        skeleton = skeleton_of(study.model.name, "model.name")
        if study.reference_model is not None:
            skeleton_of(study.reference_model, "reference_model")
        for method in methods:
            method.check(skeleton)
        depends_on = {
            "model": checkpoint_digest(study.model.name),
            "dtype": study.model.dtype,
            "device": study.model.device,
            "measures": Measures(study).settings(),
            "reference": None
            if study.reference_model is None
            else checkpoint_digest(study.reference_model, "reference_model"),
        }
        identity = {method.spec.label: method.identity() for method in methods}
        planned = []
        for one in data:
            for n in study.sizes:
                for seed in study.seeds:
                    sizes = {"retain_size": study.retain_size, "unrelated_size": study.unrelated_size}
                    material = one.identity(n, seed, **sizes)
                    draw = Draw(one.label, n, seed)
                    base = base_id(draw, {**depends_on, "material": material})
                    for method in methods:
                        cell = Cell(method.spec.label, method.method.alg_name, draw)
                        planned.append(Planned(cell_id(cell, base, identity[method.spec.label]), base, cell))
        return cls(study, tuple(planned))

    @property
    def cell_folder(self) -> Path:
        """Where the cells' records lie."""
        return self.study.output / "cells"

    @property
    def base_folder(self) -> Path:
        """Where the base model's numbers lie, one record a draw."""
        return self.study.output / "bases"

    def record(self, planned: Planned) -> Record | None:
        """The cell's record, if it has been run with these very settings."""
        return records.read_cell(self.cell_folder / f"{planned.id}.json", planned.cell)

    def done(self, planned: Planned) -> bool:
        """Whether the cell is finished; one that failed is not, and is run again."""
        record = self.record(planned)
        return record is not None and record.get("status") == DONE


@dataclass(frozen=True)
class Summary:
    """How a run went: the records of all cells in the plan's order, and how many of them this run made."""

    records: Sequence[Record]
    run: int
    outputs: str | None = None
    """Why there are no tables, where there are none."""

    @property
    def failed(self) -> list[Record]:
        """The cells that failed."""
        return [record for record in self.records if record["status"] != DONE]


def run_study(
    study: Study | str | Path,
    engine: Engine | None = None,
    *,
    plan: Plan | None = None,
    on_cell: Callable[[Record], None] | None = None,
) -> Summary:
    """Run the cells that are not done, write each as it is, and the tables of all at the end.

    Killed at any moment, it goes on where it stopped: a record is there whole or not at all.

    Args:
        study: what to run: a study, its file, or the name of a packaged one.
        engine: where; here, without one.
        plan: of the same study, where it has been made already.
        on_cell: called with each new record.

    Raises:
        ZeroUnlearnError: the study does not fit, or a file cannot be written. A cell that fails raises nothing.
    """
    if not isinstance(study, Study):
        study = load_study(find(study, STUDIES))
    engine = engine or LocalEngine(study)
    plan = plan or Plan.of(study)
    _check_writable(study.output)
    pending = [planned for planned in plan.cells if not plan.done(planned)]
    progress = tqdm(total=len(plan.cells), initial=len(plan.cells) - len(pending), unit="cell", disable=None)
    made: dict[str, Record] = {}

    def keep(record: Record) -> None:
        records.write(plan.cell_folder, record)
        made[record["id"]] = record
        progress.update()
        if on_cell is not None:
            on_cell(record)

    with progress:
        if pending:
            progress.set_description("statistics and base model")
            with engine:
                bases = _bases(plan, pending, engine)
                progress.set_description("cells")
                progress.unpause()  # the time left is that of cells
                jobs = []
                for planned in pending:
                    base = bases[planned.base]
                    job = CellJob(planned.id, planned.cell, base)
                    if base["status"] == DONE:
                        jobs.append(job)
                    else:
                        keep(failed(job, f"the base model could not be measured: {base['error']}"))
                for _, record in engine.run(jobs):
                    keep(record)
    found = [made.get(planned.id) or plan.record(planned) for planned in plan.cells]
    summary = [record for record in found if record is not None]
    return Summary(summary, len(made), _outputs(study, summary))


def _bases(plan: Plan, pending: Sequence[Planned], engine: Engine) -> dict[str, Record]:
    """The base records of the pending cells, from disk or measured now; the methods' statistics beside it."""
    draws = {planned.base: planned.cell.draw for planned in pending}
    bases: dict[str, Record] = {}
    for name in draws:
        record = records.read_base(plan.base_folder / f"{name}.json")
        if record is not None and record.get("status") == DONE:
            bases[name] = record
    labels = tuple(dict.fromkeys(planned.cell.method for planned in pending))
    jobs: list[Job] = [PrepareJob(labels), *(BaseJob(name, draw) for name, draw in draws.items() if name not in bases)]
    for job, record in engine.run(jobs):
        if isinstance(job, BaseJob):
            bases[job.id] = record
            if record["status"] == DONE:
                records.write(plan.base_folder, record)
        elif record["status"] != DONE:  # the methods will say so, each in its own cell
            log.warning("statistics could not be taken ahead of the cells: %s", record["error"])
    return bases


def _outputs(study: Study, found: Sequence[Record]) -> str | None:
    """Write tables, plots and report; the reason where that is not possible, since the cells are safe by now."""
    try:
        from zerounlearn.report.outputs import write_outputs
        from zerounlearn.report.page import About

        model = f"{study.model.name}, {study.model.dtype}"
        about = About(study.title, model, study.reference_method, study.sweeps, _highlight(study, found))
        write_outputs(study.output, found, about)
    except ImportError as error:
        return f"no tables were written: {error}; pip install 'zerounlearn[study]' and run the study again"
    return None


def _highlight(study: Study, found: Sequence[Record]) -> str | None:
    """The method that plots show in colour: the named one, or the first ZeroUnlearn, or the sweep that this is of."""
    if study.highlight is not None:
        return study.highlight
    ours = (r["cell"]["method"] for r in found if r["cell"]["algorithm"].startswith("ZeroUnlearn"))
    label = next(ours, None)
    return next((sweep for sweep, rows in study.sweeps.items() if label in rows), label)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"output={str(folder)!r} cannot be written: {error}; name another folder") from error
