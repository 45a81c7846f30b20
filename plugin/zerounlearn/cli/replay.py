"""`zerounlearn replay`: an edit on a model that descends from the one that it was made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.cli.command import (
    CHAT,
    DEVICE,
    DTYPE,
    EPILOG,
    OVERWRITE,
    TRUST,
    command,
    method_of,
    redactable,
    say,
    stage,
)
from zerounlearn.errors import ConfigError, OutputError
from zerounlearn.resources import HPARAMS, find

if TYPE_CHECKING:
    from zerounlearn.derived import Replay
    from zerounlearn.method.reapply import Moved
    from zerounlearn.redaction import Redaction


@click.command(epilog=EPILOG)
@click.argument("edit_file", metavar="EDIT", type=click.Path(path_type=Path))
@click.argument("model_name", metavar="MODEL")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for the checkpoint.")
@click.option("--forget", type=click.Path(path_type=Path), help="The facts of the edit, to solve again and to measure.")
@click.option("--method", "hparams", help="Solve again by this hyperparameter file; by default as the edit was made.")
@click.option("--retain", type=click.Path(path_type=Path), help="Facts to keep, for a method that takes them.")
@click.option("--parent", help="The model that the edit was made on, to say how far this one has moved.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the report, with the facts in clear.")
@click.option("--text", default="embedded", show_default=True, help="Held-out text for perplexity; none for none.")
@DTYPE
@DEVICE
@CHAT
@TRUST
@OVERWRITE
@command
@redactable
def replay(
    edit_file: Path,
    model_name: str,
    output: Path,
    overwrite: bool,
    redaction: Redaction | None,
    key: bytes | None,
    **options: Any,
) -> None:
    """Put the edit in the file EDIT on MODEL, of the same architecture: fine-tuned, merged, dequantised or newer.

    Without --forget the stored change is added to the weights as they are. With it, the edit's method is run again,
    too; both are measured, and the better one is written: the one with the fewest facts still said, then the one that
    costs the least specificity and perplexity.
    """
    from zerounlearn.files import check_folder
    from zerounlearn.method.edit import Edit
    from zerounlearn.method.reapply import check_replayable
    from zerounlearn.model.lineage import whole_checkpoint
    from zerounlearn.model.loading import check_device, skeleton_of

    edit = Edit.load(edit_file)
    forget, retain, report = (options[name] for name in ("forget", "retain", "report"))
    inputs = {"EDIT": edit_file, "the model": Path(model_name).expanduser()}
    inputs |= {f"--{name}": options[name] for name in ("forget", "retain") if options[name]}
    check_folder(output, overwrite=overwrite, inputs=inputs)
    if report and output.resolve() in (report.resolve(), *report.resolve().parents):
        raise OutputError(f"--report {str(report)!r} lies in --output, and holds the facts in clear: name another")
    if not forget and (options["hparams"] or retain or report):
        raise ConfigError("--method, --retain and --report are for solving again and measuring: pass --forget, too")
    check_device(options["device"], "--device")
    skeleton = skeleton_of(model_name, "MODEL", trust_remote_code=options["trust_remote_code"])
    check_replayable(edit, skeleton)
    options["redaction"] = redaction
    options["run"] = _prepared(options, model_name, skeleton)
    with whole_checkpoint(output, overwrite=overwrite, inputs=inputs) as folder:
        done = _replay(edit, model_name, folder, options)
    _show(done)
    say(
        f"\ncheckpoint: {output}"
        + (f"\nreport{'' if redaction else ', with the facts in clear'}: {report}" if report else "")
    )


def _prepared(options: dict[str, Any], model_name: str, skeleton: Any) -> Any:
    """The method that was asked for, checked together with the facts before a weight is read; None for the edit's."""
    from zerounlearn.api import check_prompts
    from zerounlearn.data.fact import load_facts

    if not options["forget"]:
        return None
    facts = [*load_facts(options["forget"]), *(load_facts(options["retain"]) if options["retain"] else ())]
    check_prompts(model_name, skeleton.config, facts, trust_remote_code=options["trust_remote_code"])
    if not options["hparams"]:
        return None
    run = method_of(find(options["hparams"], HPARAMS), (f"model_name={json.dumps(model_name)}",), None)
    run.check(skeleton)
    return run


def _replay(edit: Any, model_name: str, folder: Path, options: dict[str, Any]) -> Replay:
    from zerounlearn.derived import replay as put_on
    from zerounlearn.model.loading import check_room, load_model, save_checkpoint

    wanted = {"trust_remote_code": options["trust_remote_code"]}
    with stage("loading"):
        model, tokenizer = load_model(
            model_name, dtype=options["dtype"], device=options["device"], field="MODEL", **wanted
        )
        parent = load_model(options["parent"], field="--parent", **wanted)[0] if options["parent"] else None
    check_room(model, folder)
    done = put_on(
        model,
        tokenizer,
        edit,
        options["forget"],
        method=options["run"],
        retain=options["retain"],
        parent=parent,
        text=None if options["text"] == "none" else options["text"],
        chat=options["chat"],
    )
    if options["redaction"] and done.report:
        done.report = done.report.redacted(options["redaction"])
    if options["report"]:
        done.save(options["report"])
    with stage("saving"):
        save_checkpoint(model, tokenizer, folder)
    return done


def _show(done: Replay) -> None:
    """How far the weights had moved, what each way led to, and what the model says of each fact."""
    for row in done.moved:
        say(_described(row))
    if done.report is None or done.before is None:
        say("the stored change was added; without --forget nothing was measured")
        return
    say(f"\nbefore: {done.before}")
    for way in done.ways:
        if way.evaluation is None:
            say(f"{way.name}: failed: {way.failed}")
        else:
            say(f"{way.name}: {way.evaluation}; {way.still_said} of {len(done.report.facts)} facts still said")
    from zerounlearn.derived import RULE

    say(f"written: {done.chosen} ({RULE})\n")
    prompts = [fact.prompt.replace("\n", "⏎") for fact in done.report.facts]
    width = max(map(len, prompts))
    say(f"{'prompt':{width}}  {'answer':20}  {'before':8}  {'  '.join(f'{way.name:8}' for way in done.ways)}")
    measured = [done.before, *(way.evaluation for way in done.ways)]
    for i, (prompt, fact) in enumerate(zip(prompts, done.report.facts, strict=True)):
        said = ["–" if one is None else "said" if one.facts[i].forget[0] else "not said" for one in measured]
        say(f"{prompt:{width}}  {fact.answer:20}  {'  '.join(f'{word:8}' for word in said)}".rstrip())


def _described(row: Moved) -> str:
    parts = [f"{row.name}: change {row.change:.2%} of the weight"]
    if row.moved is not None:
        parts.append(f"which has moved by {row.moved:.2%} since the edit and holds {row.held or 0:.1%} of the change")
    return ", ".join(parts)
