"""The bench of a study: one model in memory, and the jobs that run on it one after another."""

from __future__ import annotations

import gc
import logging
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.audit.target import Outcome
from zerounlearn.errors import ConfigError, IllPosedError
from zerounlearn.evaluation.asked import Asked
from zerounlearn.evaluation.registry import metrics
from zerounlearn.evaluation.truth import truth_ratios
from zerounlearn.model.clock import Clock
from zerounlearn.model.fingerprint import weights_hash
from zerounlearn.model.layout import input_device
from zerounlearn.model.loading import load_model
from zerounlearn.model.peak import Peak, peak_memory
from zerounlearn.report.run import environment
from zerounlearn.study.cells import DONE, FAILED, BaseJob, CellJob, Draw, Job, PrepareJob, Record, failed
from zerounlearn.study.material import Data, Material
from zerounlearn.study.measures import Measures, known, resolved, said
from zerounlearn.study.methods import Row, resolved_device
from zerounlearn.study.spec import Study

log = logging.getLogger(__name__)


class Bench:
    """Loads a study's model, data and methods as jobs ask for them, and does the jobs.

    A job that fails gives a record that says so. Between jobs the weights are those of the checkpoint: a hash over
    all of them is taken after each cell, and if a method could not be undone, the model is loaded anew.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._measures = Measures(study)
        self._data: dict[str, Data] = {}
        self._methods: dict[str, Row] = {}
        self._drawn: tuple[Draw, Material] | None = None
        self._ceilings: dict[str, list[Outcome]] = {}
        self._loaded: PreTrainedModel | None = None
        self._tokens: PreTrainedTokenizerBase | None = None
        self._hash = ""

    def do(self, job: Job) -> Record:
        """The job's record; KeyboardInterrupt and the like go through, with the weights restored."""
        try:
            if isinstance(job, PrepareJob):
                return self._prepare(job)
            return self._base(job) if isinstance(job, BaseJob) else self._cell(job)
        except Exception as error:  # whatever a method or a metric raises belongs into the record
            log.warning("%s failed", getattr(job, "id", "preparation"), exc_info=True)
            return failed(job, f"{type(error).__name__}: {error}")
        finally:
            gc.collect()
            backend = getattr(torch, torch.device(resolved_device(self.study.model.device)).type)
            if hasattr(backend, "empty_cache"):  # CUDA, XPU, MPS
                backend.empty_cache()

    def _prepare(self, job: PrepareJob) -> Record:
        for label in job.methods:
            self._method(label).method.prepare(self._model, self._tokenizer)
        return {"id": "", "status": DONE, "error": None}

    def _base(self, job: BaseJob) -> Record:
        model, material = self._model, self._material(job.draw)
        seconds: dict[str, float] = {}
        with Clock(seconds, model)("evaluate"):
            compares = any("reference_model" in metrics[name].needs for name in self.study.metrics)
            reference = self._reference(material) if compares and material.questions else None
            asked = self._measures.asked(model, self._tokenizer, material, reference)
            measures = self._measures.take(asked)
        return {
            "id": job.id,
            "status": DONE,
            "error": None,
            "measures": measures,
            "known": known(asked),
            "facts": said(asked),
            "reference": reference,
            "seconds": seconds,
            "weights": self._hash,
        }

    def _cell(self, job: CellJob) -> Record:
        model, method, material = self._model, self._method(job.cell.method), self._material(job.cell.draw)
        if job.base["weights"] != self._hash:
            raise ConfigError(
                f"model.name={self.study.model.name!r}: its weights here are not those that the base was measured on: "
                "give all workers the same checkpoint"
            )
        record = failed(job, "") | {"weights": self._hash, "hparams": method.settings()}
        record["environment"] = environment(model) | method.method.versions()
        try:
            with peak_memory(input_device(model)) as peak, Clock(record["seconds"], model)("unlearn"):
                edit = method.apply(model, self._tokenizer, material, job.cell.draw.seed)
            try:
                self._evaluate(record, model, material, job, peak)
                with Clock(record["seconds"], model)("audit"):
                    record["after"] |= self._measures.audit(
                        model, self._tokenizer, material, edit, job.cell.draw.seed, self._ceilings
                    )
            finally:
                edit.revert(model)
            del edit
        except Exception as error:
            log.warning("%s failed", job.id, exc_info=True)
            record |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        finally:
            record["restored"] = self._restored()
        return record

    def _evaluate(self, record: Record, model: PreTrainedModel, material: Material, job: CellJob, peak: Peak) -> None:
        with Clock(record["seconds"], model)("evaluate"):
            asked = self._measures.asked(model, self._tokenizer, material, job.base["reference"])
            after, facts = self._measures.take(asked), said(asked)
        pairs = zip(material.requests, job.base["facts"], facts, strict=True)
        record["known"] = job.base.get("known", {})
        record["facts"] = [{"prompt": r.prompt, "answer": r.answer, "before": b, "after": a} for r, b, a in pairs]
        record |= {"after": after, "peak_bytes": peak.bytes, "status": DONE, "error": None}

    def _restored(self) -> bool:
        """Whether the weights are those of the checkpoint; if not, the model is loaded anew for the next job."""
        if self._loaded is not None and weights_hash(self._loaded) == self._hash:
            return True
        log.warning("the weights were not put back bit for bit: the model is loaded anew")
        self._loaded = None
        return False

    def _reference(self, material: Material) -> list[float]:
        """Truth ratios of the model that never saw the forget set; it is in memory for as long as this takes."""
        model, tokenizer = _load(str(self.study.reference_model), self.study, "reference_model")
        return truth_ratios(Asked(model, tokenizer, material.probes, questions=material.questions))

    @property
    def _model(self) -> PreTrainedModel:
        if self._loaded is None:
            self._loaded, self._tokens = _load(self.study.model.name, self.study, "model.name")
            found = weights_hash(self._loaded)
            if self._hash and found != self._hash:
                raise IllPosedError(
                    f"model.name={self.study.model.name!r}: the checkpoint changed while the study ran: run it again"
                )
            self._hash = found
        return self._loaded

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        _ = self._model
        assert self._tokens is not None
        return self._tokens

    def _method(self, label: str) -> Row:
        if label not in self._methods:
            spec = next(method for method in self.study.methods if method.label == label)
            self._methods[label] = Row.load(spec, self.study.model)
        return self._methods[label]

    def _material(self, draw: Draw) -> Material:
        if self._drawn is None or self._drawn[0] != draw:
            if draw.dataset not in self._data:
                spec = next(data for data in self.study.datasets if data.label == draw.dataset)
                self._data[draw.dataset] = Data.load(spec).asked_of(self._model, self._tokenizer)
            sizes = {"retain_size": self.study.retain_size, "unrelated_size": self.study.unrelated_size}
            material = self._data[draw.dataset].draw(draw.n, draw.seed, **sizes)
            self._drawn = (draw, resolved(self._model, self._tokenizer, material))
            self._ceilings = {}
        return self._drawn[1]


def _load(name: str, study: Study, field: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(name, dtype=study.model.dtype, device=study.model.device, field=field)
