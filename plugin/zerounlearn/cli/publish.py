"""`zerounlearn card` and `zerounlearn push`: what was unlearned, described and uploaded."""

from __future__ import annotations

from pathlib import Path

import click

from zerounlearn.cli.command import EPILOG, command, say
from zerounlearn.errors import OutputError


@click.command(epilog=EPILOG)
@click.argument("source", metavar="EDIT_OR_FOLDER", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The card's file, as out/README.md.")
@click.option("--report", type=click.Path(path_type=Path), help="The run's report: report.json, or its folder.")
@click.option("--forget", type=click.Path(path_type=Path), help="The facts, for their number and digest.")
@click.option("--audit", type=click.Path(path_type=Path), help="An audit of the model: its folder.")
@click.option("--base", help="The base model's name on the hub.")
@click.option("--license", "licence", help="The base model's licence, as the hub names it: apache-2.0.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@command
def card(
    source: Path,
    output: Path,
    report: Path | None,
    forget: Path | None,
    audit: Path | None,
    base: str | None,
    licence: str | None,
    overwrite: bool,
) -> None:
    """Write a model card for an edit's file, a checkpoint's folder or an adapter's; no fact stands in it in clear."""
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputError(f"--output {str(output)!r} exists: name another file, or pass --overwrite")
    from zerounlearn.data.fact import load_facts
    from zerounlearn.files import write_text
    from zerounlearn.report.card import described, model_card, read_report

    attacks = None
    if audit is not None:
        from zerounlearn.audit.certificate import for_card
        from zerounlearn.audit.results import Audit

        attacks = for_card(Audit.load(audit))
    made = model_card(
        described(source),
        report=read_report(report) if report else None,
        facts=[(fact.request.prompt, fact.request.answer) for fact in load_facts(forget)] if forget else None,
        attacks=attacks,
        base=base,
        license=licence,
    )
    write_text(output, f"{str(made).rstrip()}\n")
    say(f"card: {output}")


@click.command(epilog=EPILOG)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--message", default="Upload by zerounlearn", show_default=True, help="Of the commit.")
@command
def push(folder: Path, repo: str, private: bool, message: str) -> None:
    """Upload a checkpoint's or an adapter's FOLDER to the Hugging Face hub, by huggingface_hub and its login.

    A folder that holds anything else is refused, a report and files of facts above all.
    """
    from zerounlearn.report.hub import push as upload

    say(upload(folder, repo, private=private, message=message))
