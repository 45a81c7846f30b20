"""What every method of unlearning is, and what it leaves behind.

A method is a configuration class in the registry `methods`, under the name that EasyEdit's `alg_name` has for it. An
instance forgets by `apply`, which changes the model and returns an `Edit`: what changed, how to take it back bit for
bit, how to put it on again.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from zerounlearn.config import Flag, Whole, option, settings
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, EditError
from zerounlearn.files import whole_file
from zerounlearn.model.families import Templates, templates_of
from zerounlearn.model.hooks import attention_of, hooks_of, uninterrupted
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.offload import slot_of
from zerounlearn.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
"""Of edit files; another number is refused."""


@dataclass(frozen=True)
class LayerOutcome:
    """What was done to one layer, measured on the weight as written.

    `leakage` is ‖QᵀW'K‖/‖QᵀWK‖ (None without a Q), `relative_change` ‖W'−W‖/‖W‖, `rounding` the share of the change
    that the weight's dtype lost, `rank` that of Q, `kept` the number of keys of the retain set and of earlier edits
    that took part, `form` says which problem was solved, `distance` is the mean ‖target − h_L‖ that the layer started
    from.
    """

    layer: int
    leakage: float | None
    relative_change: float
    rounding: float
    rank: int
    kept: int
    form: str
    distance: float


@dataclass
class Edit:
    """The result of unlearning: what changed, what it was made from, how long it took, and how to undo it.

    Attributes:
        method: name of the method.
        hparams: its configuration as plain values.
        before: the changed weights as they were, by parameter name, in the checkpoint's orientation and dtype; empty
            for an edit that was loaded from a file.
        factors: thin factors by parameter name, left (rows, r) and right (r, columns) in float32, whose product is
            the change; only where the change is of low rank.
        changes: the whole change (W' − W) by parameter name, float32, where it is not of low rank.
        digests: of each changed weight, before and after, by parameter name; see `weight_digest`.
        layers: what was done to each layer; empty for methods that do not go by layers.
        seconds: by stage.
        statistics: name of the corpus behind C, and a digest of each layer's C.
        losses: by name, a series of values: a gradient method's terms at every step, or the first and last mean loss
            of z* and V_u, in nats per token.
        prefixes: the contexts that the facts were forgotten behind.
        vectors: z* and V_u, for runs that differ in nothing but how the layers are solved for; not saved.
        undo: what takes the edit back where it is more than weights (EasyEdit's GRACE and WISE wrap modules).
    """

    method: str
    hparams: dict[str, Any]
    before: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    layers: list[LayerOutcome] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    prefixes: list[str] = field(default_factory=list)
    vectors: Any = field(default=None, repr=False)
    undo: Callable[[], None] | None = field(default=None, repr=False)

    def record(self, model: PreTrainedModel, originals: Mapping[str, Tensor]) -> None:
        """Take note of the weights as the method left them; call once, when all are written.

        Args:
            model: the edited model.
            originals: the weights as they were, by parameter name.
        """
        self.before = dict(originals)
        for name, old in originals.items():
            new = _value(model, name)
            self.digests[name] = (weight_digest(old), weight_digest(new))
            if name not in self.factors:
                self.changes[name] = (new.to(old.device).double() - old.double()).float().cpu()

    @torch.no_grad()
    def revert(self, model: PreTrainedModel) -> None:
        """Put the weights back as they were, bit for bit.

        An edit that was loaded from a file has no copy of them: it takes its change off and accepts the result only if
        that is what the weights were, to the last bit.

        Raises:
            EditError: the weights are not those that the edit left (a later edit is on top, or it is another model),
                or the originals cannot be had exactly; nothing is changed.
        """
        if self.undo is not None:
            self.undo()
            return
        originals = {}
        for name, (old_digest, new_digest) in self.digests.items():
            now = _value(model, name)
            if weight_digest(now) != new_digest:
                raise EditError(
                    f"{name} is not as this edit left it: take back later edits first, or load the model that it was "
                    "made on"
                )
            old = self.before.get(name)
            if old is None:
                old = (now.double() - self._change(name).to(now.device)).to(now.dtype)
            if weight_digest(old) != old_digest:
                raise EditError(
                    f"{name} in {now.dtype} cannot be had exactly by taking the change off again: load the original "
                    "checkpoint"
                )
            originals[name] = old
        _write(model, originals)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Make the change on a model whose weights are those that it was made on.

        Afterwards `revert` knows the originals. A weight is the original plus the product of its factors, in float64,
        rounded once: equal to what the method wrote up to the rounding of its dtype.

        Raises:
            EditError: the weights are others; nothing is changed.
        """
        if self.undo is not None:
            raise EditError(f"{self.method} wraps modules: its edit cannot be put on again; run the method")
        edited, originals = {}, {}
        for name, (old_digest, _) in self.digests.items():
            now = _value(model, name)
            if weight_digest(now) != old_digest:
                raise EditError(
                    f"{name} is not the weight that this edit was made on ({now.dtype}, {tuple(now.shape)}): load that "
                    "model, unedited, in the same dtype"
                )
            originals[name] = now.clone()
            edited[name] = (now.double() + self._change(name).to(now.device)).to(now.dtype)
        _write(model, edited)
        self.before = originals
        self.digests = {n: (self.digests[n][0], weight_digest(value)) for n, value in edited.items()}

    def _change(self, name: str) -> Tensor:
        """W' − W (rows, columns) in float64."""
        if name in self.factors:
            left, right = self.factors[name]
            return left.double() @ right.double()
        return self.changes[name].double()

    def save(self, path: str | Path) -> None:
        """Write the change without the original weights: a safetensors file, no pickles.

        Raises:
            EditError: the edit is more than a change of weights.
            OutputError: the file cannot be written.
        """
        if self.undo is not None:
            raise EditError(f"{self.method} wraps modules: there is no change of weights to save")
        tensors = {f"{name}/change": change for name, change in self.changes.items()}
        for name, (left, right) in self.factors.items():
            tensors |= {f"{name}/left": left, f"{name}/right": right}
        described = {
            "format": FORMAT,
            "method": self.method,
            "hparams": self.hparams,
            "digests": self.digests,
            "layers": [asdict(layer) for layer in self.layers],
            "seconds": self.seconds,
            "statistics": self.statistics,
        }
        stored = serialise(
            {name: value.float().cpu().contiguous() for name, value in tensors.items()},
            metadata={"zerounlearn": json.dumps(described, sort_keys=True, default=str)},
        )
        with whole_file(Path(path), "wb", remedy="name another file or free space") as stream:
            stream.write(stored)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            EditError: the file is missing, damaged, no edit, or of another format.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                described = json.loads(stored.metadata()["zerounlearn"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 (no mapping)
            if described["format"] != FORMAT:
                raise EditError(f"{str(path)!r} has format {described['format']}, and this version reads {FORMAT}")
            return cls(
                described["method"],
                described["hparams"],
                factors={
                    name: (tensors[f"{name}/left"], tensors[f"{name}/right"])
                    for name in described["digests"]
                    if f"{name}/left" in tensors
                },
                changes={n: tensors[f"{n}/change"] for n in described["digests"] if f"{n}/change" in tensors},
                digests={name: (old, new) for name, (old, new) in described["digests"].items()},
                layers=[LayerOutcome(**layer) for layer in described["layers"]],
                seconds=described["seconds"],
                statistics=described["statistics"],
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, EditError):
                raise
            raise EditError(f"{str(path)!r} is no edit, or damaged: {error}") from error


class UnlearningMethod(ABC):
    """What a method can do; `Method` is one whose configuration is ours, EasyEdit's own are others."""

    alg_name: str
    model_name: Any
    device: Any
    seed: int
    wraps_modules: ClassVar[bool] = False
    """Whether the edited model has modules that no checkpoint can hold."""

    @classmethod
    @abstractmethod
    def from_hparams(cls, path: str | Path, overrides: Sequence[str] = ()) -> Any:
        """The run that a file describes; `key=value` overrides beat it.

        Raises:
            ConfigError: a name is unknown, or a value is wrong.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values."""

    @abstractmethod
    def seeded(self, seed: int) -> Any:
        """A copy that draws by another seed."""

    @abstractmethod
    def check(self, skeleton: PreTrainedModel) -> None:
        """Check what can be checked on a model without weights: templates, layers, files.

        Raises:
            ZeroUnlearnError: something does not fit.
        """

    def check_retain(self, shown: bool) -> None:
        """Refuse a study's `retain: true` (or its absence) where it would mean nothing.

        Raises:
            ConfigError: the method has no use for a retain set, or cannot do without.
        """
        if shown:
            raise ConfigError(f"retain=true: {self.alg_name} has no retain term, so it would change nothing: drop it")

    @property
    def names_retain_set(self) -> bool:
        """Whether the configuration itself says which facts to keep."""
        return False

    def check_given(self, given: bool) -> None:
        """Refuse a retain set that is at hand (or its absence) where it would mean nothing.

        Raises:
            ConfigError: the method has no use for a retain set, or cannot do without.
        """
        if given:
            raise ConfigError(f"{self.alg_name} has no retain term, so a retain set would change nothing: drop it")

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Have on disk what many runs share; by default there is nothing."""

    @abstractmethod
    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The parameters that the method may write to; a model without weights will do.

        Raises:
            ZeroUnlearnError: the model does not have them.
        """

    def retained(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        held_out: Collection[str] = (),
    ) -> list[Request]:
        """The facts to keep that the configuration stands for, for this forget set; by default there are none."""
        return []

    def fingerprints(self, model: PreTrainedModel) -> dict[str, str]:
        """Digests of what the edit is based on, by what they are of, for a report."""
        return {}

    def versions(self) -> dict[str, str]:
        """Versions of what the method runs on, beside those of every run."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What the result depends on beside `to_dict`: the content of files that the configuration names."""
        return {}

    @abstractmethod
    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        retain: Sequence[Request] | None = None,
        held_out: Collection[str] = (),
    ) -> Edit:
        """Forget `requests`, in place.

        Args:
            model: a decoder.
            tokenizer: the model's; its padding side does not matter.
            requests: the forget set.
            retain: facts to keep; by default what the configuration stands for.
            held_out: prompts that measure something, which an automatic retain set must not hold.

        Raises:
            ZeroUnlearnError: before any weight is changed, or with the weights restored, bit for bit.
        """


@settings
class Method(Templates, UnlearningMethod):
    """What all methods depend on; an instance is a run."""

    model_name: Any = option("", "Checkpoint folder or hub name, or a (model, tokenizer) pair.")
    layers: list[Whole] = option([], "Layers to edit, counted from 0.")
    alg_name: str = option("", "The name under which the method is registered, here and with EasyEdit.")
    device: Any = option("auto", "A CUDA index, 'cpu', 'cuda:1', 'mps', or 'auto': CUDA where there is any.")
    seed: Whole = option(0, "Drives every random choice, through generators of its own.", ge=0)

    max_length: Whole = option(40, "EasyEdit's truncation length for its metrics.", ge=1)
    batch_size: Whole = option(1, "Requests applied at once by EasyEdit's `batch_edit`.", ge=1)
    model_parallel: Flag = option(False, "EasyEdit's device_map='auto'.")
    fp16: Flag = option(False, "EasyEdit's switch for loading float16 weights.")

    def validate(self) -> None:
        """As for all; the method's name, templates and layers."""
        own = type(self).defaults()["alg_name"]
        if self.alg_name != own:
            raise ConfigError(f"alg_name={self.alg_name!r}: these are the hyperparameters of {own!r}")
        for name in ("rewrite_module_tmp", "layer_module_tmp"):
            check_template(name, getattr(self, name))
        for name in ("ln_f_module", "lm_head_module"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a module's name")
        if not isinstance(self.model_name, (str, tuple)):
            raise ConfigError(f"model_name={self.model_name!r}: expected a name, or a (model, tokenizer) pair")
        if not isinstance(self.device, (str, int, torch.device)) or isinstance(self.device, bool):
            raise ConfigError(f"device={self.device!r}: expected 'auto', 'cpu', 'cuda:0', or a CUDA index")

    @classmethod
    def _built(cls, values: dict[str, Any], overrides: Mapping[str, Any], where: str) -> Any:
        built = super()._built(values, overrides, where)
        if not built.model_name:
            raise ConfigError(
                f"{where}: model_name is missing: a checkpoint folder, a hub name, or a (model, tokenizer) pair"
            )
        return built

    def seeded(self, seed: int) -> Any:
        """A copy that draws by another seed."""
        return self.replace(seed=seed)

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The parameters of `layers` that the method writes to; for a method that chooses others, see there."""
        template = templates_of(model, self)["rewrite_module_tmp"]
        return [f"{template.format(layer)}.weight" for layer in self.layers]


methods: Registry[type[UnlearningMethod]] = Registry(
    "method", "zerounlearn.method.zerounlearn.config", "zerounlearn.method.gradient.*"
)


def load_method(path: str | Path, overrides: Sequence[str] = ()) -> UnlearningMethod:
    """The run that a hyperparameter file describes; its `alg_name` (or an override's) names the method.

    Raises:
        ConfigError: the name is no method's, or a value is wrong.
    """
    from zerounlearn.config import parsed_overrides, read_settings

    file, values = read_settings(path)
    name = {**values, **parsed_overrides(overrides)}.get("alg_name", "ZeroUnlearn")
    if not isinstance(name, str):
        raise ConfigError(f"{file}: alg_name={name!r}: expected the name of a method")
    # EasyEdit's own files write some names in other cases, as ULTRAEDIT.
    known = {one.lower(): one for one in methods}
    try:
        kind = methods[known.get(name.lower(), name)]
    except ConfigError as error:
        raise ConfigError(f"{file}: alg_name={name!r}: {error}") from None
    return kind.from_hparams(path, overrides)


def check_template(name: str, value: str | None) -> None:
    """Refuse a template that does not have `{}` once, or is no format.

    Raises:
        ConfigError: naming it.
    """
    if value is not None and (value.count("{}") != 1 or value.count("{") != 1 or value.count("}") != 1):
        raise ConfigError(f"{name}={value!r}: expected one {{}} for the layer's number")


def weight_digest(weight: Tensor) -> str:
    """A digest of a weight's shape, dtype and every byte."""
    seen = hashlib.blake2b(f"{tuple(weight.shape)} {weight.dtype}".encode(), digest_size=16)
    seen.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()


@contextmanager
def restored_if_it_fails(model: PreTrainedModel, names: Sequence[str]) -> Iterator[None]:
    """Put the parameters back bit for bit if the body raises, KeyboardInterrupt included, wherever they are kept.

    So are what is remembered of earlier edits, hooks, training modes, the attention's implementation, gradient flags
    and torch's gradient mode: an interrupt in the middle of putting them back elsewhere may have left them. A further
    Ctrl-C waits until then.
    """
    saved = {name: _value(model, name).clone() for name in names}
    modes = [(module, module.training) for module in model.modules()]
    hooks = [(held, set(held)) for module in model.modules() for held in hooks_of(module)]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gradients = torch.is_grad_enabled()
    attention = attention_of(model)
    lineage = Lineage.of(model)
    remembered = {name: dict(value) for name, value in vars(lineage).items() if isinstance(value, dict)}
    try:
        yield
    except BaseException:
        with uninterrupted():
            _write(model, saved)
            vars(lineage).update(remembered)
            for module, mode in modes:
                module.training = mode
            for held, own in hooks:
                for key in [key for key in held if key not in own]:
                    del held[key]
            for name, flag in flags.items():
                model.get_parameter(name).requires_grad_(flag)
            for config, implementation in attention:
                config._attn_implementation = implementation
            torch.set_grad_enabled(gradients)
        raise


def _value(model: PreTrainedModel, name: str) -> Tensor:
    """A parameter's value, wherever it is kept.

    Raises:
        EditError: the model has no such parameter.
    """
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise EditError(f"{type(model).__name__} has no weight {name!r}: the edit was made on another model") from None
    slot = slot_of(model, name) if parameter.is_meta else None
    return slot.get().to(parameter.dtype) if slot is not None else parameter.detach()


def _write(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    """Store weights, and forget what was remembered of edits that are no longer there."""
    with uninterrupted():
        _store(model, values)


def _store(model: PreTrainedModel, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = model.get_parameter(name)
        slot = slot_of(model, name) if parameter.is_meta else None
        if slot is not None:
            slot.put(value)
        else:
            with torch.no_grad():
                parameter.copy_(value)
    for name in values:
        value = _value(model, name)
        turned = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)  # GPT-2 stores Wᵀ
        if name in Lineage.of(model).traces:
            Lineage.of(model).earlier(name, value.mT if turned else value)
