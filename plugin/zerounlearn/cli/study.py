"""`zerounlearn study`: many methods, data sets and seeds on one model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from zerounlearn.cli.command import EPILOG, OVERRIDES, check_overrides, command, say
from zerounlearn.resources import STUDIES, find


@click.command(epilog=EPILOG)
@click.argument("study_file", metavar="STUDY")
@OVERRIDES
@click.option("--dry-run", is_flag=True, help="Check everything that needs no weights, and list the cells.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Here, or on Ray's workers.")
@click.option("--workers", type=int, default=2, show_default=True, help="Of Ray; each loads the model.")
@click.option("--gpus-per-worker", type=float, default=0.0, show_default=True, help="Of Ray; 0.5 lets two share one.")
@click.option("--cpus-per-worker", type=float, default=1.0, show_default=True, help="Of Ray.")
@click.option("--ray-address", help="A running cluster; without it, a local one is started.")
@command
def study(
    study_file: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    engine: str,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
    ray_address: str | None,
) -> None:
    """Compare methods over data sets, forget-set sizes and seeds; KEY=VALUE changes a setting (seeds=[0,1]).

    STUDY is a file, or the name of a packaged one (quick, fronts). Finished cells are kept in the study's output folder
    and never run again unless what they depend on has changed. The exit code is 1 if a cell failed.
    """
    from zerounlearn.study.engines import LocalEngine, RayEngine
    from zerounlearn.study.run import Plan, run_study
    from zerounlearn.study.spec import load_study

    check_overrides(overrides)
    spec = load_study(find(study_file, STUDIES), overrides)
    plan = Plan.of(spec)
    done = sum(plan.done(planned) for planned in plan.cells)
    if dry_run:
        for planned in plan.cells:
            say(f"{planned.id}{' (done)' if plan.done(planned) else ''}")
        say(f"{len(plan.cells)} cells, {done} of them done: everything fits")
        return
    place = (
        LocalEngine(spec)
        if engine == "local"
        else RayEngine(spec, workers, gpus_per_worker, cpus_per_worker, ray_address)
    )
    summary = run_study(spec, place, plan=plan, on_cell=_report_cell)
    say(f"{len(summary.records)} cells in {spec.output}, {summary.run} of them run now")
    if summary.outputs:
        click.echo(summary.outputs, err=True)
    if summary.failed:
        raise click.ClickException(
            f"{len(summary.failed)} of {len(summary.records)} cells failed, {summary.failed[0]['id']} with: "
            f"{summary.failed[0]['error']}\nRun the study again to try them again"
        )


def _report_cell(record: Mapping[str, Any]) -> None:
    """One line a cell, above the progress bar."""
    from tqdm import tqdm

    if record["status"] == "done":
        shown = [
            f"{name} {record['after'][name]:.4g}" for name in ("eff", "gen", "spe", "ppl") if name in record["after"]
        ]
        text = ", ".join([*shown, f"{record['seconds']['unlearn']:.0f} s"])
    else:
        text = f"failed: {record['error']}"
    tqdm.write(f"{record['id']}: {text}", file=sys.stdout)
