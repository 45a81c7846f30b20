"""EasyEdit's own methods as unlearning baselines: its code, its hyperparameters, and the neutral target.

They run as the framework runs them, all requests at once where the method can and one after the other where it
cannot, on the statistics that our methods use. What they do to the process is contained, what they do to the model
can be undone bit for bit, and the edited model answers through the same object as before: also where the method
wraps it.
"""

from __future__ import annotations

import copy
import importlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from zerounlearn.data.corpora import check_corpus, open_corpus
from zerounlearn.data.request import EOS, Request, check_requests
from zerounlearn.easyedit.editions.compat import PACKAGE, framework
from zerounlearn.easyedit.inference import EachRow, EachToken
from zerounlearn.easyedit.isolation import isolated
from zerounlearn.easyedit.memit_variants import variant
from zerounlearn.easyedit.method_config import ALIASES, METHODS, Method, load_framework_hparams
from zerounlearn.easyedit.targets import to_easyedit, tokenizer_for
from zerounlearn.errors import ConfigError, IllPosedError
from zerounlearn.method.base import UnlearningMethod
from zerounlearn.method.edit import Edit
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.clock import Clock
from zerounlearn.model.layout import Layout
from zerounlearn.model.snapshot import Snapshot
from zerounlearn.model.tokens import embedding_rows
from zerounlearn.statistics.collect import second_moments
from zerounlearn.statistics.config import StatisticsConfig
from zerounlearn.statistics.files import StoredMoments, check_stats_dir

UNRELATED = (
    "The weather was mild for the time of year, and most of the shops stayed open",
    "To change a tyre, first loosen the nuts, then lift the car and",
    "She put the kettle on, opened the window and sat down with",
    "The committee will meet again next week to discuss the budget and",
    "A triangle with three equal sides has three equal angles, and",
)
"""Ordinary beginnings that WISE's margin loss keeps apart from the edits, as it does with ZsRE's `loc` questions."""

_WRAPPING = ("GRACE", "WISE")
"""They put modules of their own in the place of the model's."""


class FrameworkMethod(UnlearningMethod):
    """One of EasyEdit's methods with its hyperparameters, which are an object of EasyEdit's class."""

    def __init__(self, hparams: Any, seed: int = 0) -> None:
        """Of what `load_framework_hparams` gives."""
        self.hparams = hparams
        self.seed = seed
        self.alg_name, self.model_name, self.device = hparams.alg_name, hparams.model_name, hparams.device

    @classmethod
    def from_hparams(cls, path: str | Path, overrides: Sequence[str] = ()) -> FrameworkMethod:
        """See `load_framework_hparams`."""
        return cls(load_framework_hparams(Path(path), overrides))

    def to_dict(self) -> dict[str, Any]:
        """The hyperparameters as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(vars(self.hparams), default=str))
        return plain

    def seeded(self, seed: int) -> FrameworkMethod:
        """A copy that draws by another seed."""
        return type(self)(copy.deepcopy(self.hparams), seed)

    def check_retain(self, shown: bool) -> None:
        """EasyEdit's methods take no retain set.

        Raises:
            ConfigError: one is to be shown.
        """
        if shown:
            raise ConfigError(
                f"retain=true: {self.alg_name!r} is a method of the framework, which takes no retain set: drop it"
            )

    def check_given(self, given: bool) -> None:
        """EasyEdit's methods take no retain set.

        Raises:
            ConfigError: one is given.
        """
        if given:
            raise ConfigError(f"{self.alg_name!r} is a method of EasyEdit, which takes no retain set: drop it")

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check modules and corpus on a model without weights.

        Raises:
            ZeroUnlearnError: something does not fit.
        """
        if getattr(self.hparams, "mom2_adjustment", False):
            check_corpus(self.hparams.mom2_dataset)
            check_stats_dir(self.hparams.stats_dir)
        templates = ("rewrite_module_tmp", "layer_module_tmp", "ln_f_module", "lm_head_module")
        if all(hasattr(self.hparams, name) for name in (*templates, "layers")):
            Layout.of(skeleton, self.hparams.layers, **{name: getattr(self.hparams, name) for name in templates})
        else:  # it wraps modules, and names them in its own way
            check(self.hparams, skeleton)

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """See `check`."""
        return check(self.hparams, model)

    def versions(self) -> dict[str, str]:
        """EasyEdit's edition."""
        return {"easyedit": framework().edition}

    def identity(self) -> dict[str, Any]:
        """The edition, and the corpus by a name that changes with its content."""
        found: dict[str, Any] = {"edition": framework().edition}
        if getattr(self.hparams, "mom2_adjustment", False):
            found["corpus"] = open_corpus(self.hparams.mom2_dataset).name
        return found

    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        retain: Sequence[Request] | None = None,
        held_out: Collection[str] = (),
    ) -> Edit:
        """See `UnlearningMethod.apply`; the neutral target is the end-of-text token.

        Raises:
            ConfigError: a retain set is given.
        """
        self.check_given(bool(retain))
        edit = Edit(self.alg_name, self.to_dict())
        with Clock(edit.seconds, model)("edit"):
            before = _applied(model, tokenizer, requests, self.hparams, EOS, self.seed, UNRELATED)
        try:
            if before.same_modules():  # nothing but weights has changed
                edit.record(model, before.changed() or before.values)
            else:
                edit.undo = before.restore
        except BaseException:
            before.restore()
            raise
        return edit


def __getattr__(name: str) -> type[FrameworkMethod]:
    """A class for each of EasyEdit's methods, by which the registry finds it."""
    if not {name, name.replace("_", "-")} & {*METHODS, *ALIASES}:
        raise AttributeError(name)
    own = {"__doc__": f"EasyEdit's {name}.", "__module__": __name__, "wraps_modules": name in _WRAPPING}
    own["saves_edits"] = name not in (*_WRAPPING, "LoRA")  # which is known by what undoes it
    return globals().setdefault(name, type(name, (FrameworkMethod,), own))


def apply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: Any,
    *,
    neutral: str = EOS,
    seed: int = 0,
    unrelated: Sequence[str] = UNRELATED,
) -> Callable[[], None]:
    """Map `requests` to the neutral target by the method that `hparams` name, in place.

    Args:
        model: a decoder; it is in evaluation mode while the method runs, as the framework loads it.
        tokenizer: the model's; it is not changed.
        requests: the forget set.
        hparams: from `load_framework_hparams`; not changed. `device` and `model_name` are the model's own.
        neutral: `eos`, `pad` or a text, for requests that name none.
        seed: of the generators that the method draws from.
        unrelated: texts that WISE is to leave alone.

    Returns:
        The function that puts the model back, bit for bit.

    Raises:
        RequestError, LayoutError, ConfigError, StatisticsError: before the model is changed.
        IllPosedError: the edited weights are not finite; the edit is undone.
        Exception: whatever the method itself raises; the edit is undone.
    """
    return _applied(model, tokenizer, requests, hparams, neutral, seed, unrelated).restore


def _applied(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: Any,
    neutral: str,
    seed: int,
    unrelated: Sequence[str],
) -> Snapshot:
    """See `apply`; what the model was before."""
    requests = check_requests(requests)
    method = METHODS[hparams.alg_name]
    hparams = _adapted(hparams, model, len(requests))
    names = check(hparams, model)
    ours, records = _as_easyedit_asks(model, tokenizer, requests, hparams, neutral)
    for i, record in enumerate(records):
        record["loc_prompt"] = unrelated[i % len(unrelated)]
    snapshot = Snapshot(model, names)
    try:
        with (
            _statistics(model, tokenizer, hparams, method) as moments,
            isolated(model.device, seed),
            torch.enable_grad(),
            variant(model, ours, hparams, [model.get_parameter(name) for name in names]) as after_group,
        ):
            model.eval()
            if hparams.alg_name == "AlphaEdit":
                _project(model, ours, hparams, moments)
            run = importlib.import_module(f"{PACKAGE}.util.alg_dict").ALG_DICT[method.runs or hparams.alg_name]
            size = getattr(hparams, "group_size", 0) or len(records) if method.batch else 1
            for group in (records[i : i + size] for i in range(0, len(records), size)):
                run(model, ours, group, hparams, copy=False, return_orig_weights=False, keep_original_weight=False)
                after_group(group)
        snapshot.settle()
        if not snapshot.finite():
            raise IllPosedError(f"{hparams.alg_name}: the edited weights contain NaN or Inf: take a smaller step")
        _answer_one_by_one(model, hparams)
    except BaseException:
        snapshot.restore()
        raise
    return snapshot


def _as_easyedit_asks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: Any,
    neutral: str,
) -> tuple[PreTrainedTokenizerBase, list[dict[str, Any]]]:
    """A tokenizer in which the neutral targets are texts, and the requests as the method's records."""
    method = METHODS[hparams.alg_name]
    if neutral in ("<|endoftext|>", tokenizer.eos_token):  # as EasyEdit's users spell it
        neutral = EOS
    side = "left" if getattr(hparams, "objective_optimization", "") == "target_new" else method.side
    ours = tokenizer_for(tokenizer, requests, neutral, side, rows=embedding_rows(model))
    # PMET leaves the space out except for GPT models.
    space = hparams.alg_name == "PMET" and "gpt" not in str(model.name_or_path).lower()
    return ours, to_easyedit(tokenizer, requests, neutral, template=method.template, space=space)


def check(hparams: Any, model: PreTrainedModel) -> list[str]:
    """The parameters that the method may write to; a model without weights will do.

    Raises:
        ConfigError: a module that `hparams` name is not there.
    """
    if hasattr(hparams, "inner_params"):
        wanted = [_module_name(name) for name in hparams.inner_params]
    else:
        template = getattr(hparams, "rewrite_module_tmp", None)
        wanted = [template.format(layer) for layer in hparams.layers] if template else []
    names = [name for name, _ in model.named_parameters()]
    for part in wanted:
        if not any(part in name for name in names):
            field = "inner_params" if hasattr(hparams, "inner_params") else f"layers={hparams.layers}"
            raise ConfigError(
                f"{hparams.alg_name}: {type(model).__name__} has no parameters in {part!r}: check {field}"
            )
    return [name for name in names if any(part in name for part in wanted)]


def _module_name(name: str) -> str:
    """As torch spells it: GRACE and WISE evaluate `layers[3]` as code, UltraEdit splits at dots."""
    return name.replace("[", ".").replace("]", "").removesuffix(".weight")


def _adapted(hparams: Any, model: PreTrainedModel, count: int) -> Any:
    """A copy for this model and this many requests."""
    hparams = copy.deepcopy(hparams)
    hparams.device = str(model.device)
    # Some methods learn from this name which way a weight lies; any other would leave their variables unset.
    hparams.model_name = "gpt2-xl" if any(isinstance(m, Conv1D) for m in model.modules()) else "llama"
    if hasattr(hparams, "lm_head_module"):  # looked up among the parameters, where a tied one has one name
        hparams.lm_head_module = _listed(model, hparams.lm_head_module)
    if hparams.alg_name == "WISE":
        hparams.sequential_edit = True
    if hparams.alg_name == "ULTRAEDIT":  # it drops what does not fill a batch
        once = max(k for k in range(1, count + 1) if count % k == 0 and k <= max(hparams.batch_size_once, 1))
        hparams.batch_size, hparams.batch_size_once = count, once
    return hparams


def _listed(model: PreTrainedModel, module: str) -> str:
    """The name under which `named_parameters` lists a module's weight, without `.weight`."""
    weight = getattr(dict(model.named_modules()).get(module), "weight", None)
    listed = [name for name, parameter in model.named_parameters() if parameter is weight]
    return listed[0].removesuffix(".weight") if listed else module


@contextmanager
def _statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: Any, method: Method
) -> Iterator[Sequence[Path]]:
    """Have the method find our second moments, whose files are yielded, and no others where it looks for its own."""
    if not method.statistics or (not hparams.mom2_adjustment and not method.batch):
        yield []
        return
    wanted = StatisticsConfig(
        layers=hparams.layers,
        mom2_dataset=hparams.mom2_dataset,
        mom2_n_samples=hparams.mom2_n_samples,
        mom2_dtype=hparams.mom2_dtype,
        stats_dir=hparams.stats_dir,
    )
    corpus = open_corpus(wanted.mom2_dataset)
    moments = second_moments(find_layout(model, hparams), tokenizer, wanted, corpus)
    assert isinstance(moments, StoredMoments)
    name = model.config._name_or_path
    with tempfile.TemporaryDirectory() as folder:
        for edition in {name.rsplit("/")[-1], name.replace("/", "_")}:
            for file in moments.files.values():
                sought = replace(file.key, samples=file.key.number).file()
                place = Path(folder) / edition / f"{corpus.name}_stats" / sought
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.path.resolve())
        hparams.stats_dir, hparams.mom2_dataset = folder, corpus.name
        hparams.mom2_n_samples = next(iter(moments.files.values())).key.number
        yield [file.path for file in moments.files.values()]


_projectors: dict[tuple[Any, ...], torch.Tensor] = {}
"""AlphaEdit's last one: it takes longer than the edit, and all cells of a study need the same."""


def _project(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hparams: Any, moments: Sequence[Path]) -> None:
    """Let AlphaEdit compute its projector without writing it into the current folder, where it would find it again."""
    main = importlib.import_module(f"{PACKAGE}.models.alphaedit.AlphaEdit_main")
    key = (hparams.nullspace_threshold, *((path.resolve(), path.stat().st_mtime_ns) for path in moments))
    if key not in _projectors:
        _projectors.clear()
        layers = [main.get_project(model, tokenizer, layer, hparams) for layer in hparams.layers]
        _projectors[key] = torch.stack(layers)
    P = _projectors[key]
    if not P.any():
        raise ConfigError(
            f"nullspace_threshold={hparams.nullspace_threshold:g}: no direction of the keys of layers "
            f"{hparams.layers} is that quiet, so AlphaEdit would change nothing: raise it"
        )
    vars(main).update(P=P, P_loaded=True)
    hparams.P_loc = hparams.stats_dir  # anything that exists: P is loaded


def _answer_one_by_one(model: PreTrainedModel, hparams: Any) -> None:
    if hparams.alg_name not in _WRAPPING:
        return
    parent, _, last = _module_name(hparams.inner_params[0]).rpartition(".")
    owner = model.get_submodule(parent)
    adapter = getattr(owner, last)
    wrapper = EachToken(adapter) if hparams.alg_name == "GRACE" else EachRow(adapter, model)
    setattr(owner, last, wrapper.eval())
