"""Taking requests back: a pending one is withdrawn; a run's edit comes off the model for all its requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zerounlearn.errors import EditError, LedgerError
from zerounlearn.ledger.books import Ledger
from zerounlearn.ledger.digests import file_digest
from zerounlearn.ledger.state import PENDING, Books, LedgerRun
from zerounlearn.method.edit import Edit
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.fingerprint import weights_hash
from zerounlearn.model.lineage import whole_checkpoint
from zerounlearn.model.loading import save_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def withdraw(ledger: Ledger, ids: Sequence[int]) -> None:
    """Take pending requests back, and purge their facts.

    Raises:
        LedgerError: one is not pending.
    """
    with ledger.database.running():  # no run has taken them
        with ledger.page() as page:
            page.append("reverted", run=None, requests=list(ids))
            page.purge([one.id for one in page.books.named(ids) if one.held])
        ledger.database.clear()


def run_to_revert(books: Books, ids: Sequence[int]) -> LedgerRun | None:
    """The run whose edit holds exactly these requests; None where all of them are pending.

    Raises:
        LedgerError: they are of several runs, the run holds others too, or a later one stands on it.
    """
    requests = books.named(ids)
    if all(one.state == PENDING for one in requests):
        return None
    numbers = {one.run for one in requests}
    run = books.runs.get(next(iter(numbers)) or 0)
    if len(numbers) > 1 or run is None:
        raise LedgerError("these requests are not of one run: take them back run by run, the last one first")
    if run.outcome == "reverted":
        raise LedgerError(f"run {run.number} is reverted already")
    # A request that was reopened and run again is the later run's.
    held = [one.id for one in books.requests.values() if one.run == run.number]
    if sorted(held) != sorted(one.id for one in requests):
        listed = ", ".join(map(str, held))
        raise LedgerError(
            f"run {run.number} made one edit for {len(held)} requests ({listed}), and it cannot be taken back for some "
            "of them: name all"
        )
    for later in books.runs.values():
        if later.outcome == "finished" and later.found["model_before"] == run.found["model_after"]:
            raise LedgerError(f"run {later.number} stands on run {run.number}: take that back first")
    return run


def revert_run(
    ledger: Ledger,
    ids: Sequence[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    edit: Path | None = None,
    output: Path | None = None,
) -> str:
    """Take a run's edit off the model, bit for bit, or recognise a model without it; then say so in the books.

    Args:
        ledger: the books.
        ids: all requests of the run.
        model: as the run left it, or as it was before.
        tokenizer: the model's.
        edit: the run's edit file; only for a model as the run left it.
        output: a new folder for the model without the edit; likewise.

    Returns:
        The fingerprint of the weights.

    Raises:
        LedgerError: see `run_to_revert`; or the model or the edit is another.
        EditError: the originals cannot be had exactly.
    """
    with ledger.database.running():
        run = run_to_revert(ledger.books(), ids)
        if run is None:
            raise LedgerError("these requests are pending: they are withdrawn without a model")
        weights, wanted = weights_hash(model), run.found["model_before"]
        if weights == wanted:
            if edit is not None or output is not None:
                raise LedgerError(f"the model is as it was before run {run.number}: leave --edit and --output away")
        elif weights != run.found["model_after"]:
            raise LedgerError(
                f"the model's weights are neither those that run {run.number} left nor those before: name its "
                f"checkpoint, {run.output!r}, or the model that it began with"
            )
        else:
            _take_off(model, tokenizer, run, edit, output)
        with ledger.page() as page:
            page.append("reverted", run=run.number, requests=list(ids), model=wanted)
        return str(wanted)


def _take_off(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: LedgerRun, edit: Path | None, output: Path | None
) -> None:
    if edit is None or output is None:
        raise LedgerError(
            f"the model is as run {run.number} left it: give its edit (--edit) and a new folder (--output), or name "
            "the model that the run began with"
        )
    if file_digest(edit) != run.found["edit"]:
        raise LedgerError(f"{str(edit)!r} is not the edit that run {run.number} wrote: its SHA-256 is another")
    loaded = Edit.load(edit)
    with restored_if_it_fails(model, list(loaded.digests)), whole_checkpoint(output) as folder:
        loaded.revert(model)
        if weights_hash(model) != run.found["model_before"]:
            raise EditError(f"without the edit the model is not what it was before run {run.number}: name that model")
        save_checkpoint(model, tokenizer, folder)
