"""`ZeroUnlearnEditor`: EasyEdit's editor with `.unlearn`, which forgets a set, measures it and reports."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from zerounlearn.api import EMBEDDED, unlearn_and_report
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.easyedit.adapter import edit_model
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import EditError
from zerounlearn.method.edit import Edit
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.model.lineage import set_state_aside
from zerounlearn.model.loading import load_model, save_checkpoint, skeleton_of
from zerounlearn.report.run import Report

log = logging.getLogger(__name__)

_editor: Any = importlib.import_module(f"{framework().module.__name__}.editors.editor")


class ZeroUnlearnEditor(_editor.BaseEditor):
    """EasyEdit's `BaseEditor`, with unlearning as one call.

    `edit` and `batch_edit` are the framework's own; what they change is kept in `edits`, too. The model is in
    `self.model`, the tokenizer in `self.tok`.
    """

    hparams: ZeroUnlearn
    model: PreTrainedModel

    def __init__(self, hparams: ZeroUnlearn) -> None:
        """Check what needs no weights, then load the model by transformers' own loader, whatever its name.

        Raises:
            ZeroUnlearnError: the hyperparameters do not fit the model, or it cannot be loaded.
        """
        name = hparams.model_name
        given = hparams
        if isinstance(name, str):
            hparams.check(skeleton_of(name))
            pair = load_model(
                name,
                dtype="float16" if hparams.fp16 else "float32",  # as EasyEdit loads
                device=hparams.device,
                device_map="auto" if hparams.model_parallel else None,
            )
            given = hparams.replace(model_name=pair)
        else:
            hparams.check(name[0])
        super().__init__(given)
        self.hparams, self.model_name = hparams, name
        if self.tok.pad_token_id is None:
            self.tok.pad_token_id = self.tok.eos_token_id
        self.edits: list[Edit] = []
        """What each call of `unlearn`, `edit` and `batch_edit` changed, the latest last; also where the framework has
        put the weights back since."""
        self.apply_algo = self._apply

    def _apply(self, *args: Any, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Tensor]]:
        """What the framework calls to edit."""
        model, originals, edit = edit_model(*args, **kwargs)
        self.edits.append(edit)
        return model, originals

    def unlearn(
        self,
        requests: str | Path | Iterable[Mapping[str, Any] | Fact],
        *,
        retain: Sequence[Request] | None = None,
        unrelated: Sequence[tuple[str, str]] = (),
        held_out: Sequence[str] | None = None,
        held_out_tokens: int = 4096,
        require: Sequence[str] = (),
    ) -> tuple[Report, PreTrainedModel]:
        """Forget a set of facts and report what it did.

        Args:
            requests: a path to jsonl/json/yaml/csv or the records themselves; see `load_facts`.
            retain: facts to keep, whose keys join ordinary text's with weight `retain_KKT_lam`; by default what
                `hparams.retain_set` stands for.
            unrelated: (prompt, answer) pairs that have nothing to do with the forget set, to be measured.
            held_out: ordinary text for perplexity; by default the embedded extract's held-out part where the
                corpus is `embedded`, else none.
            held_out_tokens: how much of it is read.
            require: bounds on what is measured afterwards, as "eff<=0.05"; see `unlearn_and_report`.

        Returns:
            The report and the model, edited in place (it is `self.model`).

        Raises:
            ZeroUnlearnError: with the weights as they were.
        """
        text = held_out if held_out is not None else EMBEDDED if self.hparams.mom2_dataset == EMBEDDED else None
        report, edit = unlearn_and_report(
            self.model,
            self.tok,
            requests,
            self.hparams,
            retain=retain,
            unrelated=unrelated,
            text=text,
            text_tokens=held_out_tokens,
            require=require,
        )
        report.environment["easyedit"] = framework().edition
        self.edits.append(edit)
        return report, self.model

    def edit_file(self, path: str | Path, *, originals: bool = False, key: bytes | None = None) -> Edit:
        """Write the latest edit alone to a file, for `apply_edit`, `zerounlearn apply` or `Edit.load`.

        It need not be on the model: of a call of `edit` whose weights the framework has put back, the file is what is
        left.

        Args:
            path: a safetensors file; one that is there is replaced.
            originals: see `Edit.save`.
            key: see `Edit.save`.

        Raises:
            EditError: nothing was edited yet.
            OutputError: the file cannot be written.
        """
        if not self.edits:
            raise EditError("nothing was edited yet: call unlearn, edit or batch_edit first")
        self.edits[-1].save(path, originals=originals, key=key)
        return self.edits[-1]

    def apply_edit(self, edit: Edit | str | Path) -> Edit:
        """Put an edit, or that of a file, on the model; it stays until it is reverted.

        Raises:
            EditError: the file is no edit, or the edit was made on another model; nothing is changed.
        """
        found = edit if isinstance(edit, Edit) else Edit.load(edit)
        found.apply(self.model)
        self.edits.append(found)
        return found

    def revert(self) -> Edit:
        """Take back, bit for bit, the latest edit that is on the model.

        Edits whose weights the framework has put back are left out.

        Raises:
            EditError: none is, or its originals cannot be had exactly.
        """
        latest = next((edit for edit in reversed(self.edits) if edit.is_on(self.model)), None)
        if latest is None:
            raise EditError(
                "no edit of this editor is on the model: the framework has put it back (docs/edits.md), or the weights "
                "were changed since"
            )
        latest.revert(self.model)
        return latest

    def save(self, folder: str | Path, report: Report | None = None) -> None:
        """Write the model and its own tokenizer; beside the folder the report, and what later runs must know.

        Args:
            folder: `from_pretrained` reads it; it may exist.
            report: of `unlearn`.

        Raises:
            OutputError: it cannot be written.
        """
        place = Path(folder)
        save_checkpoint(self.model, self.tok, place)
        set_state_aside(place)
        if report is not None:
            report.save(place.absolute().with_name(f"{place.absolute().name}-report"))
