"""Reports: plain data, to JSON and to Markdown. Nothing is computed here but means."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import PreTrainedModel

from zerounlearn.data.fact import Fact
from zerounlearn.evaluation.probes import Known, unknown_warning
from zerounlearn.files import write_text
from zerounlearn.method.edit import LayerOutcome
from zerounlearn.model.layout import input_device
from zerounlearn.redaction import Redaction
from zerounlearn.report.requirements import Judged
from zerounlearn.resources import template
from zerounlearn.version import __version__

Verdict = tuple[bool, float]
"""Whether the answer is said, all its tokens arg-max under teacher forcing, and its probability."""


@dataclass(frozen=True)
class Measured:
    """One fact at one time: its prompt, paraphrases, neighbours of its relation, others, greedy completion."""

    forget: Verdict
    paraphrases: Sequence[Verdict]
    neighbours: Sequence[Verdict]
    others: Sequence[Verdict]
    completion: str


@dataclass(frozen=True)
class Phase:
    """Means over all that was asked at one time, see `Probes`; None where there was nothing to measure.

    `ppl` is the perplexity on held-out text; each `_probability` is the answers' mean probability. `known` says of
    each share how many prompts it asks, and how many of them were answered before anything was forgotten.
    """

    eff: float
    eff_probability: float
    gen: float | None = None
    gen_probability: float | None = None
    spe: float | None = None
    spe_probability: float | None = None
    spe_relation: float | None = None
    spe_relation_probability: float | None = None
    spe_subject: float | None = None
    spe_subject_probability: float | None = None
    spe_unrelated: float | None = None
    spe_unrelated_probability: float | None = None
    ppl: float | None = None
    known: dict[str, Known] = field(default_factory=dict)


@dataclass(frozen=True)
class FactReport:
    """One fact, before and after."""

    prompt: str
    answer: str
    before: Measured
    after: Measured

    @classmethod
    def of(cls, fact: Fact, before: Measured, after: Measured) -> FactReport:
        """The fact's words, without its measuring prompts."""
        return cls(fact.request.prompt, fact.request.answer, before, after)


@dataclass
class Report:
    """What was forgotten, what it cost, and everything needed to do it again."""

    facts: list[FactReport]
    before: Phase
    after: Phase
    layers: list[LayerOutcome]
    seconds: dict[str, float]
    prefixes: list[str]
    retained: int
    losses: dict[str, tuple[float, float]]
    """First and last mean loss by name, in nats per token."""
    hparams: dict[str, Any]
    fingerprints: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    requirements: list[Judged] = field(default_factory=list)

    @property
    def still_said(self) -> list[FactReport]:
        """The facts whose answer the edited model still gives."""
        return [fact for fact in self.facts if fact.after.forget[0]]

    @property
    def failed(self) -> list[Judged]:
        """The requirements that are not met."""
        return [judged for judged in self.requirements if not judged.met]

    @property
    def warning(self) -> str | None:
        """What a reader must know first: that the model said little of what it was to forget."""
        return unknown_warning(self.before.known)

    def redacted(self, redaction: Redaction) -> Report:
        """The same report without what was forgotten: keyed digests in the place of prompts, answers, completions."""
        name = redaction.digest

        def measured(one: Measured) -> Measured:
            return replace(one, completion=name(one.completion))

        return replace(
            self,
            facts=[
                FactReport(name(fact.prompt), name(fact.answer), measured(fact.before), measured(fact.after))
                for fact in self.facts
            ],
            prefixes=[redaction.blotted(prefix) for prefix in self.prefixes],
            hparams=redaction.values(self.hparams),
        )

    def to_json(self) -> str:
        """The whole report, indented."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def to_markdown(self) -> str:
        """A page to read: summary, facts, layers, time, run."""
        env = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        env.filters |= {"known": _known, "cell": _cell, "code": _code, "share": _share, "number": _number}
        return env.from_string(template("report", "report.md.jinja")).render(report=self)

    def save(self, folder: Path) -> None:
        """Write report.json and report.md, each under a temporary name first.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_text(folder / "report.json", self.to_json() + "\n")
        write_text(folder / "report.md", self.to_markdown())


def environment(model: PreTrainedModel) -> dict[str, str]:
    """Versions, device and dtype; of an accelerator, what it is."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    device = input_device(model)
    backend = getattr(torch, device.type)
    card = {"card": str(backend.get_device_name(device))} if hasattr(backend, "get_device_name") else {}
    return {
        "zerounlearn": __version__,
        "python": platform.python_version(),
        **versions,
        "device": str(device),
        **card,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
    }


def _known(count: Known | None) -> str:
    return "–" if count is None else f"{count.said}/{count.asked}"


_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"} | {"\n": "⏎", "\r": "⏎"})


def _cell(text: object) -> str:
    """A text as Markdown shows it literally, in one cell."""
    return str(text).translate(_MARKUP).strip()


def _code(value: object) -> str:
    """A value between backticks, in one cell of a table."""
    return str(value).replace("`", "ˋ").replace("|", "\\|").replace("\n", "⏎").replace("\r", "⏎")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
