"""What the gradient methods share: their hyperparameters, their terms on a model, and how one is applied.

A method is one file beside this one: a configuration class with its loss on the forget set, `forget_term`. It is found
by its decorator.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from zerounlearn.config import Flag, Number, Whole, option, settings
from zerounlearn.data.chat import marked_as_chat
from zerounlearn.data.fact import load_facts
from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError
from zerounlearn.method.base import Method
from zerounlearn.method.edit import Edit
from zerounlearn.method.gradient import objectives
from zerounlearn.method.gradient.sequences import Reader, Sample, chunks
from zerounlearn.method.restore import restored_if_it_fails
from zerounlearn.model.layout import Layout
from zerounlearn.model.tokens import continuation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RetainLoss = Literal["nll", "nll_tokens", "kl", "kl_rows"]


@dataclass(frozen=True)
class Term:
    """A loss over `count` items: `of` takes the numbers of those in a batch, and runs the model on them."""

    count: int
    of: Callable[[list[int]], Tensor]

    def batches(self, size: int, *, generator: torch.Generator) -> Iterator[list[int]]:
        """Shuffled batches without end; every item comes once before any comes again."""
        while True:
            order: list[int] = torch.randperm(self.count, generator=generator).tolist()
            for i in range(0, self.count, size):
                yield order[i : i + size]

    def in_order(self, size: int, *, restart: int) -> Iterator[list[int]]:
        """Batches without end in the items' own order, from the first again after every `restart` batches."""
        parts = [list(range(self.count))[i : i + size] for i in range(0, self.count, size)]
        while True:
            for i in range(restart):
                yield parts[i % len(parts)]


@dataclass(frozen=True)
class ForgetSet:
    """What a method's loss is taken on: the model's reader, its layout, and the requests with their answers.

    Attributes:
        reader: runs samples through the model.
        layout: where the model's blocks are.
        tokenizer: the model's.
        requests: what to forget.
        answers: each request's prompt with its sensitive answer, n.
        minibatch: requests to run at a time.
        end: whether answers end in the end-of-text token.
    """

    reader: Reader
    layout: Layout
    tokenizer: PreTrainedTokenizerBase
    requests: Sequence[Request]
    answers: list[Sample]
    minibatch: int
    end: bool = False

    def sample(self, prompt: str, answer: Sequence[int]) -> Sample:
        """A prompt with other tokens than the sensitive answer's."""
        return Sample.of(self.tokenizer, prompt, answer, end=self.end)

    def log_p(self, batch: list[int]) -> Tensor:
        """Log π(answer | prompt) (k,) of the requests with these numbers, with gradients."""
        return self.reader.log_p([self.answers[i] for i in batch])

    def sizes(self, batch: list[int]) -> Tensor:
        """Tokens of their answers (k,)."""
        return sizes_of(self.answers)[batch]

    def reference(self, samples: Sequence[Sample] | None = None) -> Tensor:
        """Log π (n,) of the answers, or of other samples, by the model as it is now, without gradients."""
        given = self.answers if samples is None else samples
        with torch.no_grad():
            return torch.cat([self.reader.log_p(part) for part in chunks(given, self.minibatch)])


@settings
class GradientMethod(Method):
    """What every gradient method depends on. `layers: all` is kept as an empty list."""

    layers: list[Whole] = option(
        [], "Layers whose `rewrite_module_tmp` weight is trained; empty or 'all': every parameter."
    )
    steps: Whole = option(20, "Steps of AdamW; not read where `epochs` is set.", ge=1)
    epochs: Whole | None = option(None, "Passes over the forget set, in the place of `steps`.", ge=1)
    shuffle: Flag = option(
        True, "Draw the order by the seed; false: each pass takes both sets from their first item, in their own order."
    )
    lr: Number = option(1e-4, "AdamW's learning rate.", gt=0)
    weight_decay: Number = option(0.0, "AdamW's decay; larger pulls the trained weights towards 0.", ge=0)
    max_grad_norm: Number = option(1.0, "The gradient's norm is cut to this; 0 leaves it as it is.", ge=0)
    end_token: Flag = option(False, "Count the end-of-text token as the last of every answer.")
    minibatch_size: Whole = option(8, "Requests per step, and as many retain items; bounds memory.", ge=1)

    @classmethod
    def _renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        given = super()._renamed(values)
        if given.get("layers") == "all":
            given["layers"] = []
        return given

    def validate(self) -> None:
        """As for all methods, and the layers' order."""
        super().validate()
        if self.layers != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers={self.layers}: expected layers counted from 0, in ascending order, or 'all'")

    def check(self, skeleton: PreTrainedModel) -> None:
        """Check templates, layers and the retain file on a model without weights.

        Raises:
            ZeroUnlearnError: something does not fit.
        """
        from zerounlearn.method.zerounlearn.method import find_layout

        find_layout(skeleton, self)
        self.kept_facts()

    @abstractmethod
    def forget_term(self, forget: ForgetSet) -> Term:
        """What the method minimises on the forget set; a reference is read here, once, from the model as it is.

        Raises:
            ZeroUnlearnError: the method does not fit the model or the requests.
        """

    def kept_facts(self) -> list[Request]:
        """The facts to keep that the configuration names; this method has none."""
        return []

    def retained(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        held_out: Collection[str] = (),
    ) -> list[Request]:
        """The facts in `retain_path`, where the method has a retain term."""
        return marked_as_chat(tokenizer, self.kept_facts())

    def step_count(self, requests: int) -> int:
        """Steps for this many requests."""
        return self.steps if self.epochs is None else self.epochs * -(-requests // self.minibatch_size)

    @contextmanager
    def training(
        self, model: PreTrainedModel, written: Mapping[str, nn.Parameter], edit: Edit
    ) -> Iterator[dict[str, nn.Parameter]]:
        """The parameters that the descent moves, by name: here the weights themselves.

        A method that trains others has `written` hold what was learnt when it leaves without an error, and takes
        everything else off the model in any case.

        Args:
            model: the model, frozen.
            written: the parameters of `weight_names`, by name.
            edit: the run's record, for the thin factors of a change that has them.
        """
        yield dict(written)

    def weight_names(self, model: PreTrainedModel) -> list[str]:
        """The down projections of `layers`, or every parameter."""
        return super().weight_names(model) if self.layers else [name for name, _ in model.named_parameters()]

    def apply(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        *,
        retain: Sequence[Request] | None = None,
        held_out: Collection[str] = (),
    ) -> Edit:
        """See `Method.apply`; by default the facts in `retain_path` are kept, where the method has a retain term."""
        from zerounlearn.method.gradient.descend import unlearn_by_gradient

        kept = self.kept_facts() if retain is None else retain
        with restored_if_it_fails(model, self.weight_names(model)):
            return unlearn_by_gradient(model, tokenizer, requests, self, retain=kept)


@settings
class RetainingMethod(GradientMethod):
    """Those of a method with a second term, on what is to be kept."""

    retain_weight: Number = option(
        1.0, "Weight of the retain term; larger keeps more, 0 goes without a retain set.", ge=0
    )
    retain_path: str | None = option(None, "A file like a forget set, of facts to keep; see `load_facts`.")
    text_max_length: Whole = option(128, "Retain texts are cut to this many tokens.", ge=2)

    def retain_term(self, reader: Reader, layout: Layout, samples: Sequence[Sample]) -> Term:
        """What the method minimises on what is to be kept: by default the NLL of its tokens, a mean per token."""
        sizes = sizes_of(samples)

        def unlikely(batch: list[int]) -> Tensor:
            log_p = reader.log_p([samples[i] for i in batch])
            return objectives.likelihood(log_p, sizes[batch].to(log_p.device))

        return Term(len(samples), unlikely)

    def check_retain(self, shown: bool) -> None:
        """Refuse a retain term without a set to work on, and a set without a term.

        Raises:
            ConfigError: naming what to set.
        """
        if self.retain_path is not None:
            raise ConfigError(
                f"retain_path={self.retain_path!r}: a study draws the retain set itself: write retain: true instead"
            )
        if bool(self.retain_weight) != shown:
            remedy = "set retain: true, or set: {retain_weight: 0}" if self.retain_weight else "drop retain: true"
            raise ConfigError(
                f"retain_weight={self.retain_weight:g} with retain={str(shown).lower()} means nothing: {remedy}"
            )

    @property
    def names_retain_set(self) -> bool:
        """Whether `retain_path` names one."""
        return self.retain_path is not None

    def check_given(self, given: bool) -> None:
        """Refuse a retain term without a set to work on.

        Raises:
            ConfigError: naming what to set.
        """
        if self.retain_weight and not given:
            raise ConfigError(
                f"retain_weight={self.retain_weight:g}: {self.alg_name} needs a retain set: name one with "
                "retain_path (or `retain=`, --retain), or set retain_weight to 0"
            )

    def kept_facts(self) -> list[Request]:
        """The facts in `retain_path`.

        Raises:
            ZeroUnlearnError: the file is missing, or a record is wrong.
        """
        return [fact.request for fact in load_facts(self.retain_path)] if self.retain_path else []


@settings
class RetainingAnswers(RetainingMethod):
    """Those of a method that keeps what the model says, rather than its hidden states."""

    retain_loss: RetainLoss = option(
        "nll",
        "'nll' of the retain answers, a mean over answers of their means over tokens; 'nll_tokens', a mean over all "
        "tokens of a batch; 'kl' from the model as it was, over the answers' tokens; 'kl_rows', over all positions of "
        "rows of `row_length`.",
    )
    row_length: Whole = option(
        512, "With `retain_loss: kl_rows`: tokens that rows are padded to; the padding counts, and dilutes.", ge=2
    )

    def retain_term(self, reader: Reader, layout: Layout, samples: Sequence[Sample]) -> Term:
        """The NLL of what is to be kept, or the divergence from the model as it was; see `retain_loss`."""
        if self.retain_loss == "nll":
            return super().retain_term(reader, layout, samples)
        if self.retain_loss == "nll_tokens":
            return Term(len(samples), lambda batch: _unlikely_tokens(reader, [samples[i] for i in batch]))
        width = self.row_length if self.retain_loss == "kl_rows" else None
        # States are kept, not logits: a thousand tokens' over a vocabulary of 50,000 take 200 MB.
        states = [state for part in chunks(samples, self.minibatch_size) for state in reader.states(part, width)]
        trained = any(parameter.requires_grad for parameter in reader.head.parameters())
        head = deepcopy(reader.head).requires_grad_(False) if trained else reader.head

        def diverged(batch: list[int]) -> Tensor:
            before = torch.cat([states[i] for i in batch])
            return objectives.divergence(*reader.logits_beside([samples[i] for i in batch], before, head, width))

        return Term(len(samples), diverged)


def _unlikely_tokens(reader: Reader, samples: Sequence[Sample]) -> Tensor:
    log_p = reader.log_p(samples)
    return objectives.token_likelihood(log_p, sizes_of(samples).to(log_p.device))


def answer_samples(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], *, end: bool = False
) -> list[Sample]:
    """Each request's prompt with its answer; with `end`, the end-of-text token is the answer's last."""
    return [Sample.of(tokenizer, r.prompt, continuation(tokenizer, *r.query), end=end) for r in requests]


def sizes_of(samples: Sequence[Sample]) -> Tensor:
    """Tokens of each sample's answer (n,), float32."""
    return torch.tensor([float(sample.size) for sample in samples])
