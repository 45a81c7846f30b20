"""Where a model looks a fact up: causal tracing and the logit lens, over layers and tokens, before anything is edited.

Causal tracing (ROME, arXiv 2202.05262, section 2.1): noise on the subject's embeddings makes the model lose the
answer; a state of the clean run, put back at one layer and token, brings it back as far as that state carries it.
States are a block's output, or what the MLPs or the attentions of a window of blocks write. The logit lens reads a
clean state through the model's final norm and head.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.data.request import Request
from zerounlearn.errors import ConfigError, RequestError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.separability import whole_layout
from zerounlearn.model.families import families
from zerounlearn.model.hooks import first_tensor, frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_tokens
from zerounlearn.model.replay import Suffix
from zerounlearn.model.tape import joined_rows, record
from zerounlearn.model.tokens import FactToken, check_ids, continuation, filler_id, length_sorted_batches, locate, pad

STATES = ("block", "mlp", "attention")
"""What is put back: a block's output, the MLPs' or the attentions' of a window."""

TRACED_TOKENS: tuple[FactToken, ...] = ("subject_first", "subject_last", "subject_first_after_last", "last")
"""Where: the tokens that `fact_token` can name, in their order."""

assert set(TRACED_TOKENS) == set(get_args(FactToken))


@dataclass(frozen=True)
class CausalTrace:
    """Mean probabilities of the answers' first tokens.

    Attributes:
        facts: how many were traced: those whose answer's first token is the model's own next word.
        clean: as the model is asked.
        corrupted: with noise on the subject.
        restored: by state of `STATES`, with one state of the clean run put back into the corrupted one; a row a layer,
            a column a token of `TRACED_TOKENS`.
        lens: what the clean state of a layer and token means by the logit lens; rows and columns likewise.
        window: how many layers' MLPs or attentions are put back at once, around a layer.
    """

    facts: int
    clean: float
    corrupted: float
    restored: Mapping[str, tuple[tuple[float, ...], ...]]
    lens: tuple[tuple[float, ...], ...]
    window: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"tokens": list(TRACED_TOKENS), **vars(self), "restored": dict(self.restored)}


@dataclass(frozen=True)
class _Asked:
    """A prompt's ids, its answer's first id, its subject's first and last position, and those of `TRACED_TOKENS`."""

    ids: list[int]
    answer: int
    places: tuple[int, ...]

    @property
    def subject(self) -> slice:
        return slice(self.places[0], self.places[1] + 1)


def causal_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    method: ZeroUnlearn | None = None,
    *,
    noise: float = 3.0,
    samples: int = 4,
    window: int | None = None,
    seed: int = 0,
) -> CausalTrace:
    """Trace facts through a model; the blocks below what is put back are not run again.

    Args:
        model: a decoder, left as it was.
        tokenizer: the model's.
        requests: facts; those that the model does not say are left out.
        method: its templates say where the layers are; by default the model's family does.
        noise: standard deviation of what is added to the subject's embeddings, in theirs (published: 3).
        samples: draws of it for each fact (published: 10).
        window: layers whose MLPs or attentions are put back at once; by default a fifth of the model's, as published
            (10 of GPT-2 XL's 48).
        seed: of the noise.

    Raises:
        ConfigError: a number is out of its range.
        RequestError: the model says none of the facts.
        LayoutError: the model's layers are not found.
    """
    if not noise > 0 or samples < 1 or (window is not None and window < 1):
        raise ConfigError(f"noise={noise}, samples={samples}, window={window}: expected numbers above 0")
    layout = whole_layout(model, method or ZeroUnlearn(model_name="any", layers=[0]))
    depth = len(layout.blocks)
    window = min(window or max(1, depth // 5), depth)
    asked = [_asked(tokenizer, request) for request in requests]
    check_ids(model, [one.ids for one in asked])
    with frozen(model), torch.no_grad():
        known = _known(layout, tokenizer, asked)
        if not known:
            raise RequestError(f"the model says none of these {len(asked)} facts: there is nothing to trace")
        scale = noise * _spread(layout, known)
        generator = torch.Generator().manual_seed(seed)
        sums: list[Tensor] = []
        rows_each = samples * len(TRACED_TOKENS)
        most = max(good_tokens(layout.device) // rows_each, 1)
        for batch in length_sorted_batches([len(one.ids) for one in known], most):
            members = [known[i] for i in batch]
            sums.append(_Run(layout, tokenizer, members, scale, samples, window, generator).probabilities())
    means = sum(sums[1:], sums[0]) / len(known)
    clean, corrupted, *grids = means.split([1, 1] + [depth * len(TRACED_TOKENS)] * (len(STATES) + 1))
    rows = [tuple(tuple(row) for row in grid.view(depth, len(TRACED_TOKENS)).tolist()) for grid in grids]
    return CausalTrace(
        len(known), float(clean), float(corrupted), dict(zip(STATES, rows, strict=False)), rows[-1], window
    )


def _asked(tokenizer: PreTrainedTokenizerBase, request: Request) -> _Asked:
    found = [locate(tokenizer, request.prompt, *request.subject_span, token) for token in TRACED_TOKENS]
    first = continuation(tokenizer, request.prompt, request.answer, request.joint)[0]
    return _Asked(found[0][0], first, tuple(position for _, position in found))


def _known(layout: Layout, tokenizer: PreTrainedTokenizerBase, asked: Sequence[_Asked]) -> list[_Asked]:
    """Those whose answer's first token is what the model says next."""
    said: dict[int, bool] = {}
    for batch in length_sorted_batches([len(one.ids) for one in asked], good_tokens(layout.device)):
        members = [asked[i] for i in batch]
        ids, mask = pad([one.ids for one in members], filler_id(tokenizer, layout.model), layout.device)
        ends = mask.sum(1) - 1
        logits = layout.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        best = logits[torch.arange(len(batch), device=logits.device), ends.to(logits.device)].argmax(-1).tolist()
        said |= {i: best[n] == asked[i].answer for n, i in enumerate(batch)}
    return [one for i, one in enumerate(asked) if said[i]]


def _spread(layout: Layout, asked: Sequence[_Asked]) -> float:
    """Standard deviation of the entries of the subjects' embeddings."""
    ids = [token for one in asked for token in one.ids[one.subject]]
    embedded = layout.model.get_input_embeddings()(torch.tensor([ids], device=layout.device))
    return float(embedded.float().std())


class _Run:
    """A batch of facts, longest first: a clean run, `samples` corrupted ones, and what clean states make of those.

    A corrupted row is one of facts × samples, a restored one of those × `TRACED_TOKENS`. Restored rows are replayed in
    the blocks and from the token on where the state is put back: nothing else changes.
    """

    def __init__(
        self,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[_Asked],
        scale: float,
        samples: int,
        window: int,
        generator: torch.Generator,
    ) -> None:
        self.layout, self.depth, self.window, self.samples = layout, len(layout.blocks), window, samples
        self.attentions, self._attended = _attentions(layout), defaultdict[int, list[Tensor]](list)
        ids, mask = pad([one.ids for one in asked], filler_id(tokenizer, layout.model), layout.device)
        layers = range(self.depth)
        with ExitStack() as stack:
            for layer, module in self.attentions.items():
                stack.enter_context(module.register_forward_hook(self._keep(layer)))
            self.clean = record(layout, ids, mask, replayed=(), outputs=layers, written=layers)
        self.attended = {layer: joined_rows(parts) for layer, parts in self._attended.items()}
        self.answers = torch.tensor([one.answer for one in asked], device=layout.device)
        self.places = torch.tensor([one.places for one in asked], device=layout.device)
        self.ends = mask.sum(1) - 1
        self.rows = torch.arange(len(asked), device=layout.device).repeat_interleave(samples)
        self.many = self.rows.repeat_interleave(len(TRACED_TOKENS))
        self.at = self.places[self.rows].flatten()
        with _noise(layout, [one.subject for one in asked], samples, scale, generator):
            self.corrupted = record(
                layout, ids[self.rows], mask[self.rows], replayed=layers, inputs=[0], outputs=layers, attention=True
            )
        sequence = torch.arange(len(self.rows), device=layout.device).repeat_interleave(len(TRACED_TOKENS))
        self.sizes = self.ends[self.many] + 1 - self.at
        self.suffix = Suffix(self.corrupted, sequence, self.at, self.sizes.tolist())
        self.last = self.suffix.first + self.sizes - 1

    def probabilities(self) -> Tensor:
        """Sums over the facts, on the CPU: clean, corrupted, each state's grid, the lens's; grids layer by layer."""
        facts = torch.arange(len(self.places), device=self.places.device)
        clean, corrupted = self.clean.outputs, self.corrupted.outputs[self.depth - 1]
        found = [self._answered(_at(clean[self.depth - 1], facts, self.ends), facts).sum()]
        each = torch.arange(len(self.rows), device=self.rows.device)
        found.append(self._answered(_at(corrupted, each, self.ends[self.rows]), self.rows).sum() / self.samples)
        for state in STATES:
            for layer in range(self.depth):
                found += self._restored(state, layer).unbind()
        for layer in range(self.depth):
            found += [self._answered(_at(clean[layer], facts, place), facts).sum() for place in self.places.mT]
        return torch.stack([value.double().cpu() for value in found])

    def _restored(self, state: str, layer: int) -> Tensor:
        """(tokens,): the answers' probability with the state put back, summed over facts, a mean over samples."""
        if state == "attention" and not self.attentions:
            return torch.full((len(TRACED_TOKENS),), float("nan"))
        everything = slice(0, len(self.many))
        if state == "block":
            hidden = self.suffix.enter(self.corrupted.outputs[layer], everything).clone()
            hidden[self.suffix.first] = _at(self.clean.outputs[layer], self.many, self.at)
            hidden = self._onwards(layer + 1, hidden)
        else:
            start = min(max(0, layer - self.window // 2), self.depth - self.window)
            entered = self.corrupted.outputs[start - 1] if start else self.corrupted.inputs[0]
            with self._put_back(state, range(start, start + self.window)):
                hidden = self._onwards(start, self.suffix.enter(entered, everything))
        said = self._answered(hidden[self.last.to(hidden.device)], self.many)
        return said.view(-1, len(TRACED_TOKENS)).sum(0) / self.samples

    def _onwards(self, layer: int, hidden: Tensor) -> Tensor:
        for later in range(layer, self.depth):
            hidden = self.suffix.run(later, hidden, len(self.many))
        return hidden

    @contextmanager
    def _put_back(self, state: str, layers: range) -> Iterator[None]:
        modules = self.layout.projections if state == "mlp" else self.attentions
        clean = self.clean.written if state == "mlp" else self.attended

        def put(layer: int) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> Any:
                given = first_tensor(output)
                changed = given.flatten(0, -2).clone()
                changed[self.suffix.first.to(changed.device)] = _at(clean[layer], self.many, self.at).to(changed)
                changed = changed.view_as(given)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return hook

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(modules[layer].register_forward_hook(put(layer)))
            yield

    def _keep(self, layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._attended[layer].append(first_tensor(output).detach())

        return hook

    def _answered(self, hidden: Tensor, facts: Tensor) -> Tensor:
        """(rows,): the probability of these facts' answers by what the states (rows, d) mean."""
        logits = self.layout.logits(hidden)
        return logits.softmax(-1).gather(-1, self.answers[facts].to(logits.device)[:, None])[:, 0]


@contextmanager
def _noise(
    layout: Layout, subjects: Sequence[slice], samples: int, scale: float, generator: torch.Generator
) -> Iterator[None]:
    """Add noise to the embeddings of the subjects, `samples` rows a fact; the rows may come in parts, in order."""
    rows = iter([subject for subject in subjects for _ in range(samples)])

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        noisy = output.clone()
        for row, subject in zip(noisy, itertools.islice(rows, len(noisy)), strict=True):
            drawn = torch.randn(row[subject].shape, generator=generator)
            row[subject] += (scale * drawn).to(row)
        return noisy

    with layout.model.get_input_embeddings().register_forward_hook(hook):
        yield


def _at(states: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """States (n, t, d) of these rows at these positions: (rows, d)."""
    return states[rows.to(states.device), positions.to(states.device)]


def _attentions(layout: Layout) -> dict[int, nn.Module]:
    """By layer the module whose output the attention adds; none where the family does not name it."""
    row = families.get(str(getattr(layout.model.config, "model_type", "")))
    template = row.attn_module_tmp if row is not None else None
    names = dict(layout.model.named_modules())
    found = {i: names.get(template.format(i)) for i in range(len(layout.blocks))} if template else {}
    return {i: module for i, module in found.items() if module is not None} if all(found.values()) else {}
