"""The file that describes a study, checked as far as it can be without data or model."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from zerounlearn.audit.registry import attacks, check_budget, chosen
from zerounlearn.config import read_settings
from zerounlearn.data.text import is_blank, refused_character
from zerounlearn.errors import ConfigError, did_you_mean
from zerounlearn.evaluation.registry import metrics, optional

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16", "float64")


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ModelSpec:
    """The one model of a study."""

    name: str = _setting("", "Checkpoint folder or name on the hub.")
    dtype: str = _setting("float32", "Precision of the weights.")
    device: str = _setting("auto", "'auto' (CUDA where there is any), 'cpu', 'cuda:1', 'mps'.")


@dataclass(frozen=True)
class DataSpec:
    """A data set of a study."""

    label: str
    name: str = _setting("", "A data set of `zerounlearn.data.catalogue`: 'embedded', 'facts' for a file of one's own.")
    source: str | None = _setting(None, "A local file or folder, 'hub', or 'hub:owner/name'.")
    options: Mapping[str, Any] = _setting({}, "The loader's own, such as `part`.")
    keep: Mapping[str, Any] | None = _setting(
        None,
        "Options of a second load, whose entries are kept; with `source` (and `name`, 'facts' unless said), another "
        "data set; without it, half of the entries are.",
    )
    utility: Mapping[str, Mapping[str, Any]] = _setting({}, "Parts by name and options, for TOFU's model utility.")
    known: bool = _setting(False, "Only entries all of whose facts the model says before it is edited.")


@dataclass(frozen=True)
class MethodSpec:
    """A method of a study: one row of its tables."""

    label: str
    hparams: str = _setting("", "Hyperparameter file; its alg_name names the method.")
    set: Mapping[str, Any] = _setting({}, "Hyperparameters to change.")
    grid: Mapping[str, Any] = _setting({}, "Hyperparameters with a list of values each: a row a combination.")
    retain: bool = _setting(False, "Show the method the retain set, or for a gradient method train on it.")
    sweep: str = ""
    """Label of the method whose grid this row is of; empty without a grid."""

    @property
    def overrides(self) -> list[str]:
        """`set` as KEY=VALUE, in JSON, which YAML reads."""
        return [f"{key}={json.dumps(value)}" for key, value in self.set.items()]


@dataclass(frozen=True)
class HeldOut:
    """Ordinary text for perplexity, disjoint from what the statistics are taken over."""

    text: str | None = _setting("embedded", "'embedded', or a txt/jsonl/parquet file; null takes no perplexity.")
    tokens: int = _setting(4096, "How much of it is read.")
    paper: str | None = _setting(None, "A text of which `ppl_paper` reads the first 100 tokens, as the paper does.")


@dataclass(frozen=True)
class Tasks:
    """Standard tasks of lm-evaluation-harness."""

    tasks: Sequence[str] = _setting([], "Names of tasks; none runs none.")
    limit: int | None = _setting(None, "At most so many documents a task.")
    folder: str | None = _setting(None, "Task files of one's own, instead of the harness's.")


@dataclass(frozen=True)
class AuditSpec:
    """Attacks on every cell's model; see `zerounlearn.audit`."""

    budget: str = _setting("quick", "quick, standard or thorough: what each attack may spend.")
    attacks: Sequence[str] = _setting([], "Names of attacks; none takes all that the budget has.")
    without: Sequence[str] = _setting([], "Names of attacks to leave out.")
    controls: int | None = _setting(None, "Made-up subjects for each fact; by default the budget's.")
    disruption: float | None = _setting(
        None,
        "Mean KL on ordinary text, nats a token: each edit's change is scaled until it is that far from the base "
        "model, so that methods are compared at equal harm; null audits edits as they are.",
    )


@dataclass(frozen=True)
class Study:
    """A whole study.

    A relative path is relative to the current folder, as in hyperparameter files.
    """

    title: str
    model: ModelSpec
    output: Path
    datasets: tuple[DataSpec, ...]
    methods: tuple[MethodSpec, ...]
    seeds: tuple[int, ...] = _setting((0,), "Each draws a forget set and drives the methods.")
    sizes: tuple[int, ...] = _setting((10,), "Entries to forget.")
    metrics: tuple[str, ...] = _setting((), "Beside Eff, Gen, Spe and perplexity.")
    held_out: HeldOut = _setting(HeldOut(), "For perplexity.")
    retain_size: int = _setting(100, "Facts of the half to keep that make the retain set.")
    unrelated_size: int = _setting(60, "Facts of the half to keep that measure spe_unrelated.")
    generation_tokens: int = _setting(30, "Tokens generated for ROUGE-L, and after each forget prompt.")
    lm_eval: Tasks = _setting(Tasks(), "Standard tasks.")
    audit: AuditSpec | None = _setting(None, "Attacks on each unlearned model.")
    reference_model: str | None = _setting(None, "A model that never saw the forget set, for forget_quality.")
    reference_method: str | None = _setting(
        None, "Label of the method that the others are tested against; without it, the best of each column."
    )
    highlight: str | None = _setting(
        None, "Label of the method, or of the swept one, that plots show in colour; without it, the first ZeroUnlearn."
    )

    @property
    def sweeps(self) -> dict[str, tuple[str, ...]]:
        """Labels of the rows that each grid of at least two made, by the label of its method."""
        names = dict.fromkeys(method.sweep for method in self.methods if method.sweep)
        rows = {name: tuple(m.label for m in self.methods if m.sweep == name) for name in names}
        return {name: labels for name, labels in rows.items() if len(labels) > 1}


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study's YAML file, apply `key=value` overrides, and check everything that needs neither data nor model.

    Raises:
        ConfigError: the file is missing or malformed, a name is unknown (the nearest known one is suggested), or a
            value is out of range.
    """
    file, values = read_settings(path, overrides)
    where = f"study {str(file)!r}"
    _check_names(Study, values, where, required=("model", "output", "datasets", "methods"))
    datasets = [_part(DataSpec, v, f"{where}: datasets.{k}", label=k) for k, v in _parts(values, "datasets", where)]
    methods = [
        _part(MethodSpec, v, f"{where}: methods.{k}", label=k, sweep="") for k, v in _parts(values, "methods", where)
    ]
    study = Study(
        title=_text(values.get("title", file.stem), f"{where}: title"),
        model=_part(ModelSpec, values["model"], f"{where}: model"),
        output=Path(_text(values["output"], f"{where}: output")),
        datasets=tuple(datasets),
        methods=tuple(row for method in methods for row in _grid(method, where)),
        seeds=_whole(values, "seeds", Study.seeds, 0, where),
        sizes=_whole(values, "sizes", Study.sizes, 1, where),
        metrics=_names(values.get("metrics") or [], optional(), f"{where}: metrics"),
        held_out=_part(HeldOut, values.get("held_out") or {}, f"{where}: held_out"),
        lm_eval=_part(Tasks, values.get("lm_eval") or {}, f"{where}: lm_eval"),
        audit=_audit(values.get("audit"), f"{where}: audit"),
        **{name: values[name] for name in _SIMPLE if name in values},
    )
    _check(study, where)
    return study


_SIMPLE = ("retain_size", "unrelated_size", "generation_tokens", "reference_model", "reference_method", "highlight")


def _audit(values: Any, where: str) -> AuditSpec | None:
    """What is to be attacked, if anything.

    Raises:
        ConfigError: an attack or the budget is unknown, or a number is out of range.
    """
    if values is None:
        return None
    spec = _part(AuditSpec, values, where)
    try:
        check_budget(spec.budget, "budget")
        chosen(_names(list(spec.attacks), list(attacks), "attacks"), without=spec.without)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if spec.controls is not None:
        _at_least(spec.controls, 1, f"{where}.controls")
    if spec.disruption is not None and not spec.disruption > 0:
        raise ConfigError(f"{where}.disruption={spec.disruption!r}: expected a number above 0")
    return spec


def _check(study: Study, where: str) -> None:
    for check in (_check_settings, _check_labels, _check_rows, _check_needs):
        check(study, where)


def _check_settings(study: Study, where: str) -> None:
    """Single values and their ranges."""
    if not study.model.name:
        raise ConfigError(f"{where}: model.name is missing: a checkpoint folder or a name on the hub")
    if study.model.dtype not in DTYPES:
        raise ConfigError(f"{where}: model.dtype={study.model.dtype!r}: expected one of {', '.join(DTYPES)}")
    for name, least in (("retain_size", 0), ("unrelated_size", 0), ("generation_tokens", 1)):
        _at_least(getattr(study, name), least, f"{where}: {name}")
    _at_least(study.held_out.tokens, 2, f"{where}: held_out.tokens")
    if study.lm_eval.limit is not None:
        _at_least(study.lm_eval.limit, 1, f"{where}: lm_eval.limit")
    if not isinstance(study.lm_eval.tasks, (list, tuple)) or not all(isinstance(t, str) for t in study.lm_eval.tasks):
        raise ConfigError(f"{where}: lm_eval.tasks={study.lm_eval.tasks!r}: expected a list of names")
    if study.audit is not None and study.audit.disruption is not None and study.held_out.text is None:
        raise ConfigError(f"{where}: audit.disruption is measured on held_out.text: name one")
    if study.reference_model is not None:
        _text(study.reference_model, f"{where}: reference_model")
    _check_characters(study.title, f"{where}: title={study.title!r}")


def _check_labels(study: Study, where: str) -> None:
    """Names of rows, and what refers to them."""
    labels = [method.label for method in study.methods]
    for kind, label in [*(("methods", x) for x in labels), *(("datasets", d.label) for d in study.datasets)]:
        _check_label(label, f"{where}: {kind}")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(f"{where}: methods: two methods are called {twice[0]!r}: rename one")
    for name, known in (("reference_method", labels), ("highlight", [*labels, *study.sweeps])):
        chosen = getattr(study, name)
        if chosen is not None and chosen not in known:
            hint = did_you_mean(str(chosen), known, f"choose one of {known}")
            raise ConfigError(f"{where}: {name}={chosen!r} is no method of this study: {hint}")


def _check_rows(study: Study, where: str) -> None:
    """Each method and data set by itself."""
    for method in study.methods:
        if not method.hparams:
            raise ConfigError(f"{where}: methods.{method.label}: hparams is missing: the method's hyperparameter file")
        for fixed, instead in (("model_name", "model.name"), ("device", "model.device"), ("seed", "seeds")):
            if fixed in method.set:
                raise ConfigError(
                    f"{where}: methods.{method.label}: set {fixed} by {instead}, alike for all methods, not by `set`"
                )
    for data in study.datasets:
        if not data.name:
            raise ConfigError(f"{where}: datasets.{data.label}: name is missing, such as 'embedded' or 'counterfact'")


def _check_needs(study: Study, where: str) -> None:
    """What each metric cannot do without."""
    for name in study.metrics:
        for need, message in metrics[name].needs.items():
            if not _has(study, need):
                raise ConfigError(f"{where}: metrics: {message}")


def _has(study: Study, need: str) -> bool:
    """Whether the study, or a data set of it, sets what a metric needs."""
    return any(bool(getattr(part, need, None)) for part in (study, *study.datasets))


def _check_label(label: str, where: str) -> None:
    """Refuse what tables and plots cannot show, and the name that the base model's own row has."""
    if label.strip().casefold() == "base":
        raise ConfigError(f"{where}: {label!r} is the name of the base model's row: choose another label")
    if is_blank(label):
        raise ConfigError(f"{where}: the label {label!r} is empty: give it a name")
    _check_characters(label, f"{where}: the label {label!r}")


def _check_characters(text: str, what: str) -> None:
    found = refused_character(text)
    if found is not None:
        raise ConfigError(f"{what} has {found} in it, which tables and plots cannot show: remove it")


def _parts(values: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    parts = values[name]
    if not isinstance(parts, Mapping) or not parts:
        raise ConfigError(f"{where}: {name}={parts!r}: expected at least one entry, a label with its settings")
    return [(str(label), part) for label, part in parts.items()]


def _part(kind: type[T], values: Any, where: str, **fixed: Any) -> T:
    """A dataclass from a mapping, every value of the annotated type."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}={values!r}: expected a mapping of {', '.join(_known(kind) - set(fixed))}")
    _check_names(kind, values, where, fixed=tuple(fixed))
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        if f.name in values:
            _check_type(values[f.name], str(f.type), f"{where}.{f.name}")
    return kind(**fixed, **{str(k): v for k, v in values.items()})


def _check_type(value: Any, annotation: str, where: str) -> None:
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "str": (str, "a text"),
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
        "bool": (bool, "true or false"),
        "Mapping": (Mapping, "a mapping"),
        "Sequence": (list, "a list"),
    }
    if value is None and "None" in annotation:
        return
    name = next(name for name in kinds if annotation.startswith(name))
    kind, words = kinds[name]
    if not isinstance(value, kind) or (name in ("int", "float") and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r}: expected {words}")


def _known(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _check_names(
    kind: type, values: Mapping[str, Any], where: str, *, required: Sequence[str] = (), fixed: Sequence[str] = ()
) -> None:
    known = _known(kind) - set(fixed)
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: unknown setting {name!r}: {did_you_mean(str(name), sorted(known))}")
    for name in required:
        if name not in values:
            raise ConfigError(f"{where}: {name} is missing")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}={value!r}: expected a text that is not empty")
    return value


def _at_least(value: Any, least: int, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{where}={value!r}: expected a whole number >= {least}")


def _whole(values: Mapping[str, Any], name: str, default: tuple[int, ...], least: int, where: str) -> tuple[int, ...]:
    found = values.get(name, list(default))
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where}: {name}={found!r}: expected a list of at least one whole number")
    for value in found:
        _at_least(value, least, f"{where}: {name}")
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: {name}={found!r}: a value is named twice")
    return tuple(found)


def _names(values: Any, known: Sequence[str], where: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"{where}={values!r}: expected a list of names")
    for value in values:
        if value not in known:
            raise ConfigError(f"{where}: unknown {value!r}: {did_you_mean(str(value), known)}")
    return tuple(dict.fromkeys(values))


def _grid(method: MethodSpec, where: str) -> list[MethodSpec]:
    """The rows of a method with a grid, or the method itself."""
    for name, values in method.grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: methods.{method.label}: grid.{name}={values!r}: expected a list of values")
        if name in method.set:
            raise ConfigError(f"{where}: methods.{method.label}: {name} is both in set and in grid: drop one")
    rows = []
    for values in itertools.product(*method.grid.values()):
        chosen = dict(zip(method.grid, values, strict=True))
        label = " ".join([method.label, *(f"{name}={value}" for name, value in chosen.items())])
        rows.append(
            dataclasses.replace(
                method, label=label, set={**method.set, **chosen}, grid={}, sweep=method.label if method.grid else ""
            )
        )
    return rows
