"""`zerounlearn ledger`: requests to forget with dates and owners, and books that nobody can change unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zerounlearn.cli.command import (
    CHAT,
    DEVICE,
    DTYPE,
    EPILOG,
    HPARAMS_ARGUMENT,
    NOT_MET,
    OVERRIDES,
    SEED,
    TRUST,
    check_without_weights,
    command,
    held_out_text,
    loaded,
    method_of,
    say,
)
from zerounlearn.errors import ConfigError
from zerounlearn.resources import HPARAMS, find

if TYPE_CHECKING:
    from zerounlearn.ledger.books import Ledger

_IDS = click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")
_MODEL = "Checkpoint's folder or hub name"


@click.group(epilog=EPILOG)
def ledger() -> None:
    """Requests to forget: who asked, until when, what was done, in books that show any change.

    The books hold digests. Facts in clear lie beside them until they are forgotten, and are then purged. Write down the
    head that `status` prints where others cannot change it: `verify --head` proves by it that nothing was cut off.
    """


def _with_books(function: Callable[..., None]) -> Callable[..., None]:
    """Every command of the ledger says where the books are, and with which key."""
    where = click.option(
        "--ledger",
        "where",
        envvar="ZEROUNLEARN_LEDGER",
        default="ledger.sqlite",
        show_default=True,
        show_envvar=True,
        help="SQLite's file, or postgresql://user@host/database.",
    )
    key = click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        help="The key of the facts' digests, never stored; by default what ZEROUNLEARN_KEY holds, if anything.",
    )
    return where(key(command(function)))


def _opened(where: str, key_file: Path | None, *, create: bool = False) -> Ledger:
    from zerounlearn.ledger.books import Ledger
    from zerounlearn.redaction import read_key

    return Ledger.open(where, key=read_key(key_file), create=create)


@ledger.command(epilog=EPILOG)
@click.argument("facts", type=click.Path(path_type=Path))
@click.option("--owner", default="", help="Reference of whoever asks; it stays in the books: a number, not a name.")
@click.option("--received", help="When it came, as 2026-11-27; now by default.")
@click.option("--due", help="Until when it is to be done, as 2026-12-27: the end of that day, UTC.")
@click.option("--skip-known", is_flag=True, help="Leave out what the ledger has already; else nothing is added then.")
@_with_books
def add(
    facts: Path, owner: str, received: str | None, due: str | None, skip_known: bool, where: str, key_file: Path | None
) -> None:
    """Enter the facts of a file as requests; the first one begins the ledger."""
    from zerounlearn.data.fact import load_facts
    from zerounlearn.ledger.events import moment

    loaded = load_facts(facts)
    for field, given in (("received", received), ("due", due)):
        if given is not None:
            moment(given, field)  # before a ledger is begun
    books = _opened(where, key_file, create=True)
    ids = books.add(loaded, owner=owner, received=received, due=due, skip_known=skip_known)
    click.echo("\n".join(map(str, ids)), nl=bool(ids))
    if len(ids) < len(loaded):
        click.echo(f"{len(loaded) - len(ids)} are in the ledger already", err=True)


@ledger.command(epilog=EPILOG)
@HPARAMS_ARGUMENT
@OVERRIDES
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for the checkpoint.")
@click.option("--model", help=f"{_MODEL}, instead of the run's: the last run's output.")
@click.option("--other-model", is_flag=True, help="Take a model in which earlier requests may not be forgotten.")
@click.option("--keep-facts", is_flag=True, help="Keep in clear what is forgotten, to ask for it after later runs.")
@SEED
@DTYPE
@CHAT
@TRUST
@_with_books
def run(
    hparams: str,
    overrides: tuple[str, ...],
    output: Path,
    model: str | None,
    other_model: bool,
    keep_facts: bool,
    seed: int | None,
    dtype: str,
    chat: bool,
    trust_remote_code: bool,
    where: str,
    key_file: Path | None,
) -> None:
    """Forget all pending requests in one solve, by the method that HPARAMS names; write a new checkpoint to --output.

    The edit lies beside the checkpoint, in OUTPUT-edit.safetensors. A fact that is still said makes its request failed,
    and the exit code 3. What earlier runs forgot stays so where the model is the checkpoint that the last one wrote.
    """
    from zerounlearn.ledger.forget import check_output, facts_to_forget, forget_pending
    from zerounlearn.ledger.hidden import facts_hidden

    file = find(hparams, HPARAMS)
    method = method_of(file, overrides if model is None else (*overrides, f"model_name={model}"), seed)
    inputs = {"the model": Path(str(method.model_name)).expanduser(), "HPARAMS": file}
    check_output(output, inputs)
    books = _opened(where, key_file)
    with books.database.running():
        facts = facts_to_forget(books)
        with facts_hidden(facts):
            check_without_weights(method, list(facts.values()), trust_remote_code=trust_remote_code)
        done = forget_pending(
            books,
            *loaded(method, dtype=dtype, trust_remote_code=trust_remote_code),
            method,
            output,
            keep_facts=keep_facts,
            other_model=other_model,
            chat=chat,
            text=held_out_text(method),
        )
    say(f"run {done.run}: {_listed(done.forgotten)} forgotten")
    say(f"checkpoint: {output}\nedit: {done.edit}\nhead, to be written down: {done.head}")
    for ids, what in ((done.failed, "still said"), (done.said_again, "forgotten before and said again")):
        if ids:
            click.echo(f"{what}: {_listed(ids)}", err=True)
    if done.failed or done.said_again:
        raise SystemExit(NOT_MET)


def _listed(ids: Sequence[int]) -> str:
    if not ids:
        return "nothing"
    return f"request{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"


@ledger.command(epilog=EPILOG)
@click.option("--html", type=click.Path(path_type=Path), help="Write it as a page.")
@click.option("--json", "as_data", is_flag=True, help="Print it as JSON, in full.")
@_with_books
def status(html: Path | None, as_data: bool, where: str, key_file: Path | None) -> None:
    """The requests, their states, and the head of the books; no fact in clear."""
    from zerounlearn.files import write_text
    from zerounlearn.ledger import views

    opened = _opened(where, key_file)
    books, problems = opened.books(), opened.verify()
    if html is not None:
        write_text(html, views.as_html(books))
    if as_data:
        click.echo(views.as_json(books))
    elif html is None:
        click.echo(f"{views.table(books)}\n\n{views.summary(books)}\nhead: {books.head}")
        for cut_off in books.unfinished:
            click.echo(f"run {cut_off.number} is at work, or did not finish: requests {cut_off.requests}")
    if problems:
        raise click.ClickException(
            f"the books are not as they were written: {problems[0]}; see `zerounlearn ledger verify`"
        )


@ledger.command(epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.csv")
@_with_books
def export(file: Path, where: str, key_file: Path | None) -> None:
    """Write a CSV file for the auditor: a line a request, no fact in clear."""
    from zerounlearn.files import write_text
    from zerounlearn.ledger import views

    write_text(file, views.as_csv(_opened(where, key_file).books()))


@ledger.command(epilog=EPILOG)
@click.option("--head", help="A head that was written down: shows whether the end was cut off, or all written anew.")
@_with_books
def verify(head: str | None, where: str, key_file: Path | None) -> None:
    """Whether the books are as they were written; the exit code is 1 if they are not."""
    opened = _opened(where, key_file)
    if problems := opened.verify(head):
        raise click.ClickException(f"the books are not as they were written: {'; '.join(problems)}")
    books = opened.books()
    say(f"{books.last.number if books.last else 0} events, as they were written\nhead: {books.head}")


@ledger.command(epilog=EPILOG)
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@_with_books
def purge(ids: tuple[int, ...], where: str, key_file: Path | None) -> None:
    """Delete facts in clear: of these requests, or of all that are forgotten or reverted."""
    gone = _opened(where, key_file).purge(ids)
    say(f"purged: {_listed(gone)}")


@ledger.command(epilog=EPILOG)
@_IDS
@click.option("--result", required=True, type=click.Path(path_type=Path), help="The audit's result, a JSON file.")
@click.option(
    "--verdict", type=click.Choice(["passed", "failed"]), help="By default what the file says under 'passed'."
)
@_with_books
def audit(ids: tuple[int, ...], result: Path, verdict: str | None, where: str, key_file: Path | None) -> None:
    """Attach an audit to forgotten requests: the digest of its result, and what it came to."""
    from zerounlearn.ledger.digests import file_digest

    digest, said = file_digest(result), verdict == "passed" if verdict else _verdict(result)
    _opened(where, key_file).audit(ids, digest, passed=said)
    say(f"{_listed(ids)}: audit {'passed' if said else 'failed'}, result {digest}")


def _verdict(result: Path) -> bool:
    try:
        said = json.loads(result.read_text(encoding="utf-8"))["passed"]
        if isinstance(said, bool):
            return said
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f'--result {str(result)!r} does not say "passed": true or false: pass --verdict passed or failed')


@ledger.command(epilog=EPILOG)
@_IDS
@_with_books
def reopen(ids: tuple[int, ...], where: str, key_file: Path | None) -> None:
    """Make failed or reverted requests pending again, as long as their facts are kept."""
    _opened(where, key_file).reopen(ids)
    say(f"pending again: {_listed(ids)}")


@ledger.command(epilog=EPILOG)
@_IDS
@click.option("--model", help=f"{_MODEL}: as the run left it, or as it was before.")
@click.option("--edit", type=click.Path(path_type=Path), help="The run's edit, for a model as the run left it.")
@click.option("--output", type=click.Path(path_type=Path), help="New folder for the model without the edit; likewise.")
@DTYPE
@DEVICE
@TRUST
@_with_books
def revert(
    ids: tuple[int, ...],
    model: str | None,
    edit: Path | None,
    output: Path | None,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    where: str,
    key_file: Path | None,
) -> None:
    """Take requests back: pending ones at once, a run's for all of its requests together.

    A run's edit is taken off --model, bit for bit, and the model written to --output; or --model is recognised as what
    it was before the run, and nothing is written but the books.
    """
    from zerounlearn.ledger.revert import revert_run, run_to_revert, withdraw
    from zerounlearn.model.loading import load_model

    books = _opened(where, key_file)
    with books.database.running():
        taken = run_to_revert(books.books(), ids)
        if taken is None:
            if given := [name for name, value in (("--model", model), ("--edit", edit), ("--output", output)) if value]:
                raise ConfigError(
                    f"{given[0]}: these requests are pending, and withdrawn without a model: leave it away"
                )
            withdraw(books, ids)
        elif model is None:
            raise ConfigError(
                f"--model is missing: the checkpoint of run {taken.number}, {taken.output!r}, or the one before"
            )
        else:
            found: Any = load_model(
                model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, field="--model"
            )
            revert_run(books, ids, *found, edit=edit, output=output)
    say(f"reverted: {_listed(ids)}")
