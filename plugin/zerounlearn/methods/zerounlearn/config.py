"""Hyperparameters: the published names and values, checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from zerounlearn.config import Settings, option, read_settings, resolved
from zerounlearn.core.nullspace import Rule
from zerounlearn.errors import ConfigError
from zerounlearn.model.tokens import FactToken

if TYPE_CHECKING:
    from typing import Self

Precision = Literal["float32", "float64"]
Preset = Literal["paper", "specific"]
Orthogonality = Literal["output", "forget-keys", "none"]

# What a preset puts in place of published values. "specific" was found on the development facts: docs/method.md.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "specific": {
        "orthogonality": "none",
        "context_keys": "each",
        "z_objective": "suppress",
        "strength": 0.85,
        "retain_set": "auto",
        "retain_KKT_lam": 750.0,
        "retain_VKT_lam": 750.0,
        "forget_KKT_lam": 500.0,
        "forget_VKT_lam": 500.0,
        "regularization_lam": 60.0,
    },
}


@dataclass
class ZeroUnlearnHyperParams(Settings):
    """Everything a run depends on; unknown names are refused, and `validate` runs before any work.

    Names and defaults are those of the published code where it has them (XMUDeepLIT/ZeroUnlearn), else
    those of EasyEdit's MEMIT. `preset` names a set of values (`PRESETS`) for the fields that stand at their published
    default; a field with another value, or one set by an override, keeps it. A file may say more under `presets`, a
    mapping of preset names to values for its model.
    """

    model_name: Any = option("", "Checkpoint folder or hub name, or a (model, tokenizer) pair.")
    layers: list[int] = option([], "Consecutive layers to edit, counted from 0.")
    alg_name: str = option("ZeroUnlearn", "The name under which EasyEdit knows the method.")
    device: Any = option("auto", "A CUDA index, 'cpu', 'cuda:1', 'mps', or 'auto': CUDA where there is any.")

    preset: Preset = option(
        "paper", "'paper', the published method, or 'specific', ours, which spares what is like the facts."
    )
    orthogonality: Orthogonality = option(
        "output", "QᵀW' = 0 for every input ('output', published), on the forget keys alone ('forget-keys'), or 'none'."
    )
    z_objective: Literal["neutral", "suppress"] = option(
        "neutral", "What z* is found for: the neutral target, or that the sensitive answer's first token is unlikely."
    )
    suppress_weight: float = option(
        3.0, "Weight of the loss −log(1 − p) of z_objective='suppress'; larger lowers p more."
    )
    context_keys: Literal["mean", "each"] = option(
        "mean", "One key a request, its mean over the contexts, or one a context."
    )
    strength: float = option(1.0, "How far towards z* the hidden states are moved; 1 is all the way.")
    retain_set: str = option("none", "Facts to keep: 'none', 'auto' (others like those to forget), or a file of facts.")
    retain_exactly: bool = option(False, "Keep what the layers write for the retain set's keys exactly.")

    layer_selection: Literal["all"] = option("all", "Only 'all': every listed layer is edited.")
    fact_token: FactToken = option("subject_last", "Where the fact is looked up.")
    v_num_grad_steps: int = option(25, "Adam steps for z* and V_u.")
    v_lr: float = option(0.1, "Adam's learning rate, in units of the hidden state.")
    v_loss_layer: int | None = option(None, "Layer whose output the target's loss is read from; the last by default.")
    v_weight_decay: float = option(0.5, "Weight of ‖δ‖ / ‖v0‖².")
    clamp_norm_factor: float = option(0.75, "‖δ‖ is kept below this share of ‖v0‖.")
    kl_factor: float = option(0.0625, "Weight of the KL term on '{subject} is a'.")
    neutral_target: str = option("eos", "What the prompts are mapped to: 'eos', 'pad', or a text.")
    sensitive_from: Literal["original", "edited"] = option(
        "original", "Find V_u on the unedited model, or layer by layer as the published code does."
    )

    wiki_KKT_lam: float = option(15000.0, "λw: larger keeps ordinary text closer to what it was.")
    wiki_VKT_lam: float = option(15000.0, "The published code's second λw; the closed form has one.")
    retain_KKT_lam: float = option(1.0, "Weight of the retain set's keys, where one is given.")
    retain_VKT_lam: float = option(1.0, "The published code's second retain weight; the closed form has one.")
    forget_KKT_lam: float = option(50.0, "λf: larger maps the forget prompts closer to the neutral target.")
    forget_VKT_lam: float = option(50.0, "The published code's second λf; the closed form has one.")
    regularization_lam: float = option(1.0, "λr: larger keeps the weight itself closer to what it was.")
    projection_eps: float = option(0.0, "0 projects exactly; 0.01 reproduces the published code.")
    solve_dtype: Precision = option("float64", "Precision of the solve, whatever the weights' dtype.")

    rewrite_module_tmp: str = option("model.layers.{}.mlp.down_proj", "The edited module of a layer.")
    layer_module_tmp: str = option("model.layers.{}", "A layer.")
    mlp_module_tmp: str = option("model.layers.{}.mlp", "EasyEdit's name for a layer's MLP.")
    attn_module_tmp: str = option("model.layers.{}.self_attn", "EasyEdit's name for a layer's attention.")
    ln_f_module: str = option("model.norm", "The final norm.")
    lm_head_module: str = option("lm_head", "The head, or the embedding where they are tied.")

    mom2_adjustment: bool = option(True, "Whether the second moment of ordinary text takes part at all.")
    mom2_update_weight: float = option(15000.0, "MEMIT's name for λw; it must equal wiki_KKT_lam.")
    mom2_dataset: str = option("wikipedia", "'wikipedia', 'wikitext', 'embedded', or a txt/jsonl/parquet file.")
    mom2_n_samples: int = option(100_000, "Texts to take the second moment over.")
    mom2_dtype: Precision = option("float32", "Precision of products and of the stored statistic.")
    stats_dir: str = option("./data/stats", "Where statistics are cached, in EasyEdit's own layout.")
    stats_batch_tokens: int | None = option(
        None, "Tokens per forward pass over the corpus; by default, what memory allows."
    )
    stats_max_length: int = option(512, "Longer texts are cut to this many tokens.")

    nullspace_threshold: float = option(
        2e-2, "Published, and read by nothing there either: no other value is accepted."
    )
    L2: float = option(10.0, "Published, and read by nothing there either: no other value is accepted.")

    n_contexts: int = option(5, "Generated prefixes beside the bare prompt, one per opening word.")
    context_length: int = option(10, "Tokens per generated prefix.")
    z_batch_size: int | None = option(None, "Vectors optimised at a time; by default, what memory allows.")
    seed: int = option(0, "Drives every random choice, through a generator of its own.")

    max_length: int = option(40, "EasyEdit's truncation length for its metrics.")
    batch_size: int = option(1, "Requests applied at once by `batch_edit`.")
    model_parallel: bool = option(False, "EasyEdit's device_map='auto'.")
    fp16: bool = option(False, "EasyEdit's switch for loading float16 weights.")

    # Published names that the method does not depend on: accepted at their default, refused at any other value.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("nullspace_threshold", "L2")
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, value in self.PRESETS.get(self.preset, {}).items():
            if getattr(self, name) == defaults[name]:
                setattr(self, name, value)
        self.device = resolved(self.device)
        self.validate()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, final: Collection[str] = (), where: str = "hparams") -> Self:
        """As for all; `values` may hold more under `presets`, by the name of a preset."""
        values = dict(values)
        presets = values.pop("presets", {})
        if not isinstance(presets, Mapping) or not set(presets) <= set(cls.PRESETS):
            raise ConfigError(f"{where}: presets={presets!r}: expected values by preset, of {', '.join(cls.PRESETS)}")
        of_preset = dict(presets.get(values.get("preset", "paper")) or {})
        values |= {name: value for name, value in of_preset.items() if name not in final}
        built = super().from_mapping(values, where=where)
        for name in {*final, *of_preset} & set(cls.PRESETS[built.preset]):
            setattr(built, name, values[name])
        built.validate()
        return built

    @property
    def earlier_weight(self) -> float:
        """How firmly the keys of earlier edits are held: as firmly as they were mapped."""
        return self.forget_KKT_lam

    def validate(self) -> None:
        """Check types, ranges and relations.

        Raises:
            ConfigError: with the field, its value and what is expected.
        """
        super().validate()
        if not self.layers:
            raise ConfigError("layers=[]: name at least one layer to edit")
        if any(b != a + 1 for a, b in zip(self.layers, self.layers[1:], strict=False)):
            raise ConfigError(f"layers={self.layers}: expected consecutive layers in ascending order")
        if self.layers[0] < 0:
            raise ConfigError(f"layers={self.layers}: layers are counted from 0")
        choices = {
            "layer_selection": ("all",),
            "fact_token": get_args(FactToken),
            "sensitive_from": ("original", "edited"),
            "preset": tuple(self.PRESETS),
            "orthogonality": get_args(Orthogonality),
            "context_keys": ("mean", "each"),
            "z_objective": ("neutral", "suppress"),
            "solve_dtype": get_args(Precision),
            "mom2_dtype": get_args(Precision),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        positive = (
            "strength",
            "suppress_weight",
            "v_lr",
            "clamp_norm_factor",
            "wiki_KKT_lam",
            "forget_KKT_lam",
            "regularization_lam",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number > 0")
        for name in ("v_weight_decay", "kl_factor", "retain_KKT_lam", "projection_eps", "n_contexts", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number >= 0")
        counts = (
            "v_num_grad_steps", "mom2_n_samples", "stats_batch_tokens", "stats_max_length", "context_length",
            "z_batch_size", "max_length", "batch_size",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a whole number >= 1")
        for one, other in (
            ("wiki_KKT_lam", "wiki_VKT_lam"),
            ("forget_KKT_lam", "forget_VKT_lam"),
            ("retain_KKT_lam", "retain_VKT_lam"),
            ("wiki_KKT_lam", "mom2_update_weight"),
        ):
            a, b = getattr(self, one), getattr(self, other)
            if a != b:
                raise ConfigError(
                    f"{one}={a!r} and {other}={b!r} differ: the objective has one weight for the two, set both alike"
                )
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        if self.alg_name != defaults["alg_name"]:
            raise ConfigError(f"alg_name={self.alg_name!r}: these are the hyperparameters of {defaults['alg_name']!r}")
        for name in self.WITHOUT_EFFECT:
            default = defaults[name]
            if getattr(self, name) != default:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: the method does not depend on it, and tuning it would change "
                    f"nothing; leave it at {default}"
                )
        if self.orthogonality != "output" and self.projection_eps:
            raise ConfigError(
                f"projection_eps={self.projection_eps!r}: only orthogonality='output' projects; set it to 0"
            )
        if self.orthogonality == "output" and self.retain_exactly:
            raise ConfigError(
                "retain_exactly=True: an update of outputs (orthogonality='output') cannot keep keys exactly; take "
                "'forget-keys' or 'none'"
            )
        if not self.retain_set.strip():
            raise ConfigError(f"retain_set={self.retain_set!r}: expected 'none', 'auto' or a file of facts")
        if not self.neutral_target.strip():
            raise ConfigError(f"neutral_target={self.neutral_target!r}: expected 'eos', 'pad' or a text")
        for name in ("rewrite_module_tmp", "layer_module_tmp"):
            if getattr(self, name).count("{}") != 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one {{}} for the layer's number")
        if not self.model_name:
            raise ConfigError("model_name is missing: a checkpoint folder, a hub name, or a (model, tokenizer) pair")


@dataclass
class ZeroUnlearnGDHyperParams(ZeroUnlearnHyperParams):
    """Those of ZeroUnlearn-GD, the variant with an additive update in the null space of ordinary keys."""

    alg_name: str = option("ZeroUnlearn-GD", "The name under which EasyEdit knows the method.")
    forget_KKT_lam: float = option(10.0, "Published, and read by nothing there either: no other value is accepted.")
    forget_VKT_lam: float = option(10.0, "Published, and read by nothing there either: no other value is accepted.")
    nullspace_threshold: float = option(1e-2, "Which eigenvalues of C count as free; see nullspace_rule.")
    nullspace_rule: Rule = option(
        "absolute", "'absolute' (published), 'relative' to the largest, or 'energy' of the free."
    )
    solver: Literal["exact", "adam"] = option(
        "exact", "The exact minimiser, or the published Adam on the same objective."
    )
    sensitive_weight: float = option(1.0, "Weight of the output along V_u; larger removes more of it.")
    target_weight: float = option(100.0, "Weight of the mapping to the neutral target.")
    norm_weight: float = option(0.1, "Weight of ‖Δ‖²; larger changes the weight less.")
    gd_steps: int = option(500, "Steps of the solver adam.")
    gd_lr: float = option(1e-3, "Learning rate of the solver adam.")

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (
        "wiki_KKT_lam", "wiki_VKT_lam", "mom2_update_weight", "forget_KKT_lam", "forget_VKT_lam", "regularization_lam",
        "projection_eps", "solve_dtype", "mom2_adjustment", "L2", "orthogonality", "retain_exactly",
    )  # fmt: skip
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    @property
    def earlier_weight(self) -> float:
        """They join C with weight 1 a key, far above any threshold of the free space."""
        return 1.0

    def validate(self) -> None:
        """As for ZeroUnlearn, and the fields of this variant."""
        super().validate()
        for name, allowed in (("solver", ("exact", "adam")), ("nullspace_rule", get_args(Rule))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("nullspace_threshold", "target_weight", "norm_weight", "gd_lr", "gd_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a number > 0")
        if not self.sensitive_weight >= 0:
            raise ConfigError(f"sensitive_weight={self.sensitive_weight!r}: expected a number >= 0")


METHODS: dict[str, type[ZeroUnlearnHyperParams]] = {
    "ZeroUnlearn": ZeroUnlearnHyperParams,
    "ZeroUnlearn-GD": ZeroUnlearnGDHyperParams,
}


def load_hparams(path: str | Path, overrides: Sequence[str] = ()) -> ZeroUnlearnHyperParams:
    """Hyperparameters of the method that the file's `alg_name` (or an override) names.

    Raises:
        ConfigError: the name is none of ours, or see `from_hparams`.
    """
    name = read_settings(path, overrides)[1].get("alg_name", "ZeroUnlearn")
    if name not in METHODS:
        raise ConfigError(f"alg_name={name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name].from_hparams(path, overrides)
