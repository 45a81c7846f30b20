"""`ZeroUnlearnEditor`: EasyEdit's editor with `.unlearn`, which forgets a set, measures it and reports."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from zerounlearn.api import EMBEDDED, unlearn_and_report
from zerounlearn.data.corpora import check_corpus
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.data.retain import check_retain_set
from zerounlearn.easyedit.editions.compat import framework
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import Edit
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.model.lineage import Lineage
from zerounlearn.report.run import Report

log = logging.getLogger(__name__)

_editor: Any = importlib.import_module(f"{framework().module.__name__}.editors.editor")

# The substrings by which each edition's BaseEditor picks a loader for decoders.
DISPATCH = {
    "wheel": ("gpt", "llama", "baichuan", "chatglm", "internlm"),
    "checkout": ("gpt", "llama", "baichuan", "chatglm", "internlm", "qwen", "mistral"),
}


def check_dispatch(model_name: str) -> None:
    """Refuse a name for which EasyEdit has no loader, before anything is loaded.

    Raises:
        ConfigError: naming what a name must contain and the ways out.
    """
    known = DISPATCH[framework().edition]
    if not any(part in model_name.lower() for part in known):
        raise ConfigError(
            f"model_name={model_name!r}: EasyEdit picks its loader by name and knows {', '.join(known)}: put the "
            "checkpoint into a folder whose name contains one of them, or pass a (model, tokenizer) pair"
        )


class ZeroUnlearnEditor(_editor.BaseEditor):
    """EasyEdit's `BaseEditor`, with unlearning as one call.

    `edit` and `batch_edit` are the framework's own. The model is in `self.model`, the tokenizer in `self.tok`.
    """

    hparams: ZeroUnlearn
    model: PreTrainedModel

    def __init__(self, hparams: ZeroUnlearn) -> None:
        if hparams.mom2_adjustment:
            check_corpus(hparams.mom2_dataset)
        if isinstance(hparams.model_name, str):
            check_dispatch(hparams.model_name)
        check_retain_set(hparams.retain_set)
        super().__init__(hparams)
        self.edits: list[Edit] = []
        """What each call of `unlearn` changed, the latest last; `edits[-1].revert(model)` takes it back."""

    def unlearn(
        self,
        requests: str | Path | Iterable[Mapping[str, Any] | Fact],
        *,
        retain: Sequence[Request] | None = None,
        unrelated: Sequence[tuple[str, str]] = (),
        held_out: Sequence[str] | None = None,
        held_out_tokens: int = 4096,
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
        )
        report.environment["easyedit"] = framework().edition
        self.edits.append(edit)
        return report, self.model

    def save(self, folder: str | Path, report: Report | None = None) -> None:
        """Write the model, its own tokenizer, the report, and what later runs must know of what it has forgotten.

        Args:
            folder: `from_pretrained` reads it; it may exist.
            report: of `unlearn`.

        Raises:
            OutputError: it cannot be written.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        # The editor's own tokenizer has had its padding changed by the framework.
        name = self.model.config._name_or_path
        (AutoTokenizer.from_pretrained(name) if name else self.tok).save_pretrained(folder)
        Lineage.of(self.model).save(folder)
        if report is not None:
            report.save(folder)
