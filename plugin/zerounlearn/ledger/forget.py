"""A run of the ledger: all pending requests in one solve, a checkpoint and an edit on disk, then the books."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerounlearn.api import evaluate, unlearn_and_report
from zerounlearn.data.fact import Fact
from zerounlearn.errors import ConfigError, LedgerError, OutputError
from zerounlearn.files import check_folder
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.digests import file_digest
from zerounlearn.ledger.hidden import facts_hidden
from zerounlearn.ledger.state import DONE, Books, LedgerRun
from zerounlearn.method.base import UnlearningMethod
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.fingerprint import value_digest, weights_hash
from zerounlearn.model.lineage import whole_checkpoint
from zerounlearn.model.loading import check_room, save_checkpoint
from zerounlearn.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerounlearn.report.run import Phase, Report

log = logging.getLogger(__name__)

STILL_SAID = "still said"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        run: its number.
        forgotten: ids of the requests whose facts the model says no more.
        failed: ids of those that it still says.
        said_again: ids of earlier ones, kept in clear, that it says again.
        edit: the edit's file.
        head: of the books, with this run in them.
    """

    run: int
    forgotten: list[int]
    failed: list[int]
    said_again: list[int]
    edit: Path
    head: str


def edit_file(output: Path) -> Path:
    """Where the edit of a checkpoint lies: beside its folder."""
    return output.absolute().with_name(f"{output.absolute().name}-edit.safetensors")


def facts_to_forget(ledger: Ledger) -> dict[int, Fact]:
    """What a run would take, see `Ledger.pending`.

    Raises:
        LedgerError: nothing is pending.
    """
    facts = ledger.pending()
    if not facts:
        raise LedgerError("no request is pending: `zerounlearn ledger add FACTS` enters one")
    return facts


def check_output(output: Path, inputs: Mapping[str, Path] | None = None) -> None:
    """Refuse an output before any work; what an earlier run wrote is evidence and is not replaced.

    Raises:
        OutputError: see `check_folder`; or there is an edit of that name.
    """
    check_folder(output, inputs=inputs)
    if edit_file(output).exists():
        raise OutputError(f"{str(edit_file(output))!r} exists: name another folder")


def forget_pending(
    ledger: Ledger,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: UnlearningMethod,
    output: Path,
    *,
    keep_facts: bool = False,
    other_model: bool = False,
    chat: bool = False,
    text: str | Sequence[str] | None = "embedded",
) -> Outcome:
    """Forget every pending request in one solve, write checkpoint and edit, then say so in the books.

    Where the model is the checkpoint that the last run wrote, what was forgotten before stays so: see `model.lineage`.
    If anything fails, model, files and requests are as they were.

    Args:
        ledger: with the key that it was begun with.
        model: a decoder, edited in place.
        tokenizer: the model's.
        method: a configuration.
        output: a new folder for the checkpoint; the edit lies beside it, see `edit_file`.
        keep_facts: keep what is forgotten in clear, to ask for it after later runs; by default it is purged.
        other_model: take a model that is not the last run's, in which what was forgotten before may be said.
        chat: put every prompt into the tokenizer's chat template.
        text: ordinary text for perplexity, see `evaluate`.

    Raises:
        LedgerError: nothing is pending, another run is at work, or the model is not the one that the last run left.
        ZeroUnlearnError: see `unlearn_and_report`; the books then call the run abandoned.
    """
    with ledger.database.running():
        facts = facts_to_forget(ledger)
        _check_method(method)
        check_output(output)
        method = method.located(model, tokenizer)
        before = weights_hash(model)
        check_model_follows(ledger.books(), before, other_model=other_model)
        earlier = ledger.kept(*DONE)
        with (
            _started(ledger, list(facts), output, method.alg_name) as number,
            facts_hidden(facts | earlier),
            restored_if_it_fails(model, method.weight_names(model)),
            _gone_if_it_fails(edit_file(output)) as file,
            whole_checkpoint(output) as folder,
        ):
            check_room(model, folder)
            said_before = _said(model, tokenizer, earlier, chat=chat)
            report, edit = unlearn_and_report(model, tokenizer, list(facts.values()), method, text=text, chat=chat)
            said_again = sorted(_said(model, tokenizer, earlier, chat=chat) - said_before)
            save_checkpoint(model, tokenizer, folder)
            edit.save(file, originals=True, key=ledger.key)
            _on_disk(*folder.iterdir(), folder, file)
            found = {
                "edit": file_digest(file),
                "model_before": before,
                "model_after": weights_hash(model),
                "hparams": value_digest(report.hparams),
                "metrics": {"before": _numbers(report.before), "after": _numbers(report.after)},
                "zerounlearn": __version__,
                "said_again": said_again,
            }
        _on_disk(output, file.parent)
        return _finish(ledger, number, facts, report, found, file, keep_facts=keep_facts)


def _check_method(method: UnlearningMethod) -> None:
    if method.wraps_modules:
        raise ConfigError(f"alg_name={method.alg_name!r} wraps modules, which no checkpoint can hold")
    if not method.saves_edits:
        raise ConfigError(
            f"alg_name={method.alg_name!r} changes more than weights, so that its edits are no files: the ledger keeps "
            "a file of every run, so take another (`zerounlearn list methods`)"
        )


def check_model_follows(books: Books, weights: str, *, other_model: bool) -> None:
    """Refuse a model in which what the books call forgotten is not.

    Raises:
        LedgerError: its weights are not those that the last run left.
    """
    run = last_run(books)
    if run is not None and not other_model and run.found["model_after"] != weights:
        raise LedgerError(
            f"the model's weights are not those that run {run.number} left in {run.output!r}, so what was forgotten "
            "there would be said here: name that checkpoint (--model), or pass --other-model to run on another one"
        )


def last_run(books: Books) -> LedgerRun | None:
    """The last run that stands, if there is any."""
    return next((run for run in reversed(books.runs.values()) if run.outcome == "finished"), None)


@contextmanager
def _started(ledger: Ledger, requests: list[int], output: Path, method: str) -> Iterator[int]:
    """Say in the books that a run has begun, and if it fails, that it is off; one that is killed says nothing more."""
    with ledger.page() as page:
        for cut_off in page.books.unfinished:
            log.warning("%s", left_behind(cut_off))
        number = len(page.books.runs) + 1
        page.append("started", run=number, requests=requests, output=str(output), method=method)
    try:
        yield number
    except BaseException as error:
        with suppress(LedgerError), ledger.page() as page:  # the reason to tell is the first one
            page.append("abandoned", run=number, error=type(error).__name__)
        raise


def left_behind(run: LedgerRun) -> str:
    """What a run that was cut off means for the next one."""
    ids = ", ".join(map(str, run.requests))
    return (
        f"run {run.number}, begun at {run.started}, did not finish: what it took is pending still (requests {ids}), "
        f"and what lies in {run.output!r}, if anything, is not in the books"
    )


@contextmanager
def _gone_if_it_fails(file: Path) -> Iterator[Path]:
    try:
        yield file
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _said(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: Mapping[int, Fact], *, chat: bool
) -> set[int]:
    """The requests whose facts the model says."""
    if not facts:
        return set()
    found = evaluate(model, tokenizer, list(facts.values()), text=None, chat=chat)
    return {number for number, measured in zip(facts, found.facts, strict=True) if measured.forget[0]}


def _on_disk(*paths: Path) -> None:
    """Wait until what was written is on the disk, folders' entries too: only then may the books speak of it."""
    for path in paths:
        folder = path.is_dir()
        with suppress(*((OSError,) if folder else ())):  # not every system can do it for a folder
            handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _numbers(phase: Phase) -> dict[str, float | None]:
    """The means of a report's phase, none of them infinite."""
    return {name: _finite(value) for name, value in asdict(phase).items() if name != "known"}


def _verdict(said: tuple[bool, float]) -> list[Any]:
    return [said[0], _finite(said[1])]


def _finite(value: float | None) -> float | None:
    """What JSON can hold; a model that is ruined gives others."""
    return value if value is not None and math.isfinite(value) else None


def _finish(
    ledger: Ledger,
    number: int,
    facts: Mapping[int, Fact],
    report: Report,
    found: dict[str, Any],
    file: Path,
    *,
    keep_facts: bool,
) -> Outcome:
    """Write what came out, and purge what is forgotten, in one transaction."""
    results = [
        {
            "request": request,
            "reason": STILL_SAID if fact.after.forget[0] else "",
            "before": _verdict(fact.before.forget),
            "after": _verdict(fact.after.forget),
        }
        for request, fact in zip(facts, report.facts, strict=True)
    ]
    failed = [request for request, fact in zip(facts, report.facts, strict=True) if fact.after.forget[0]]
    forgotten = [request for request in facts if request not in failed]
    try:
        with ledger.page() as page:
            page.append("finished", run=number, results=results, **found)
            if not keep_facts:
                page.purge(forgotten)
            head = page.books.head
    except LedgerError as error:
        raise LedgerError(
            f"{error}; the checkpoint is written, but the books do not have it: its requests are pending still"
        ) from error
    if not keep_facts:
        ledger.database.clear()
    return Outcome(number, forgotten, failed, found["said_again"], file, head)
