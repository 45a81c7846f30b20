"""A model card for what was unlearned: base, method, measurements and limits, and no fact in clear."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from zerounlearn.errors import ConfigError
from zerounlearn.method.base import methods
from zerounlearn.method.edit import Edit
from zerounlearn.model.fingerprint import value_digest
from zerounlearn.model.lineage import Lineage
from zerounlearn.resources import template
from zerounlearn.version import __version__

_LABELS = {
    "eff": "Eff. ↓",
    "gen": "Gen. ↓",
    "spe": "Spe. ↑",
    "spe_subject": "Spe. subject ↑",
    "spe_unrelated": "Spe. unrelated ↑",
    "ppl": "PPL ↓",
}
_LIBRARIES = {"edit": "zerounlearn", "checkpoint": "transformers", "adapter": "peft"}
_OPENINGS = {
    "edit": "A change of a language model's weights that makes it forget facts: `zerounlearn.Edit.load` reads it.",
    "checkpoint": "A language model that was made to forget facts by [zerounlearn](https://arxiv.org/abs/2605.18879).",
    "adapter": "A LoRA adapter that makes its base model forget facts: `PeftModel.from_pretrained` loads it.",
}


@dataclass(frozen=True)
class Described:
    """What a card is about, as far as its files say.

    Attributes:
        kind: edit, checkpoint or adapter.
        weights: names of the changed weights, where the files tell.
        method: name of the method; empty where the files do not tell.
        hparams: its configuration; empty likewise.
    """

    kind: str
    weights: tuple[str, ...] = ()
    method: str = ""
    hparams: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Attacks:
    """What an audit says on a card: no fact.

    Attributes:
        grade: of the certificate.
        statements: of the certificate.
        rows: label, facts, controls, and base model's facts, in per cent.
        not_tested: names of attacks that were not run.
    """

    grade: str
    statements: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    not_tested: tuple[str, ...] = ()


def described(path: str | Path) -> Described:
    """Look at an edit's file, a checkpoint's folder or an adapter's folder; no weight of a model is read.

    Raises:
        ConfigError: it is none of them.
        EditError: the edit is damaged.
    """
    place = Path(path)
    if place.is_file():
        edit = Edit.load(place)
        return Described("edit", tuple(edit.digests), edit.method, edit.hparams)
    if (adapter := place / "adapter_model.safetensors").is_file():
        try:
            with safe_open(adapter, framework="pt") as stored:
                names = sorted(stored.keys())
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{str(adapter)!r} is damaged ({error}): export it again") from error
        ends = ("base_model.model.", ".lora_A.weight")
        return Described("adapter", tuple(f"{n[len(ends[0]) : -len(ends[1])]}.weight" for n in names if ends[1] in n))
    if (place / "config.json").is_file():
        return Described("checkpoint", tuple(Lineage.load(place).traces))
    raise ConfigError(f"{str(place)!r} is no edit's file and no folder of a checkpoint or an adapter")


def read_report(path: str | Path) -> dict[str, Any]:
    """A run's report from its `report.json`, or from the folder that holds it.

    Raises:
        ConfigError: it is none.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        _check_report(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{str(file)!r} is no report of a run: {type(error).__name__}: {error}") from error
    return dict(report)


def facts_digest(facts: Iterable[tuple[str, str]]) -> str:
    """16 hexadecimal digits over all prompts with their answers, in whatever order; see `value_digest`."""
    return value_digest(sorted(map(list, facts)))


def model_card(
    subject: Described,
    *,
    report: Mapping[str, Any] | None = None,
    facts: Iterable[tuple[str, str]] | None = None,
    attacks: Attacks | None = None,
    base: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """A card in the hub's form.

    Args:
        subject: see `described`.
        report: see `read_report`; what was measured stands there.
        facts: prompts with answers, of which the card gives the number and a digest; by default the report's.
        attacks: what an audit of the model found.
        base: the base model's name on the hub.
        license: the base model's licence, as the hub names it.

    Raises:
        ConfigError: neither the files nor a report name the method.
    """
    hparams = dict((report or {}).get("hparams") or subject.hparams or {})
    method = subject.method or str(hparams.get("alg_name") or "")
    if not method:
        raise ConfigError(f"an {subject.kind} does not say by which method it was made: pass --report, or name an edit")
    if facts is None and report is not None:
        facts = [(fact["prompt"], fact["answer"]) for fact in report["facts"]]
    asked = None if facts is None else list(facts)
    rows = [("base model", base or "not named"), ("method", _with_source(method)), ("settings", _settings(hparams))]
    rows += [("changed weights", "<br>".join(f"`{name}`" for name in subject.weights))] if subject.weights else []
    if asked is not None:
        rows += [("facts forgotten", str(len(asked))), ("digest of the facts", f"`{facts_digest(asked)}`")]
    rows += [("still said afterwards", _still_said(report))] if report else []
    rows += [("made with", f"zerounlearn {(report or {}).get('environment', {}).get('zerounlearn', __version__)}")]
    data = ModelCardData(
        base_model=base,
        license=license,
        library_name=_LIBRARIES[subject.kind],
        pipeline_tag="text-generation",
        tags=["machine-unlearning", "zerounlearn", *(["lora"] if subject.kind == "adapter" else [])],
    )
    return ModelCard.from_template(
        data,
        template_str=template("report", "card.md.jinja"),
        title=f"{base.rpartition('/')[2] if base else 'A language model'}, unlearned",
        opening=_OPENINGS[subject.kind],
        rows=rows,
        measured=_measured(report) if report else [],
        attacks=attacks,
        dtype=(report or {}).get("environment", {}).get("dtype", "the model's dtype"),
        digest=asked is not None,
    )


def _check_report(report: Any) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError where something that a card reads is not as it is."""
    if not all(isinstance(report[name], dict) for name in ("before", "after", "hparams", "environment")):
        raise ValueError("a part of it is no mapping")
    for fact in report["facts"]:
        if not isinstance(fact["prompt"], str) or not isinstance(fact["answer"], str):
            raise ValueError("a fact's prompt or answer is no text")
        bool(fact["after"]["forget"][0])
    for phase in (report["before"], report["after"]):
        {**phase["known"]}
        for name in _LABELS:
            if phase.get(name) is not None:
                float(phase[name])


def _with_source(method: str) -> str:
    try:
        source = methods.entry(method).source
    except ConfigError:  # of a package that is not installed here
        source = ""
    return f"{method} ({source})" if source else method


def _settings(hparams: Mapping[str, Any]) -> str:
    """The preset, and what is a number or a list of numbers: no text, which may be a path."""
    shown = {name: value for name, value in hparams.items() if name == "preset" or _is_number(value)}
    lists = {n: v for n, v in hparams.items() if isinstance(v, list) and v and all(map(_is_number, v))}
    return ", ".join(f"{name}={value}" for name, value in {**shown, **lists}.items()) or "not known"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _still_said(report: Mapping[str, Any]) -> str:
    said = sum(bool(fact["after"]["forget"][0]) for fact in report["facts"])
    return f"{said} of {len(report['facts'])}"


def _measured(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of what both phases have: label, before, after, how many prompts."""
    rows = []
    for name, label in _LABELS.items():
        values = [report[phase].get(name) for phase in ("before", "after")]
        if None not in values:
            shown = (f"{v:.2f}" if name == "ppl" else f"{100 * v:.1f}" for v in values)
            rows.append((label, *shown, str((report["before"]["known"].get(name) or {}).get("asked", "–"))))
    return rows
