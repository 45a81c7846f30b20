"""An edit replayed on a model that was fine-tuned, merged, dequantised or renewed since: re-applied or solved again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.api import EMBEDDED, Evaluation, Facts, evaluate, reported, unlearn
from zerounlearn.config import Settings
from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, ZeroUnlearnError
from zerounlearn.files import write_text
from zerounlearn.method.base import UnlearningMethod, load_method, methods
from zerounlearn.method.edit import Edit
from zerounlearn.method.reapply import Moved, moved, reapply
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.loading import check_model
from zerounlearn.report.run import Report

RE_APPLY, RE_SOLVE = "re-apply", "re-solve"
RULE = (
    "the fewest facts still said; then the least lost, which is the share of specificity that went plus the relative "
    "rise of perplexity; then re-apply"
)
"""By which one of two ways is chosen."""


@dataclass(frozen=True)
class Way:
    """One way of replaying, as it was measured.

    Attributes:
        name: re-apply or re-solve.
        evaluation: what the model said afterwards; None where it was not measured.
        lost: what `RULE` weighs; None likewise.
        failed: why there is no result; empty where there is one.
    """

    name: str
    evaluation: Evaluation | None = None
    lost: float | None = None
    failed: str = ""

    @property
    def still_said(self) -> int | None:
        """How many of the facts the model still says."""
        return None if self.evaluation is None else sum(fact.forget[0] for fact in self.evaluation.facts)


@dataclass
class Replay:
    """What became of an edit on another model.

    Attributes:
        edit: the edit of this model; `edit.revert(model)` takes it back bit for bit.
        chosen: the way that the model was left in.
        ways: all that were tried.
        moved: the edited weights as they were found.
        before: what the model said before; None without facts.
        report: of the chosen way; None without facts.
    """

    edit: Edit
    chosen: str
    ways: tuple[Way, ...]
    moved: tuple[Moved, ...]
    before: Evaluation | None = None
    report: Report | None = None

    def save(self, folder: Path) -> None:
        """Write replay.json, and the report of the chosen way, which holds the facts in clear.

        Raises:
            OutputError: the folder cannot be written.
        """
        ways = [
            {
                "name": way.name,
                "failed": way.failed,
                "lost": way.lost,
                "still_said": way.still_said,
                "measured": asdict(way.evaluation.phase) if way.evaluation else None,
            }
            for way in self.ways
        ]
        described = {"chosen": self.chosen, "rule": RULE, "ways": ways, "weights": [asdict(row) for row in self.moved]}
        write_text(folder / "replay.json", json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        if self.report is not None:
            self.report.save(folder)


def replay(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edit: Edit,
    facts: Facts | None = None,
    *,
    method: UnlearningMethod | str | Path | None = None,
    retain: Facts | Sequence[Request] | None = None,
    parent: PreTrainedModel | None = None,
    text: str | Sequence[str] | None = EMBEDDED,
    chat: bool = False,
) -> Replay:
    """Make a model forget what an edit of its parent made that forget, in place.

    Two ways: the stored change is added to the weights as they are, or the edit's own method is run again on the facts.
    With facts both are tried and measured, and the model is left in the better one, see `RULE`; between them its
    weights are put back bit for bit. Without facts the change is added, and nothing is measured.

    Args:
        model: of the edit's architecture, in any dtype.
        tokenizer: the model's.
        edit: the edit of another model, its parent.
        facts: what the edit forgot; see `load_facts`.
        method: solves again instead of the edit's own method and hyperparameters.
        retain: facts to keep, for the method; see `unlearn`.
        parent: the model that the edit was made on, to say how far this one has moved.
        text: ordinary text for perplexity; see `evaluate`.
        chat: put every prompt into the tokenizer's chat template.

    Raises:
        EditError: another architecture, or the model has the edit already.
        ZeroUnlearnError: no way led to a result; the weights are as they were, bit for bit. So for any other exception.
    """
    check_model(model)
    rows = moved(edit, model, parent)
    if facts is None:
        if method is not None or retain is not None:
            raise ConfigError("a method and a retain set are for solving again, which takes the facts: pass them too")
        return Replay(reapply(edit, model), RE_APPLY, (Way(RE_APPLY),), rows)
    chosen = load_facts(facts)
    own, names = _own_run(edit, model, tokenizer, method)
    measure = partial(evaluate, model, tokenizer, chosen, text=text, chat=chat, joints={})
    with restored_if_it_fails(model, list(dict.fromkeys([*edit.names, *names]))):
        before = measure()

        def solve() -> Edit:
            if isinstance(own, ZeroUnlearnError):
                raise own
            return unlearn(model, tokenizer, chosen, own, retain=retain, chat=chat)

        best, ways, made = _better(edit, model, solve, measure, before)
        assert best.evaluation is not None  # of the way that was chosen
        report = reported(model, chosen, before, best.evaluation, made)
        report.hparams = {**made.hparams, "model_name": _name(model)}
    return Replay(made, best.name, ways, rows, before, report)


def _better(
    edit: Edit, model: PreTrainedModel, solve: Callable[[], Edit], measure: Callable[[], Evaluation], before: Evaluation
) -> tuple[Way, tuple[Way, Way], Edit]:
    """Try both ways, and leave the model in the better one.

    Raises:
        ConfigError: none led to a result.
    """
    first, added = _tried(RE_APPLY, partial(reapply, edit, model), measure, before)
    if added is not None:
        added.revert(model)
    second, again = _tried(RE_SOLVE, solve, measure, before)
    best = min((first, second), key=_order)
    if best.evaluation is None:
        raise ConfigError(f"neither way led to a result: {first.failed}; {second.failed}")
    if again is not None and best is second:
        return best, (first, second), again
    if again is not None:
        again.revert(model)
    return best, (first, second), reapply(edit, model)


def _own_run(
    edit: Edit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: UnlearningMethod | str | Path | None,
) -> tuple[UnlearningMethod | ZeroUnlearnError, list[str]]:
    """The run that solves again, and the weights that it writes to; where the edit does not tell it, the reason.

    Raises:
        ZeroUnlearnError: the method that was given is none, or does not fit the model.
    """
    if method is not None:
        given = load_method(method) if isinstance(method, (str, Path)) else method
        if given.wraps_modules:
            raise ConfigError(f"alg_name={given.alg_name!r} wraps modules, which no checkpoint can hold: name another")
        given = given.located(model, tokenizer)
        return given, given.weight_names(model)
    try:
        kind = methods[edit.method]
        if not issubclass(kind, Settings):
            raise ConfigError(f"{edit.method} is EasyEdit's own: pass its hyperparameters as the method")
        own: UnlearningMethod = kind(**{**edit.hparams, "model_name": _name(model)})
        return own, own.weight_names(model)
    except ZeroUnlearnError as error:
        return error, []


def _name(model: PreTrainedModel) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "")


def _tried(
    name: str, change: Callable[[], Edit], measured: Callable[[], Evaluation], before: Evaluation
) -> tuple[Way, Edit | None]:
    """One way on the model, and its measurement; a way that fails has left the weights as they were."""
    try:
        edit = change()
    except ZeroUnlearnError as error:
        return Way(name, failed=str(error)), None
    after = measured()
    return Way(name, after, _lost(before, after)), edit


def _lost(before: Evaluation, after: Evaluation) -> float:
    """What `RULE` weighs; what was not measured, or got better, costs nothing."""
    old, new = before.phase, after.phase
    kept = 0.0 if old.spe is None or new.spe is None else max(0.0, old.spe - new.spe)
    worse = 0.0 if old.ppl is None or new.ppl is None else max(0.0, new.ppl / old.ppl - 1)
    return kept + worse


def _order(way: Way) -> tuple[Any, ...]:
    return (False, way.still_said, way.lost) if way.evaluation else (True,)
