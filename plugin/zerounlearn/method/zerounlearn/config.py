"""Hyperparameters of ZeroUnlearn and ZeroUnlearn-GD: the published names and values, in four parts.

A run is its `Templates` (where modules are), `StatisticsConfig` (ordinary text's C), `VectorConfig` (z* and V_u), and
how a layer is solved for: `SolveConfig` for the closed form, `DescentConfig` for the gradient variant. In a file they
are one flat mapping.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import NotRequired, Self, TypedDict

from zerounlearn.config import Flag, Number, Settings, Unsaid, Whole, option, settings
from zerounlearn.core.nullspace import Rule
from zerounlearn.data.corpora import check_corpus, open_corpus
from zerounlearn.data.request import Request
from zerounlearn.data.retain import NONE, check_retain_set, retain_set
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import Method, methods
from zerounlearn.method.edit import Edit
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.fingerprint import fingerprints
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.tokens import FactToken
from zerounlearn.statistics.config import Precision, StatisticsConfig, check_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Preset = Literal["paper", "specific", "specific-1"]
Orthogonality = Literal["output", "remap-only", "forget-keys", "none"]


@settings
class VectorConfig(Settings):
    """How z*, the neutral target's hidden state, and V_u, the sensitive outputs, are found (paper, section 4.1)."""

    fact_token: FactToken = option("subject_last", "Where the fact is looked up.")
    neutral_target: str = option(
        "eos",
        "What the prompts are mapped to: 'eos', 'pad', a text, or 'unknown', what the model says in the same prompt of "
        "subjects that do not exist.",
    )
    z_objective: Literal["neutral", "suppress"] = option(
        "neutral",
        "What z* is found for: the neutral target, or that the sensitive answer's first token is unlikely; with "
        "neutral_target='unknown', 'suppress' is both.",
    )
    suppress_weight: Number = option(
        3.0, "Weight of the loss −log(1 − p) of z_objective='suppress'; larger lowers p more.", gt=0
    )
    sensitive_from: Literal["original", "edited"] = option(
        "original", "Find V_u on the unedited model, or layer by layer as the published code does."
    )
    use_h: Flag = option(
        False, "Find V_u at the block's output, as the published `--use_h` does, instead of the down projection's."
    )
    reproduce: Literal["exact", "fast"] = option(
        "fast",
        "z* and V_u by the published Adam steps, 'exact', or in a quarter of the passes by a few of Polyak's, 'fast'.",
    )
    v_steps: Whole = option(6, "Polyak's steps for z* and V_u, at most, with reproduce='fast'.", ge=1)
    v_num_grad_steps: Whole = option(25, "Adam steps for z* and V_u, with reproduce='exact'.", ge=1)
    v_lr: Annotated[Number | None, Unsaid] = option(
        0.1,
        "Adam's learning rate, in units of the hidden state, with reproduce='exact'; 'auto' measures those "
        "(docs/method.md).",
        gt=0,
    )
    v_loss_layer: Whole | None = option(
        None, "Layer whose output the target's loss is read from; the last by default.", ge=0
    )
    v_weight_decay: Number = option(0.5, "Weight of ‖δ‖ / ‖v0‖².", ge=0)
    clamp_norm_factor: Number = option(0.75, "‖δ‖ is kept below this share of ‖v0‖.", gt=0)
    kl_factor: Number = option(0.0625, "Weight of the KL term on '{subject} is a'.", ge=0)
    kl_of: Literal["after", "before"] = option(
        "after", "Whose distribution the KL term averages over: KL(after ‖ before), published, or the reverse."
    )
    n_contexts: Whole = option(5, "Generated prefixes beside the bare prompt, one per opening word.", ge=0)
    context_length: Whole = option(10, "Tokens per generated prefix.", ge=1)
    z_batch_size: Whole | None = option(None, "Vectors optimised at a time; by default, what memory allows.", ge=1)


@settings
class SolveConfig(Settings):
    """How a layer is solved for in closed form (paper, section 4.2), and our variant on the forget keys."""

    orthogonality: Orthogonality = option(
        "output",
        "QᵀW' = 0 for every input ('output', published) or without that ('remap-only', P = I); for our additive update "
        "on the forget keys alone ('forget-keys') or 'none'.",
    )
    wiki_KKT_lam: Number = option(15000.0, "λw: larger keeps ordinary text closer to what it was.", gt=0)
    forget_KKT_lam: Number = option(50.0, "λf: larger maps the forget prompts closer to the neutral target.", gt=0)
    regularization_lam: Number = option(1.0, "λr: larger keeps the weight itself closer to what it was.", gt=0)
    retain_exactly: Flag = option(False, "Keep what the layers write for the retain set's keys exactly.")
    projection_eps: Number = option(0.0, "0 projects exactly; 0.01 reproduces the published code.", ge=0)
    solve_dtype: Precision = option("float64", "Precision of the solve, whatever the weights' dtype.")

    @property
    def form(self) -> str:
        """Which of the solvers of a layer it is."""
        return "multiplicative" if self.orthogonality in ("output", "remap-only") else "keys"

    @property
    def needs_sensitive(self) -> bool:
        """Whether V_u takes part."""
        return self.orthogonality in ("output", "forget-keys")

    @property
    def earlier_weight(self) -> float:
        """How firmly the keys of earlier edits are held: as firmly as they were mapped."""
        return self.forget_KKT_lam


@settings
class DescentConfig(Settings):
    """How a layer is solved for by ZeroUnlearn-GD: an additive update in the null space of ordinary keys."""

    solver: Literal["exact", "adam"] = option(
        "exact", "The exact minimiser, or the published Adam on the same objective."
    )
    nullspace_threshold: Number = option(1e-2, "Which eigenvalues of C count as free; see nullspace_rule.", gt=0)
    nullspace_rule: Rule = option(
        "absolute", "'absolute' (published), 'relative' to the largest, or 'energy' of the free."
    )
    sensitive_weight: Number = option(1.0, "Weight of the output along V_u; larger removes more of it.", ge=0)
    target_weight: Number = option(100.0, "Weight of the mapping to the neutral target.", gt=0)
    norm_weight: Number = option(0.1, "Weight of ‖Δ‖²; larger changes the weight less.", gt=0)
    gd_steps: Whole = option(500, "Steps of the solver adam.", ge=1)
    gd_lr: Number = option(1e-3, "Learning rate of the solver adam.", gt=0)

    @property
    def form(self) -> str:
        """Which of the solvers of a layer it is."""
        return "null space"

    @property
    def needs_sensitive(self) -> bool:
        """Whether V_u takes part: always."""
        return True

    @property
    def earlier_weight(self) -> float:
        """They join C with weight 1 a key, far above any threshold of the free space."""
        return 1.0


_FOUND = BeforeValidator(lambda value: [] if value == "auto" else value)


@with_config(ConfigDict(extra="forbid"))
class Site(TypedDict):
    """Consecutive layers that are edited together; what is left out is as the run has it."""

    layers: list[Whole]
    fact_token: NotRequired[FactToken]
    strength: NotRequired[Annotated[Number, Field(gt=0)]]


@settings
class LocatedEdit(Method, StatisticsConfig, VectorConfig):
    """What the closed form and the gradient variant share: both edit consecutive layers where the fact is looked up."""

    layers: Annotated[list[Whole], _FOUND] = option(
        [], "Layers to edit, counted from 0; left out, or 'auto', they are found on the model (docs/method.md)."
    )
    retain_set: str = option("none", "Facts to keep: 'none', 'auto' (others like those to forget), or a file of facts.")
    add_retain: Flag = option(
        False, "Put the retain set's statements among the texts that C is sampled from, as `--add_retain` does."
    )
    strength: Number = option(1.0, "How far towards z* the hidden states are moved; 1 is all the way.", gt=0)
    retries: Whole = option(
        0,
        "How often the edit is made again if a fact is still said after it, such facts being moved half as far again.",
        ge=0,
    )
    sites: list[Site] = option(
        [],
        "Edit at several places, one after the other, each on the model as the one before left it: a list of `layers` "
        "with `fact_token` and `strength`; the run's own `layers` are then all of theirs.",
    )
    context_keys: Literal["mean", "each"] = option(
        "mean", "One key a request, its mean over the contexts, or one a context."
    )
    retain_KKT_lam: Number = option(1.0, "Weight of the retain set's keys, where one is given.", ge=0)

    @property
    @abstractmethod
    def form(self) -> str:
        """Which of the solvers of a layer it is."""

    @property
    @abstractmethod
    def needs_sensitive(self) -> bool:
        """Whether V_u takes part."""

    @property
    @abstractmethod
    def earlier_weight(self) -> float:
        """The weight of the keys of earlier edits among those to keep."""

    def validate(self) -> None:
        """As for all methods; layers, targets and retain set."""
        super().validate()
        for site in self.sites or ([Site(layers=self.layers)] if self.layers else []):
            _check_layers(site["layers"])
        whole = sorted({layer for site in self.sites for layer in site["layers"]})
        if self.sites and self.layers != whole:
            raise ConfigError(f"layers={self.layers}: with sites they are all of theirs: set layers={whole}")
        if not self.retain_set.strip():
            raise ConfigError(f"retain_set={self.retain_set!r}: expected 'none', 'auto' or a file of facts")
        if not self.neutral_target.strip():
            raise ConfigError(f"neutral_target={self.neutral_target!r}: expected 'eos', 'pad', 'unknown' or a text")
        if self.use_h and not self.needs_sensitive:
            raise ConfigError("use_h=True: this form of the update has no V_u to be found anywhere; set it to false")
        if self.add_retain and not self.mom2_adjustment:
            raise ConfigError("add_retain=True: with mom2_adjustment=False there is no C; set one of them otherwise")

    def by_site(self) -> list[Self]:
        """The run at each of its sites, in their order; one without `sites` is its own."""
        return [self.replace(**site, sites=[]) for site in self.sites] or [self]

    def located(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Self:
        """With its layers, found on the model where the configuration leaves them open."""
        from zerounlearn.method.zerounlearn.located import located

        return located(self, model, tokenizer)

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check templates, layers, corpus and retain set on a model without weights; without layers, in all of them.

        Raises:
            ZeroUnlearnError: something does not fit.
        """
        from zerounlearn.method.zerounlearn.method import find_layout

        if not self.layers:
            depth = int(skeleton.config.get_text_config().num_hidden_layers)
            self.replace(layers=list(range(depth)), v_loss_layer=None).check(skeleton)
            return
        check_retain_set(self.retain_set)
        if self.mom2_adjustment:
            check_corpus(self.mom2_dataset)
            check_statistics(self)
        Lineage.of(skeleton).check_fits(skeleton)
        layout = find_layout(skeleton, self)
        if self.v_loss_layer is not None and self.v_loss_layer < self.layers[-1]:
            raise ConfigError(
                f"v_loss_layer={self.v_loss_layer}: the loss is read at or above the last edited layer, "
                f"{self.layers[-1]}"
            )
        if self.v_loss_layer is not None and self.v_loss_layer >= len(layout.blocks):
            raise ConfigError(f"v_loss_layer={self.v_loss_layer}: this model has layers 0 to {len(layout.blocks) - 1}")

    def check_retain(self, shown: bool) -> None:
        """Without a study's retain set `retain_set` says what is kept, which must be something for `add_retain`."""
        self.check_given(shown or self.names_retain_set)

    @property
    def names_retain_set(self) -> bool:
        """Whether `retain_set` names one."""
        return self.retain_set != NONE

    def check_given(self, given: bool) -> None:
        """Refuse `add_retain` without a retain set.

        Raises:
            ConfigError: there is none.
        """
        if self.add_retain and not given:
            raise ConfigError(
                "add_retain=True: there is no retain set: set retain_set, hand one over (`retain=`, --retain), or, in "
                "a study, write retain: true"
            )

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the second moments, if they are not on disk yet; with `add_retain` they differ from draw to draw."""
        from zerounlearn.method.zerounlearn.method import layout_of
        from zerounlearn.statistics.collect import second_moments

        if self.mom2_adjustment and not self.add_retain:
            run = self.located(model, tokenizer)
            second_moments(layout_of(model, run), tokenizer, run, open_corpus(run.mom2_dataset))

    def retained(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        held_out: Collection[str] = (),
    ) -> list[Request]:
        """What `retain_set` stands for."""
        return retain_set(model, tokenizer, requests, self.retain_set, held_out=held_out, seed=self.seed)

    def fingerprints(self, model: PreTrainedModel) -> dict[str, str]:
        """Of all weights that the keys of each edited layer depend on."""
        from zerounlearn.method.zerounlearn.method import find_layout

        found = fingerprints(find_layout(model, self), self.layers)
        return {f"weights below layer {layer}": digest for layer, digest in found.items()}

    def identity(self) -> dict[str, Any]:
        """The corpus by its name, which changes with its content, and the retain set's file."""
        from pathlib import Path

        found: dict[str, Any] = {}
        if self.mom2_adjustment:
            found["corpus"] = open_corpus(self.mom2_dataset).name
        if Path(self.retain_set).is_file():
            found["retained"] = Path(self.retain_set).read_text(encoding="utf-8")
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
        """See `Method.apply`; the corpus and the retain set are those that the configuration names."""
        from zerounlearn.method.zerounlearn.method import unlearn

        corpus = open_corpus(self.mom2_dataset) if self.mom2_adjustment else None
        if retain is None:
            retain = retain_set(model, tokenizer, list(requests), self.retain_set, held_out=held_out, seed=self.seed)
        run = self.located(model, tokenizer)
        with restored_if_it_fails(model, run.weight_names(model)):
            return unlearn(model, tokenizer, requests, run, corpus, retain=retain)


def _check_layers(layers: Sequence[int]) -> None:
    if not layers:
        raise ConfigError("layers=[]: name at least one layer to edit")
    if any(b != a + 1 for a, b in pairwise(layers)):
        raise ConfigError(f"layers={layers}: expected consecutive layers in ascending order")
    if layers[0] < 0:
        raise ConfigError(f"layers={layers}: layers are counted from 0")


_SPARING: Mapping[str, Any] = {
    "orthogonality": "none",
    "context_keys": "each",
    "z_objective": "suppress",
    "kl_of": "before",
    "retain_set": "auto",
    "retain_KKT_lam": 750.0,
    "forget_KKT_lam": 500.0,
    "regularization_lam": 60.0,
    "v_lr": None,
}
"""What the presets that spare what is near have in common."""


@methods.register("ZeroUnlearn", source="arXiv 2605.18879")
@settings
class ZeroUnlearn(SolveConfig, LocatedEdit):
    """ZeroUnlearn: a closed-form update of a few layers that maps facts to a neutral target.

    Names and defaults are those of the published code where it has them (XMUDeepLIT/ZeroUnlearn), else those of
    EasyEdit's MEMIT. `preset` names values for fields that are not set explicitly.
    """

    alg_name: str = option("ZeroUnlearn", "The name under which the method is registered, here and with EasyEdit.")
    preset: Preset = option(
        "paper",
        "'paper', the published method, or 'specific', ours, which spares what is like the facts, in late layers; "
        "'specific-1' is its first form, in middle layers.",
    )

    # Both of ours were found on the development facts: docs/method.md.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "specific": {
            **_SPARING,
            "fact_token": "last",
            "neutral_target": "unknown",
            # One key a fact, as firmly as one behind each of the six contexts, and a sixth of the edit's size.
            "context_keys": "mean",
            "forget_KKT_lam": 3000.0,
            "strength": 0.85,
            "retries": 3,
            # Polyak's steps, along the gradient alone, leave more paraphrases behind here.
            "reproduce": "exact",
            "v_num_grad_steps": 8,
        },
        "specific-1": {**_SPARING, "strength": 0.85, "reproduce": "exact"},
    }
    ALIASES: ClassVar[Mapping[str, str]] = {
        "retain": "retain_set",
        "wiki_VKT_lam": "wiki_KKT_lam",
        "mom2_update_weight": "wiki_KKT_lam",
        "retain_VKT_lam": "retain_KKT_lam",
        "forget_VKT_lam": "forget_KKT_lam",
    }
    WITHOUT_EFFECT: ClassVar[Mapping[str, Any]] = {"layer_selection": "all", "nullspace_threshold": 2e-2, "L2": 10}

    def validate(self) -> None:
        """As for all that edit layers, and what the update's form allows."""
        super().validate()
        if self.orthogonality != "output" and self.projection_eps:
            raise ConfigError(
                f"projection_eps={self.projection_eps!r}: only orthogonality='output' projects; set it to 0"
            )
        if self.form == "multiplicative" and self.retain_exactly:
            raise ConfigError(
                f"retain_exactly=True: an update of outputs (orthogonality={self.orthogonality!r}) cannot keep keys "
                "exactly; take 'forget-keys' or 'none'"
            )


@methods.register("ZeroUnlearn-GD", source="arXiv 2605.18879")
@settings
class ZeroUnlearnGD(DescentConfig, LocatedEdit):
    """ZeroUnlearn-GD: the variant for many facts, an additive update in the null space of ordinary keys."""

    alg_name: str = option("ZeroUnlearn-GD", "The name under which the method is registered, here and with EasyEdit.")

    ALIASES: ClassVar[Mapping[str, str]] = {"retain": "retain_set", "retain_VKT_lam": "retain_KKT_lam"}
    WITHOUT_EFFECT: ClassVar[Mapping[str, Any]] = {
        "layer_selection": "all",
        "L2": 10,
        "wiki_KKT_lam": 15000,
        "wiki_VKT_lam": 15000,
        "mom2_update_weight": 15000,
        "forget_KKT_lam": (10, 50),
        "forget_VKT_lam": (10, 50),
        "regularization_lam": 1,
        "preset": "paper",
    }

    @classmethod
    def _renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """As for all; a published file, which `L2` tells, says 2e-2 of a threshold that its code does not read."""
        given = super()._renamed(values)
        if "L2" in values and given.get("nullspace_threshold") in (2e-2, "2e-2"):
            del given["nullspace_threshold"]
        return given

    def validate(self) -> None:
        """As for all that edit layers; C is what the null space is of."""
        super().validate()
        if not self.mom2_adjustment:
            raise ConfigError(
                "mom2_adjustment=False: ZeroUnlearn-GD keeps what C uses, and cannot do without it; leave it at true"
            )
