"""ZeroUnlearn and ZeroUnlearn-GD on a model: the steps of the paper's algorithm, one line each, in `unlearn`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zerounlearn.core.factors import added, thinned
from zerounlearn.core.finite import check_finite, is_finite
from zerounlearn.core.solve import (
    LowRankUpdate,
    distance,
    leakage,
    relative_change,
)
from zerounlearn.core.subspace import orthonormal_basis
from zerounlearn.data.corpora import Corpus, with_statements
from zerounlearn.data.request import Request, check_apart, check_requests, target_ids
from zerounlearn.errors import ConfigError, IllPosedError, LayoutError
from zerounlearn.method.edit import Edit, LayerOutcome
from zerounlearn.method.zerounlearn.config import LocatedEdit
from zerounlearn.method.zerounlearn.contexts import sample_prefixes
from zerounlearn.method.zerounlearn.keys import Walk
from zerounlearn.method.zerounlearn.solvers import RANK_TOLERANCE, SOLVERS, LayerProblem
from zerounlearn.method.zerounlearn.unknown import UNKNOWN, unknown_answers
from zerounlearn.method.zerounlearn.vectors import Problem, Solution, is_additive, optimise
from zerounlearn.model.answers import score
from zerounlearn.model.clock import Clock
from zerounlearn.model.families import NEEDED, templates_of
from zerounlearn.model.fingerprint import tensor_digest
from zerounlearn.model.hooks import frozen
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage, Trace, lineage_kept
from zerounlearn.model.tape import record
from zerounlearn.model.tokens import FactToken, check_ids, continuation, encode, filler_id, locate, pad
from zerounlearn.model.traces import Traces
from zerounlearn.model.weights import write_weights
from zerounlearn.statistics.collect import second_moments

log = logging.getLogger(__name__)

# A run that works comes nearer at every layer and changes a weight by less than its norm (0.2 to 0.3 of it on SmolLM2;
# on random weights the distance may grow some times over). Blocks that were not understood gave hundreds.
_MOST_GROWTH, _MOST_CHANGE = 10.0, 10.0
# How much further a fact goes that is still said, each time the edit is made again.
_FURTHER = 1.5


@dataclass(frozen=True)
class Vectors:
    """What was found before the first edit: z* (n, d), V_u (n, d) by layer where it was wanted, and the contexts.

    They depend on the model, the requests and the `v_*` of a run, but not on how the layers are solved for.
    """

    z: Tensor
    V: dict[int, Tensor]
    prefixes: list[str]


def find_layout(model: PreTrainedModel, hparams: Any) -> Layout:
    """The model's layout under the run's templates; the weights themselves are not looked at.

    Raises:
        LayoutError: see `Layout.of`.
    """
    return Layout.of(model, hparams.layers, **_templates(model, hparams))


def _templates(model: PreTrainedModel, hparams: Any) -> dict[str, str]:
    unused = {} if hparams.layers else {"rewrite_module_tmp": ""}  # what trains every weight may have experts
    return templates_of(model, hparams, [name for name in NEEDED if name not in unused]) | unused


def layout_of(model: PreTrainedModel, hparams: LocatedEdit) -> Layout:
    """The model's layout, with finite weights in the layers to be edited.

    Raises:
        LayoutError: see `Layout.of`; or a weight to be edited is offloaded to where it cannot be written.
        IllPosedError: a weight to be edited contains NaN or Inf.
    """
    layout = find_layout(model, hparams)
    layout.check_writable()
    for layer in hparams.layers:
        check_finite(layout.weight_names[layer], {"weight": layout.read(layer)}, "reload the checkpoint")
    return layout


def unlearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: Any,
    corpus: Corpus | None,
    *,
    retain: Sequence[Request] = (),
    vectors: Vectors | None = None,
) -> Edit:
    """Forget `requests`, in place. If anything fails, the weights are as they were, bit for bit.

    Args:
        model: a decoder; its edited weights are changed.
        tokenizer: the model's.
        requests: the forget set.
        hparams: the run's hyperparameters.
        corpus: ordinary text behind C; None only with `mom2_adjustment: false`.
        retain: facts to keep, of which only the prompts are read; their keys join C with weight `retain_KKT_lam`.
        vectors: of an earlier run on the same weights and requests, with the same `v_*`, layers and seed, for runs
            that differ in nothing but how the layers are solved for.

    Raises:
        RequestError, LayoutError, StatisticsError, IllPosedError: before any weight is changed, or with the
            weights restored.
    """
    requests = check_requests(requests)
    check_apart(requests, retain)
    corpus = _corpus(corpus, retain, hparams)
    _check_vectors(vectors, hparams)
    layout = layout_of(model, hparams)
    neutral = [
        ()
        if hparams.neutral_target == UNKNOWN and r.neutral is None
        else tuple(target_ids(tokenizer, r, hparams.neutral_target))
        for r in requests
    ]
    check_ids(model, [*neutral, *(encode(tokenizer, r.prompt) for r in requests)])
    with frozen(model):
        written = not is_additive(layout, tokenizer, requests[0].prompt, hparams.layers)
    if written and hparams.use_h:
        raise LayoutError(
            f"use_h=True: the blocks of {type(model).__name__} do more with what their down projections write than add "
            "it, so V_u at a block's output is none of theirs: set it to false"
        )
    traces = Traces(list(hparams.layers), _templates(model, hparams))
    edit = Edit(hparams.alg_name, hparams.to_dict(), traces=traces)
    with layout.restored(hparams.layers) as originals, frozen(model), lineage_kept(layout, hparams.layers):
        run = _Run(layout, tokenizer, requests, retain, neutral, edit, traces, written=written)
        run.take_statistics(corpus, hparams)
        run.forget(hparams, vectors, originals)
        edit.record(model, originals)
    return edit


def _check_vectors(vectors: Vectors | None, hparams: Any) -> None:
    """Refuse vectors of an earlier run that do not fit this one.

    Raises:
        ConfigError: V_u is of other layers, or there are several sites.
    """
    if vectors is None:
        return
    if hparams.sites:
        raise ConfigError("vectors of an earlier run are of one site, and this one has several: leave them out")
    if hparams.needs_sensitive and hparams.sensitive_from == "original" and set(vectors.V) != set(hparams.layers):
        raise ConfigError(f"vectors hold V_u of layers {sorted(vectors.V)}, and {hparams.layers} are to be edited")


class _Run:
    """An edit under way: what its sites share.

    Attributes:
        written: whether a layer's target is what its down projection writes, since its block does not just add that.
        moments: C by layer, of the model as it was before the first site.
        whole: weights whose change is kept whole, for factors would not be thinner.
        further: what each request's strength is multiplied by (n,).
    """

    def __init__(
        self,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[Request],
        retain: Sequence[Request],
        neutral: Sequence[tuple[int, ...]],
        edit: Edit,
        traces: Traces,
        *,
        written: bool,
    ) -> None:
        self.layout, self.tokenizer, self.edit, self.traces = layout, tokenizer, edit, traces
        self.requests, self.retain, self.neutral, self.written = requests, retain, neutral, written
        self.clock = Clock(edit.seconds, layout.model)
        self.moments: Mapping[int, Tensor] = {}
        self.whole = set[str]()
        self.further = torch.ones(len(requests), dtype=torch.float64)
        self._aims: list[Problem] = []
        self._inherited = dict(Lineage.of(layout.model).traces)

    def take_statistics(self, corpus: Corpus | None, hparams: Any) -> None:
        """C of every layer that any site edits."""
        with self.clock("statistics"):
            if corpus is None:
                return
            self.moments = second_moments(self.layout, self.tokenizer, hparams, corpus)
            self.edit.statistics = {"corpus": corpus.name}

    def forget(self, hparams: Any, vectors: Vectors | None, originals: Mapping[str, Tensor]) -> None:
        """Edit every site; what is still said then is moved further in an edit made anew, `retries` times at most."""
        further = torch.ones(len(self.requests), dtype=torch.float64)
        found = self.edit_sites(hparams, vectors, further)
        for _ in range(hparams.retries):
            if not (said := self.still_said()).any():
                return
            before, further = further, torch.where(said, _FURTHER * further, further)
            self.undo(originals)
            try:
                self.edit_sites(hparams, found, further)
            except IllPosedError as error:
                log.warning("what is still said stays so, for it cannot be moved further: %s", error)
                self.undo(originals)
                self.edit_sites(hparams, found, before)
                return

    def edit_sites(self, hparams: Any, vectors: Vectors | None, further: Tensor) -> Vectors:
        """Edit every site, each on the model as the one before left it; returns the first one's vectors.

        `further` (n,) multiplies how far each request goes.
        """
        self.further = further
        first, *later = hparams.by_site()
        found = vectors or self.find_vectors(first)
        self.edit_site(first, found)
        for site in later:
            self.edit_site(site, self.find_vectors(site))
        return found

    def still_said(self) -> Tensor:
        """Which requests' answers the model says by now (n,), bool."""
        with self.clock("check"):
            scores = score(self.layout.model, self.tokenizer, [r.query for r in self.requests])
        said = torch.tensor([one.said for one in scores])
        log.info("%d of %d facts are still said", int(said.sum()), len(said))
        return said

    def undo(self, originals: Mapping[str, Tensor]) -> None:
        """Weights, traces and the edit's notes of its layers as they were before the first site."""
        write_weights(self.layout.model, originals)
        Lineage.of(self.layout.model).traces = dict(self._inherited)
        for made in (self.edit.factors, self.edit.steps, self.edit.layers, self.traces.left, self.whole):
            made.clear()

    def find_vectors(self, hparams: Any) -> Vectors:
        """z* and V_u on the model as it is now."""
        with self.clock("contexts"):
            generator = torch.Generator().manual_seed(hparams.seed)
            prefixes = sample_prefixes(
                self.layout.model, self.tokenizer, hparams.n_contexts, hparams.context_length, generator=generator
            )
        self._aims = []  # an earlier site's were of the model as it was then
        with self.clock("vectors"):
            return self._vectors(prefixes, hparams)

    def _vectors(self, prefixes: list[str], hparams: Any) -> Vectors:
        """z* and, for `sensitive_from: original`, V_u of every layer."""
        hparams = self._at_rate(hparams, hparams.layers[0])
        problems = self._wanted(hparams.layers[0], hparams)
        if hparams.sensitive_from == "original" and hparams.needs_sensitive:
            problems += _sensitive_problems(self.tokenizer, self.requests, hparams.layers, hparams)
        found = optimise(self.layout, self.tokenizer, problems, prefixes, hparams, progress="z* and V_u")
        n, losses = len(self.requests), self.edit.losses
        losses["z"] = [float(found.initial[:n].mean()), float(found.final[:n].mean())]
        if len(problems) > n:
            losses["sensitive"] = [float(found.initial[n:].mean()), float(found.final[n:].mean())]
        parts = found.vectors[n:].split(n) if len(problems) > n else []
        return Vectors(found.vectors[:n], dict(zip(hparams.layers, parts, strict=False)), prefixes)

    def _at_rate(self, hparams: Any, layer: int) -> Any:
        """With a number for Adam's `v_lr`: in its steps z* can go as far as the clamp allows, or 0.3 times as far.

        At the prompt's last token, where little lies between the state and what is said, smaller steps do; both were
        chosen on SmolLM2. Where z* is found at what `layer` writes, that is measured and not the hidden state.
        """
        if hparams.v_lr is not None or hparams.reproduce != "exact":
            return hparams
        share = hparams.clamp_norm_factor / hparams.v_num_grad_steps * (0.3 if hparams.fact_token == "last" else 1.0)
        at = layer if self.written else hparams.layers[-1]
        size = state_size(self.layout, self.tokenizer, self.requests, hparams.fact_token, at, written=self.written)
        rate = float(f"{share * size:.3g}")
        if not (self.written or self.edit.hparams["sites"]):  # those have a rate a layer, or a site
            self.edit.hparams["v_lr"] = rate
        log.info("v_lr=%g: states of size %.3g at layer %d", rate, size, at)
        return hparams.replace(v_lr=rate)

    def _wanted(self, layer: int, hparams: Any) -> list[Problem]:
        """What z* solves: at the last edited layer's output, or at what `layer` writes."""
        if not self._aims:
            self._aims = _target_problems(self.layout, self.tokenizer, self.requests, self.neutral, hparams)
        return [replace(p, layer=layer, at="projection") for p in self._aims] if self.written else list(self._aims)

    def _target(self, walk: Walk, layer: int, vectors: Vectors, hparams: Any) -> Tensor:
        """Where `walk.state(layer)` is to go; for a later layer it is found on the weights as they are by now."""
        z = vectors.z
        if layer != hparams.layers[0]:
            with self.clock("vectors"):
                hparams = self._at_rate(hparams, layer)
                wanted, name = self._wanted(layer, hparams), f"z* of layer {layer}"
                found = optimise(self.layout, self.tokenizer, wanted, vectors.prefixes, hparams, progress=name)
            z = found.vectors
            self.edit.losses.setdefault("z", [float(found.initial.mean())])[1:] = [float(found.final.mean())]
        with self.clock("keys"):
            return walk.target(layer, z, hparams.strength * self.further)

    def edit_site(self, hparams: Any, vectors: Vectors) -> None:
        """Solve for a site's layers one after another, and write each before the next is looked at."""
        self.edit.vectors, self.edit.prefixes = vectors, vectors.prefixes
        V, outcomes = dict(vectors.V), []
        with self.clock("keys"):
            walk = Walk(self.layout, self.tokenizer, self.requests, vectors.prefixes, hparams, written=self.written)
            kept = Walk(self.layout, self.tokenizer, self.retain, [], hparams) if self.retain else None
        for i, layer in enumerate(tqdm(hparams.layers, desc="layers", disable=None)):
            with self.clock("vectors"):
                if layer not in V and hparams.needs_sensitive:
                    run = self._at_rate(hparams, layer)
                    found = _sensitive(self.layout, self.tokenizer, self.requests, [layer], vectors.prefixes, run)
                    V[layer] = found.vectors
            if self.written or not i:
                target = self._target(walk, layer, vectors, hparams)
            with self.clock("keys"):
                keys = walk.keys(layer)
                keep = kept.keys(layer) if kept else keys[:0]
                gap = target - walk.state(layer)
            with self.clock("solve"):
                remaining = len(hparams.layers) - i
                outcomes.append(self._edit_layer(layer, keys, keep, gap, remaining, V.get(layer), hparams))
            self.edit.layers.append(outcomes[-1])
            log.info("%s", outcomes[-1])
            _check_progress(outcomes[-1:] if self.written else outcomes, target - walk.state(layer))
            with self.clock("keys"):
                for each in filter(None, (walk, kept)):
                    each.advance(layer)

    def _edit_layer(
        self, layer: int, keys: Tensor, keep: Tensor, gap: Tensor, remaining: int, V: Tensor | None, hparams: Any
    ) -> LayerOutcome:
        """Solve for one layer and write its weight: `keys` get their part of the gap as residuals, `keep` stays."""
        layout, name = self.layout, self.layout.weight_names[layer]
        W, C = layout.read(layer), self.moments.get(layer)
        if C is not None:
            self.edit.statistics[f"C of layer {layer}"] = tensor_digest(C)
        solver = torch.device("cpu") if W.device.type == "mps" else W.device
        W, keys, keep, residuals = (x.to(solver) for x in (W, keys, keep, gap / remaining))
        sensitive = W.new_zeros(0, W.shape[0]) if V is None else self._written_by(layer, V, hparams).to(solver)
        Q = orthonormal_basis(sensitive, rtol=RANK_TOLERANCE)
        lineage = Lineage.of(layout.model)
        earlier, lost = lineage.earlier(name, W), lineage.lost(name, W)
        before = W.clone()
        # Rows carry the root of their weight: what earlier edits mapped is held as firmly as they mapped it.
        held = [trace.keys.to(keep) * hparams.earlier_weight**0.5 for trace in earlier]
        kept = torch.cat([keep * hparams.retain_KKT_lam**0.5, *held])
        problem = LayerProblem(W, C, keys, kept, residuals, Q, lost, f"layer {layer}")
        solved = SOLVERS[hparams.form](problem, hparams)
        edited = solved.update.apply(W)
        if not is_finite(edited.to(W.dtype)):
            raise IllPosedError(
                f"{problem.where}: the edited weight does not fit {W.dtype}; load the model in bfloat16 or float32"
            )
        layout.write(layer, self._rounded(layer, W, solved.update, edited))
        written = layout.read(layer).to(solver)
        lineage.add(name, earlier, trace := Trace.of(keys, written, solved.taken), written)
        self.traces.left.setdefault(name, []).append((trace.keys, trace.directions))
        return LayerOutcome(
            layer=layer,
            leakage=leakage(Q, before, written, keys) if Q.shape[1] else None,
            relative_change=relative_change(before, written),
            rounding=distance(written, edited) / max(distance(edited, before), torch.finfo(torch.float64).tiny),
            rank=Q.shape[1],
            kept=len(kept),
            form=solved.form,
            distance=float(gap.norm(dim=1).mean()),
        )

    def _rounded(self, layer: int, W: Tensor, update: LowRankUpdate, edited: Tensor) -> Tensor:
        """The weight to be written, as `Edit.apply` makes it: of thin factors, where the change has them."""
        edit, name = self.edit, self.layout.weight_names[layer]
        thin = thinned(update.left, update.right, W.dtype) if update.scale == 1 and name not in self.whole else None
        if thin is None:
            self.whole.add(name)
            for held in (edit.factors, edit.steps):  # of an earlier site
                held.pop(name, None)
            return edited
        edit.add_factors(name, *self.layout.factors(layer, *thin))
        return added(W, *thin)

    def _written_by(self, layer: int, V: Tensor, hparams: Any) -> Tensor:
        """Of outputs V_u (n, d) of a down projection what its weight writes; its bias no input changes."""
        bias = None if hparams.use_h else self.layout.bias(layer)
        return V if bias is None else V - bias.to(V)


def state_size(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    fact_token: FactToken,
    layer: int,
    *,
    written: bool,
) -> float:
    """Root mean square of an entry of a block's output, or of what its down projection writes; a mean over prompts.

    Raises:
        RequestError: a subject is not found in its prompt.
    """
    found = [locate(tokenizer, r.prompt, *r.subject_span, fact_token) for r in requests]
    found.sort(key=lambda one: -len(one[0]))
    ids, mask = pad([row for row, _ in found], filler_id(tokenizer, layout.model), layout.device)
    tape = record(layout, ids, mask, replayed=(), outputs=[layer], written=[layer])
    states = (tape.written if written else tape.outputs)[layer]
    at = states[torch.arange(len(found)), torch.tensor([position for _, position in found])]
    return float(at.float().square().mean(1).sqrt().mean())


def _corpus(corpus: Corpus | None, retain: Sequence[Request], hparams: Any) -> Corpus | None:
    """What C is taken over: with `add_retain`, the retain set's statements too.

    Raises:
        ConfigError: there is a corpus too many or too few, or no retain set.
    """
    if (corpus is not None) != hparams.mom2_adjustment:
        raise ConfigError(
            f"mom2_adjustment={hparams.mom2_adjustment} {'needs a' if corpus is None else 'goes without a'} corpus"
        )
    hparams.check_given(bool(retain))
    return with_statements(corpus, retain) if corpus is not None and hparams.add_retain else corpus


def _check_progress(layers: Sequence[LayerOutcome], gap: Tensor) -> None:
    """Stop an edit that moves away from its target, or changes a weight beyond recognition.

    Raises:
        IllPosedError: with what was measured and the way out.
    """
    latest, first, now = layers[-1], layers[0].distance, float(gap.norm(dim=1).mean())
    strays = first != 0 and not now <= _MOST_GROWTH * first  # where z* is what is there already, any way leads off it
    if strays or not latest.relative_change <= _MOST_CHANGE:
        raise IllPosedError(
            f"layer {latest.layer}: the edit moves away from its target (mean distance {first:.3g} before the first "
            f"layer, {now:.3g} now; the weight changed by {latest.relative_change:.3g} times its norm): edit other "
            "layers, raise regularization_lam, or lower strength"
        )


def _target_problems(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    neutral: Sequence[tuple[int, ...]],
    hparams: Any,
) -> list[Problem]:
    """What z* solves, at the last edited layer's output."""
    last = hparams.layers[-1]
    suppressed = hparams.z_objective == "suppress"
    first = [tuple(continuation(tokenizer, *r.query)[:1]) if suppressed else () for r in requests]
    weight = hparams.suppress_weight if suppressed else 0.0
    if hparams.neutral_target == UNKNOWN:
        generator = torch.Generator().manual_seed(hparams.seed)
        unknown = unknown_answers(layout.model, tokenizer, requests, generator=generator)
        return [
            # A request with a target of its own is mapped to that.
            Problem(r, own, last, "block") if own else Problem(r, a, last, "block", weight, q)
            for r, own, a, q in zip(requests, neutral, first, unknown, strict=True)
        ]
    aims = first if suppressed else neutral
    return [Problem(r, t, last, "block", weight) for r, t in zip(requests, aims, strict=True)]


def _sensitive_problems(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], layers: Sequence[int], hparams: Any
) -> list[Problem]:
    """V_u at what the down projection writes or, with `use_h`, at what the block puts out."""
    answers = [tuple(continuation(tokenizer, *r.query)) for r in requests]
    at: Literal["block", "projection"] = "block" if hparams.use_h else "projection"
    return [Problem(r, t, layer, at) for layer in layers for r, t in zip(requests, answers, strict=True)]


def _sensitive(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    layers: Sequence[int],
    prefixes: Sequence[str],
    hparams: Any,
) -> Solution:
    problems = _sensitive_problems(tokenizer, requests, layers, hparams)
    return optimise(layout, tokenizer, problems, prefixes, hparams, progress=f"V_u of layers {list(layers)}")
