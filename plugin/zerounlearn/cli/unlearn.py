"""`zerounlearn unlearn`: facts and a method in, a checkpoint and a report out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.cli.command import (
    CHAT,
    DTYPE,
    EPILOG,
    FORGET,
    HPARAMS_ARGUMENT,
    NOT_MET,
    OVERRIDES,
    OVERWRITE,
    SEED,
    TRUST,
    check_without_weights,
    command,
    held_out_text,
    loaded,
    method_of,
    redactable,
    say,
    stage,
)
from zerounlearn.cli.edits import check_edit_file
from zerounlearn.errors import ConfigError, OutputError, RequestError, ZeroUnlearnError
from zerounlearn.resources import HPARAMS, find

if TYPE_CHECKING:
    from zerounlearn.data.fact import Fact
    from zerounlearn.method.edit import Edit
    from zerounlearn.redaction import Redaction


@click.command(epilog=EPILOG)
@HPARAMS_ARGUMENT
@OVERRIDES
@FORGET
@click.option("--output", help="New folder for the checkpoint.")
@click.option(
    "--edit-only",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the edit alone, a few megabytes for `zerounlearn apply`; beside --output, or in its place.",
)
@click.option("--originals", is_flag=True, help="Let the edit's file take itself off exactly, for some bits a number.")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for the report; OUTPUT-report or FILE-report by default."
)
@click.option("--retain", type=click.Path(path_type=Path), help="Facts to keep, in the format of --forget.")
@SEED
@DTYPE
@CHAT
@click.option("--require-known", is_flag=True, help="Fail if the model says less than half of the facts before.")
@click.option(
    "--require",
    multiple=True,
    metavar="NAME<=NUMBER",
    help="A bound on what is measured afterwards, as 'eff<=0.05', 'ppl<=1.01x' (times what it was); else the exit code "
    "is 3. May be given again.",
)
@TRUST
@OVERWRITE
@click.option("--dry-run", is_flag=True, help="Check all that needs no weights, and write nothing.")
@command
@redactable
def unlearn(
    hparams: str,
    overrides: tuple[str, ...],
    forget: Path,
    output: str | None,
    edit_only: Path | None,
    originals: bool,
    report: Path | None,
    retain: Path | None,
    seed: int | None,
    dtype: str,
    chat: bool,
    require_known: bool,
    require: tuple[str, ...],
    trust_remote_code: bool,
    overwrite: bool,
    dry_run: bool,
    redaction: Redaction | None,
    key: bytes | None,
) -> None:
    """Forget the facts of --forget by the method that HPARAMS names; write a checkpoint, the edit alone, or both.

    HPARAMS is a file, or the name of a packaged one (`zerounlearn hparams list`). KEY=VALUE changes a hyperparameter.
    The report holds the facts in clear (but with --redact), and lies beside the checkpoint, not in it.
    """
    from zerounlearn.data.fact import load_facts
    from zerounlearn.model.lineage import whole_checkpoint
    from zerounlearn.report.requirements import requirements

    requirements(require)
    file = find(hparams, HPARAMS)
    method = method_of(file, overrides, seed)
    facts = load_facts(forget)
    kept = load_facts(retain) if retain else None
    _check_apart(facts, kept)
    method.check_given(kept is not None or method.names_retain_set)
    if method.wraps_modules:
        raise ConfigError(
            f"alg_name={method.alg_name!r} wraps modules, which no checkpoint can hold: use it in a study"
        )
    inputs = {"the model": Path(str(method.model_name)).expanduser(), "HPARAMS": file, "--forget": forget}
    inputs |= {"--retain": retain} if retain else {}
    inputs |= {"the statistics": Path(method.stats_dir)} if hasattr(method, "stats_dir") else {}
    place, reports = _places(output, edit_only, report, overwrite=overwrite, inputs=inputs)
    save = _saving(method, edit_only, key, originals=originals)
    check_without_weights(method, [*facts, *(kept or ())], trust_remote_code=trust_remote_code)
    if dry_run:
        say(f"{len(facts)} facts, {_layers(method)} of {method.model_name}: everything fits")
        return
    with whole_checkpoint(place, overwrite=overwrite, inputs=inputs) if place else contextlib.nullcontext() as folder:
        asked = {"chat": chat, "require_known": require_known, "require": require}
        failed = _forget(method, facts, kept, folder, reports, dtype, asked, trust_remote_code, save, redaction)
    written = [f"{name}: {path}" for name, path in (("checkpoint", output), ("edit", edit_only)) if path]
    say("\n".join(["", *written, f"report{'' if redaction else ', with the facts in clear'}: {reports}"]))
    if failed:
        raise SystemExit(NOT_MET)


def _places(
    output: str | None, edit_only: Path | None, report: Path | None, *, overwrite: bool, inputs: dict[str, Path]
) -> tuple[Path | None, Path]:
    """The folder of the checkpoint, if there is to be one, and that of the report; all can be written."""
    from zerounlearn.files import check_folder

    if output is None and edit_only is None:
        raise click.UsageError("name --output FOLDER for a checkpoint, --edit-only FILE for the edit alone, or both")
    if output is not None and not output.strip():
        raise OutputError(f"--output {output!r} is empty: name a new folder")
    place = None if output is None else Path(output)
    if place is not None:
        check_folder(place, overwrite=overwrite, inputs=inputs)
    if edit_only is not None:
        check_edit_file(edit_only, "--edit-only", overwrite=overwrite, inputs=inputs)
        if place is not None and place.absolute().resolve() in edit_only.absolute().resolve().parents:
            raise OutputError(f"--edit-only {str(edit_only)!r} lies in --output {output!r}: name a file beside it")
    beside = (place or edit_only or Path()).absolute()
    reports = report or beside.with_name(f"{beside.stem if place is None else beside.name}-report")
    if reports.exists() and not reports.is_dir():
        raise OutputError(f"--report {str(reports)!r} is a file: name a folder")
    return place, reports


def _saving(method: Any, file: Path | None, key: bytes | None, *, originals: bool) -> Callable[[Edit], None]:
    """What is to be done with the edit when it is made, refused now where it could not be done then."""
    if file is None:
        if originals:
            raise click.UsageError("--originals are of the edit's file: name it with --edit-only")
        return lambda edit: None
    if not method.saves_edits:
        raise ConfigError(
            f"alg_name={method.alg_name!r} changes more than weights, so that its edits are no files: write a "
            "checkpoint with --output"
        )
    return lambda edit: edit.save(file, originals=originals, key=key)


def _forget(
    method: Any,
    facts: Any,
    kept: Any,
    folder: Path | None,
    reports: Path,
    dtype: str,
    asked: dict[str, Any],
    trust_remote_code: bool,
    save: Callable[[Edit], None],
    redaction: Redaction | None,
) -> bool:
    """Load, forget, report, save; where the checkpoint cannot be saved, report and edit stay.

    Returns:
        Whether a requirement is not met.
    """
    from zerounlearn.api import unlearn_and_report
    from zerounlearn.model.loading import check_room, save_checkpoint

    model, tokenizer = loaded(method, dtype=dtype, trust_remote_code=trust_remote_code)
    if folder is not None:
        check_room(model, folder)
    report, edit = unlearn_and_report(
        model,
        tokenizer,
        facts,
        method,
        retain=kept,
        text=held_out_text(method),
        **asked,
    )
    if redaction is not None:
        report = report.redacted(redaction)
        edit.hparams = redaction.values(edit.hparams)
    report.save(reports)
    save(edit)
    try:
        with stage("saving"):
            if folder is not None:
                save_checkpoint(model, tokenizer, folder)
    except OutputError as error:
        where = f"the report is in {str(reports)!r}"
        with contextlib.suppress(ZeroUnlearnError, OSError):
            edit.save(reports / "edit.safetensors")
            where += ", the edit in edit.safetensors beside it"
        raise OutputError(f"{error}; {where}") from error
    say(report.to_markdown().split("## Layers")[0].rstrip())
    return bool(report.failed)


def _check_apart(facts: list[Fact], kept: list[Fact] | None) -> None:
    forgotten = {fact.request.key: fact.request.prompt for fact in facts}
    both = [forgotten[fact.request.key] for fact in kept or () if fact.request.key in forgotten]
    if both:
        raise RequestError(f"--retain and --forget both hold {both[0]!r}")


def _layers(method: Any) -> str:
    layers = getattr(method, "layers", None)
    if not layers and hasattr(method, "fact_token"):
        return "layers that are found on the model"
    return f"layers {list(layers)}" if layers else "all layers"
