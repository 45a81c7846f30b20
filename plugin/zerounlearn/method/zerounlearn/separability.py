"""Where a fact can be told from its neighbours: a map over layers and token positions, before anything is edited.

For a forget set it says, for each layer and place where the fact could be looked up, how much of an update for the
forget keys would be written for paraphrases (which ought to follow) and for other facts about the subject, other
subjects of the relation, facts with the same answer, and unrelated facts (which ought to stay). See docs/method.md,
"Where to edit".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.core.shares import auc, shares
from zerounlearn.data.fact import Fact
from zerounlearn.data.request import Request
from zerounlearn.data.text import mentions
from zerounlearn.errors import RequestError
from zerounlearn.method.zerounlearn.config import ZeroUnlearn
from zerounlearn.method.zerounlearn.method import find_layout
from zerounlearn.model.hooks import forward_until, frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.memory import good_tokens
from zerounlearn.model.tokens import FactToken, check_ids, encode, filler_id, length_sorted_batches, locate, pad

GROUPS = ("paraphrases", "subject", "relation", "answer", "unrelated")
"""Prompts that are looked at: the same facts in other words, other facts about the same subjects, the same relations
of other subjects, facts about others with the same answers, and facts that have nothing to do with them."""

PLACES: tuple[FactToken, ...] = ("subject_last", "last")

# The group of the retain set, which is not looked at.
_KEPT = "kept"

# Margins that differ by less count as the same.
_ALIKE = 0.025

# Tokens of ordinary text whose keys stand for the corpus, and how many of one text are taken.
TEXT_TOKENS, _TEXT_LENGTH = 2048, 64


@dataclass(frozen=True)
class Separation:
    """One layer and place of the map.

    Attributes:
        layer: counted from 0.
        fact_token: where the fact is looked up.
        share: mean share of the update, by group; NaN where a group has no prompt with that place.
        auc: how surely paraphrases get more of it than a prompt of each other group; 0.5 is chance.
    """

    layer: int
    fact_token: FactToken
    share: Mapping[str, float]
    auc: Mapping[str, float]


@dataclass(frozen=True)
class Suggestion:
    """Where to edit by a map: layers and place, and how far what must follow is from what must stay there.

    `margin` is the mean share of the update that paraphrases get, less the largest mean share of another group.
    """

    layers: list[int]
    fact_token: FactToken
    margin: float

    def __str__(self) -> str:
        at = "prompt's last token" if self.fact_token == "last" else "subject's last token"
        return f"layers {self.layers[0]} to {self.layers[-1]}, the {at} (margin {self.margin:.2f})"


@dataclass(frozen=True)
class SeparabilityMap:
    """A forget set's map: one `Separation` for each layer and place, layers ascending."""

    separations: tuple[Separation, ...]
    prompts: Mapping[str, int]

    def window(self, layers: Sequence[int], fact_token: FactToken) -> Separation:
        """The mean over some layers at one place, under the first layer's number.

        Raises:
            RequestError: the map has no such layers.
        """
        chosen = [s for s in self.separations if s.layer in set(layers) and s.fact_token == fact_token]
        if not chosen:
            raise RequestError(f"layers={list(layers)} at {fact_token!r} are not on this map")

        def mean(name: str, key: str) -> float:
            return sum(getattr(s, name)[key] for s in chosen) / len(chosen)

        share = {group: mean("share", group) for group in GROUPS}
        return Separation(chosen[0].layer, fact_token, share, {g: mean("auc", g) for g in GROUPS[1:]})

    def suggestion(self, layers: int = 5) -> Suggestion | None:
        """The window of so many layers, and the place, where paraphrases stand out most; None without paraphrases.

        Of windows that are as good but for 0.025 of a share, the first: the later, the nearer to a filter on what is
        said. See docs/method.md, "Where to edit", for how well the map predicts what an edit there does.
        """
        depth = 1 + max(s.layer for s in self.separations)
        found = []
        for place in dict.fromkeys(s.fact_token for s in self.separations):
            for start in range(depth - min(layers, depth) + 1):
                window = list(range(start, min(start + layers, depth)))
                share = self.window(window, place).share
                others = [share[group] for group in GROUPS[1:] if not math.isnan(share[group])]
                if others and not math.isnan(share["paraphrases"]):
                    found.append(Suggestion(window, place, share["paraphrases"] - max(others)))
        best = max(found, key=lambda one: one.margin, default=None)
        if best is None:
            return None
        alike = [one for one in found if one.fact_token == best.fact_token and one.margin >= best.margin - _ALIKE]
        return min(alike, key=lambda one: one.layers[0])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {"layer": s.layer, "fact_token": s.fact_token, "share": dict(s.share), "auc": dict(s.auc)}
            for s in self.separations
        ]
        return {"prompts": dict(self.prompts), "separations": rows}


@dataclass(frozen=True)
class _Prompt:
    """A prompt with its subject's place in it, whose fact it belongs to, and its group; `fact` is -1 for none."""

    text: str
    span: tuple[int, int] | None
    group: str
    fact: int


def separability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    method: Any,
    *,
    texts: Sequence[str],
    same_answer: Sequence[Request] = (),
    unrelated: Sequence[Request] = (),
    retain: Sequence[Request] = (),
    places: Sequence[FactToken] = PLACES,
    text_tokens: int = TEXT_TOKENS,
) -> SeparabilityMap:
    """The separability map of a forget set, from one pass over its prompts and one over some ordinary text.

    Args:
        model: a decoder, left as it was.
        tokenizer: the model's.
        facts: the forget set, with paraphrases, neighbours and others: what the map is about.
        method: its `wiki_KKT_lam`, `regularization_lam`, `forget_KKT_lam` and `retain_KKT_lam` weigh the update, and
            its templates say where the layers are; its own layers and place do not matter.
        texts: ordinary text, of which some `text_tokens` tokens are read.
        same_answer: facts about other subjects with answers that are forgotten.
        unrelated: facts that have nothing to do with the forget set.
        retain: facts that the update keeps; the shares are those beside them.
        places: of `PLACES`.
        text_tokens: fewer take less time, and find more to be apart than is.

    Raises:
        RequestError: there are no facts or no texts.
        LayoutError: the model's layers are not found.
    """
    if not facts or not texts:
        raise RequestError(f"facts={len(facts)}, texts={len(texts)}: a map needs at least one of each")
    layout = whole_layout(model, method)
    prompts = _prompts(facts, {"answer": same_answer, "unrelated": unrelated, _KEPT: retain})
    rows, reads, owners = [], [], []
    for number, prompt in enumerate(prompts):
        for place in places:
            if prompt.span is None and place != "last":
                continue
            ids, position = locate(tokenizer, prompt.text, *(prompt.span or (0, len(prompt.text))), place)
            rows.append(ids)
            reads.append([position])
            owners.append((number, place))
    sample = _sample(tokenizer, texts, text_tokens)
    inside = [list(range(1, len(ids))) for ids in sample]  # the first is the attention's sink, like no other
    with frozen(model), torch.no_grad():
        keys = _keys(layout, tokenizer, rows + sample, reads + inside)
    separations = []
    for layer in sorted(keys):
        of_prompts, of_text = keys[layer][: len(rows)], keys[layer][len(rows) :]
        for place in places:
            chosen = [i for i, (_, at) in enumerate(owners) if at == place]
            of_place = [prompts[owners[i][0]] for i in chosen]
            separations.append(_separation(layer, place, of_place, of_prompts[chosen], of_text, method))
    counts = {group: sum(p.group == group for p in prompts) for group in GROUPS}
    return SeparabilityMap(tuple(separations), counts)


def _sample(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """The beginnings of as many texts as have the tokens wanted."""
    found: list[list[int]] = []
    count = 0
    for text in texts:
        if count >= tokens:
            break
        ids = encode(tokenizer, text)[:_TEXT_LENGTH]
        if len(ids) > 1:
            found.append(ids)
            count += len(ids) - 1
    return found


def whole_layout(model: PreTrainedModel, method: ZeroUnlearn) -> Layout:
    """The layout with every layer of the model."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    return find_layout(model, method.replace(layers=list(range(depth))))


def _prompts(facts: Sequence[Fact], others: Mapping[str, Sequence[Request]]) -> list[_Prompt]:
    """The forget prompts, and each group's, with their subjects found."""
    prompts = []
    for i, fact in enumerate(facts):
        request = fact.request
        prompts.append(_Prompt(request.prompt, request.subject_span, "forget", i))
        prompts += [_Prompt(text, _last_mention(text, request.subject), "paraphrases", i) for text in fact.paraphrases]
        prompts += [_Prompt(text, _last_mention(text, request.subject), "subject", i) for text, *_ in fact.others]
        prompts += [_Prompt(text, _other_subject(text, request), "relation", -1) for text, *_ in fact.neighbours]
    for group, requests in others.items():
        prompts += [_Prompt(request.prompt, request.subject_span, group, -1) for request in requests]
    return list({(p.text, p.group): p for p in prompts}.values())


def _last_mention(text: str, subject: str) -> tuple[int, int] | None:
    spans = mentions(text, subject, whole=True)
    return spans[-1] if spans else None


def _other_subject(text: str, request: Request) -> tuple[int, int] | None:
    """Where a neighbour names its subject, told by the request's own wording around it."""
    before, after = request.before, request.after
    if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
        return len(before), len(text) - len(after)
    return None


def _keys(
    layout: Layout, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], reads: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """By layer the down projection's inputs (Σ reads, m) at the positions wanted of each row, on the CPU."""
    check_ids(layout.model, rows)
    parts: dict[int, dict[int, Tensor]] = {layer: {} for layer in layout.projections}
    filler, last = filler_id(tokenizer, layout.model), layout.blocks[max(layout.projections)]
    for batch in length_sorted_batches([len(row) for row in rows], good_tokens(layout.device)):
        ids, mask = pad([rows[i] for i in batch], filler, layout.device)

        def gather(layer: int, batch: list[int] = batch, shape: torch.Size = ids.shape) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                keys = args[0].view(*shape, -1)
                for at, row in enumerate(batch):
                    parts[layer][row] = keys[at, reads[row]].float().cpu()

            return hook

        with ExitStack() as stack:
            for layer, projection in layout.projections.items():
                stack.enter_context(projection.register_forward_pre_hook(gather(layer)))
            forward_until(layout.model, last, input_ids=ids, attention_mask=mask, use_cache=False)
    return {layer: torch.cat([found[i] for i in range(len(rows))]) for layer, found in parts.items()}


def _separation(
    layer: int,
    place: FactToken,
    prompts: Sequence[_Prompt],
    keys: Tensor,
    text: Tensor,
    method: ZeroUnlearn,
) -> Separation:
    forget, kept = ([i for i, prompt in enumerate(prompts) if prompt.group == of] for of in ("forget", _KEPT))
    column = {prompts[i].fact: n for n, i in enumerate(forget)}
    # The retain set's keys join the corpus's, of which each has the weight λw / p.
    weight = method.wiki_KKT_lam / len(text)
    held = torch.cat([text, keys[kept] * (method.retain_KKT_lam / weight) ** 0.5])
    written = shares(
        keys[forget],
        keys,
        held,
        corpus_weight=weight * len(held),
        ridge=method.regularization_lam,
        forget_weight=method.forget_KKT_lam,
        where=f"layer {layer}",
    )
    # A prompt about a forgotten subject gets of that fact's step; another may get of any.
    got = torch.stack(
        [row[column[p.fact]] if p.fact in column else row.max() for row, p in zip(written, prompts, strict=True)]
    )
    by_group = {group: got[[i for i, p in enumerate(prompts) if p.group == group]] for group in GROUPS}
    return Separation(
        layer,
        place,
        {group: float(values.mean()) if len(values) else float("nan") for group, values in by_group.items()},
        {group: auc(by_group["paraphrases"], by_group[group]) for group in GROUPS[1:]},
    )
