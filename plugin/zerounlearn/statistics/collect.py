"""C = E[k kᵀ] of every edited layer, from one pass over ordinary text that several processes may share.

Where it is cached, and how little of it is held in memory: see `files`.

Whose C it is: a statistic is filed under the fingerprint of the weights that ran, always. A model that was edited by
this package goes on using C of the model before its first edit, as the paper does, where that is on disk: `Lineage`
knows its fingerprint, which is looked for under any model's folder, and only read. Where it is not on disk, C is taken
on the edited weights, filed as theirs and announced by a warning: it is what the model now does with ordinary text,
and the original may be out of reach. All layers of a run then come from the one or from the other.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import IllPosedError, StatisticsError
from zerounlearn.model.fingerprint import config_digest, fingerprints, tokenizer_digest
from zerounlearn.model.hooks import forward_until, frozen, inputs_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.memory import free_memory, good_tokens
from zerounlearn.model.tokens import filler_id, length_sorted_batches, pad
from zerounlearn.statistics.config import StatisticsConfig, check_statistics, tokens_wanted
from zerounlearn.statistics.files import Key, MomentFile, StoredMoments, Unfinished, check_folder
from zerounlearn.statistics.processes import Processes

log = logging.getLogger(__name__)

# Texts that are tokenised, sorted by length and run before progress is counted (and can be resumed from).
_CHUNK = 64
# Chunks between two meetings of the processes: in that time a failure stops all, and uneven chunks even out.
_ROUND = 4
# The share of free memory that activations may take; others allocate too.
_MEMORY_SHARE = 0.5


def auto_batch_tokens(
    layout: Layout, layers: Sequence[int], longest: int, *, processes: Processes | None = None
) -> int:
    """Tokens per forward pass over the corpus for which, by a high estimate, half of the free memory will do.

    A token is taken to need, in the weights' precision, eight hidden states (d: the residual, its norm, queries,
    keys, values, attention's and the MLP's output) and three MLP states (m) of the one block that runs; for each of
    `layers` its key (m), for one of them twice more, in float64; and a row of the attention mask, for eager
    attention two of scores a head, `longest` entries each. Measured use was 50 to 63 % of that. A device is not given
    more tokens than saturate it.

    Args:
        layout: the model, on the device where it runs.
        layers: the layers whose keys are collected; blocks above the last of them do not run.
        longest: tokens of the longest text.
        processes: those that share a CPU's memory with this one.
    """
    config = layout.model.config
    weight = layout.parameter(layers[-1])
    m = layout.inputs(layers[-1])
    d, size = weight.numel() // m, weight.element_size()
    eager = getattr(config, "_attn_implementation", None) == "eager"
    rows = 1 + (2 * getattr(config, "num_attention_heads", 1) if eager else 0)
    bytes_each = size * (8 * d + (3 + len(layers)) * m) + (size + 8) * m + 4 * rows * longest
    device = layout.device_of(layers[-1])
    sharing = processes.count if processes is not None and device.type == "cpu" else 1
    room = int(free_memory(device) * _MEMORY_SHARE / sharing / bytes_each)
    tokens = max(1, min(room, good_tokens(device)))
    log.info("%d tokens per forward pass: memory on %s has room for %d", tokens, device, room)
    return tokens


def second_moments(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    config: StatisticsConfig,
    corpus: Corpus,
    *,
    processes: Processes | None = None,
) -> Mapping[int, Tensor]:
    """C (m, m) of every edited layer, in `mom2_dtype` on the CPU; cached, or computed in one pass.

    Args:
        layout: the model.
        tokenizer: the model's.
        config: what to take, and where it is cached.
        corpus: ordinary text.
        processes: those that each call this, with the same arguments, to take an equal part of the corpus. They
            share one file system; the main one writes.

    Returns:
        A mapping that reads one layer's C from its file whenever it is asked for it, and keeps none.

    Raises:
        ConfigError: a setting is out of its range, or `stats_dir` cannot be a folder.
        StatisticsError: a cached file is unreadable, truncated, of another shape or no second moment; or another
            process failed.
        IllPosedError: a statistic is not finite.
        OutputError: the cache cannot be written.
    """
    check_statistics(config)
    processes = processes or Processes()
    own, origin = keys_of(layout, tokenizer, config, corpus)
    place = _Place(Path(config.stats_dir), folders_of(layout, config, corpus))
    with processes.together():
        plan = _plan(layout, own, origin, place) if processes.main else None
    files, missing = processes.share(plan)
    with processes.together():
        planned = {layer: file.key for layer, file in files.items()}
        if planned not in (own, origin):
            raise StatisticsError(
                f"process {processes.index} has another model than process 0: give all the same checkpoint"
            )
    if planned == own:  # taken or to be taken on these very weights, which are now their own origin
        for key in own.values():
            Lineage.of(layout.model).origins.pop(key.weights, None)
    if missing:
        targets = {layer: files[layer] for layer in missing}
        _collect(layout, tokenizer, config, corpus, targets, processes)
        if processes.main:
            for layer, file in targets.items():
                for folder in place.folders[1:] if own[layer] == origin[layer] else ():
                    file.link(folder)
    return StoredMoments(files)


def keys_of(
    layout: Layout, tokenizer: PreTrainedTokenizerBase, config: StatisticsConfig, corpus: Corpus
) -> tuple[dict[int, Key], dict[int, Key]]:
    """What C of each layer depends on: for these weights, and for those whose statistics they go on using."""
    origins = Lineage.of(layout.model).origins
    wanted = _tokens_wanted(layout, config)
    tokens, settings = tokenizer_digest(tokenizer), config_digest(layout.model)
    own = {
        layer: Key(
            module=layout.weight_names[layer].removesuffix(".weight"),
            corpus=corpus.name,
            samples=config.mom2_n_samples if wanted is None else f"{wanted}-tokens",
            max_length=config.stats_max_length,
            dtype=config.mom2_dtype,
            weights=weights,
            tokenizer=tokens,
            config=settings,
        )
        for layer, weights in fingerprints(layout, config.layers).items()
    }
    return own, {layer: replace(key, weights=origins.get(key.weights, key.weights)) for layer, key in own.items()}


def _tokens_wanted(layout: Layout, config: StatisticsConfig) -> int | None:
    """Tokens to take, by the widest of the layers; None where texts are counted."""
    return tokens_wanted(config, max(layout.inputs(layer) for layer in config.layers))


@dataclass(frozen=True)
class _Place:
    """`stats_dir`, and the folders in it that are named after the model."""

    root: Path
    folders: Sequence[Path]

    def find(self, key: Key, size: int, *, foreign: bool) -> MomentFile | None:
        """A file with this moment: one under the model's name, else one under any name that describes itself so."""
        names = (key.file(), key.file(unique=True))
        near = [MomentFile(folder / name, key, size, foreign) for name in names for folder in self.folders]
        far = [
            MomentFile(folder / self.folders[0].name / name, key, size, foreign=False)
            for folder in (sorted(self.root.iterdir()) if self.root.is_dir() else ())
            if folder not in [each.parent for each in self.folders]
            for name in names
        ]
        return next((f for f in near if f.fits()), None) or next((f for f in far if f.described() and f.fits()), None)


def _plan(
    layout: Layout, own: Mapping[int, Key], origin: Mapping[int, Key], place: _Place
) -> tuple[dict[int, MomentFile], list[int]]:
    """Where each layer's moment is or is to be, and the layers for which it has yet to be taken."""
    edited = [layer for layer in own if own[layer] != origin[layer]]
    found = {i: place.find(key, layout.inputs(i), foreign=i not in edited) for i, key in own.items()}
    if edited and not all(found.values()):
        before = {i: place.find(key, layout.inputs(i), foreign=True) for i, key in origin.items()}
        if all(before.values()):
            return {i: file for i, file in before.items() if file}, []
        log.warning(
            "layers %s lie behind edits of this model, and the statistics of the model before them are not in %r: they "
            "are taken on the edited weights, and filed as theirs. To use the unedited model's, stop, and run "
            "`zerounlearn stats` on it first, with these settings and this stats_dir",
            edited,
            str(place.root),
        )
    if not all(found.values()):
        check_folder(place.folders[0])
    files: dict[int, MomentFile] = {}
    for layer, key in own.items():
        path = place.folders[0] / key.file()
        # An edited model may bear the original's name, under which EasyEdit would take its file for the original's.
        unique = layer in edited or path.exists()
        target = MomentFile(path.with_name(key.file(unique=unique)), key, layout.inputs(layer))
        files[layer] = found[layer] or target
    return files, [layer for layer in own if found[layer] is None]


def folders_of(layout: Layout, config: StatisticsConfig, corpus: Corpus) -> list[Path]:
    """Where the two editions of EasyEdit keep a model's statistics: the checkout's folder, then the wheel's."""
    name = str(getattr(layout.model.config, "_name_or_path", "") or "model")
    checkout, wheel = name.rstrip("/").rsplit("/")[-1], name.replace("/", "_")
    return [Path(config.stats_dir) / n / f"{corpus.name}_stats" for n in dict.fromkeys((checkout, wheel))]


def _collect(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    config: StatisticsConfig,
    corpus: Corpus,
    targets: Mapping[int, MomentFile],
    processes: Processes,
) -> None:
    """One pass over the corpus for all missing layers, into their files."""
    layers = list(targets)
    with processes.together():
        texts = corpus.texts()
        chosen = _chosen(layout, tokenizer, config, corpus.name, texts)
        mine = chosen[processes.index :: processes.count]
        name = Unfinished.name([targets[layer].key for layer in layers], processes.index, processes.count)
        state = Unfinished(targets[layers[0]].path.with_name(name), {i: _nothing(layout, i) for i in layers})
        state.resume(len(mine))
    left = -(-(len(mine) - state.done) // (_CHUNK * _ROUND))
    run = _Pass(layout, tokenizer, config, layers, processes)
    with (
        torch.no_grad(),
        frozen(layout.model),
        inputs_of(run.projections) as seen,
        state.kept(),
        tqdm(
            total=len(mine),
            initial=state.done,
            unit="text",
            disable=None if processes.main else True,
            desc="statistics" if processes.count == 1 else f"statistics, 1 of {processes.count} processes",
        ) as bar,
    ):
        for _ in range(max(processes.gather(left))):
            with processes.together(), state.kept():
                for start in range(state.done, min(state.done + _CHUNK * _ROUND, len(mine)), _CHUNK):
                    members = [texts[i] for i in mine[start : start + _CHUNK]]
                    state.add(run.moments(members, seen), len(members))
                    bar.update(len(members))
    del run, seen
    _finish(state, corpus, config, targets, processes)


def _chosen(
    layout: Layout, tokenizer: PreTrainedTokenizerBase, config: StatisticsConfig, name: str, texts: Sequence[str]
) -> list[int]:
    """Numbers of the texts that are run: the first of one fixed order, so that more of them take in all of fewer."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))
    wanted = _tokens_wanted(layout, config)
    if wanted is None:
        chosen = order[: config.mom2_n_samples].tolist()
        enough = len(chosen) == config.mom2_n_samples
    else:
        longest, chosen, tokens = _longest(layout, config), [], 0
        for part in order.split(_CHUNK):
            rows = tokenizer([texts[i] for i in part.tolist()], truncation=True, max_length=longest)["input_ids"]
            ends = (torch.tensor([len(row) for row in rows]).cumsum(0) + tokens).tolist()
            chosen += part[: 1 + bisect_left(ends, wanted)].tolist()
            tokens = ends[-1]
            if tokens >= wanted:
                break
        enough = tokens >= wanted
    if not enough:
        log.info("corpus %s has %d texts, fewer than mom2_n_samples=%s", name, len(chosen), config.mom2_n_samples)
    return chosen


def _longest(layout: Layout, config: StatisticsConfig) -> int:
    """Tokens that a text is cut to."""
    limit = getattr(layout.model.config, "max_position_embeddings", None) or 10**9
    return min(config.stats_max_length, limit)


def _finish(
    state: Unfinished,
    corpus: Corpus,
    config: StatisticsConfig,
    targets: Mapping[int, MomentFile],
    processes: Processes,
) -> None:
    """Add the processes' sums up and write them, a layer at a time; uses them up."""
    precision = cast(torch.dtype, getattr(torch, config.mom2_dtype))
    for layer, file in targets.items():
        moment = processes.add_up(state.moments.pop(layer))
        with processes.together():
            if moment.count == 0:
                raise StatisticsError(f"corpus {corpus.name!r} gave no tokens: there is no statistic to take")
            if not moment.is_finite():
                state.discard()
                raise IllPosedError(f"layer {layer}: its keys contain NaN or Inf; check the checkpoint")
            if processes.main:
                file.write(SecondMoment(moment.count, moment.total.to("cpu", precision)))
    if processes.main:
        state.discard()


def _nothing(layout: Layout, layer: int) -> SecondMoment:
    device = layout.device_of(layer)
    sums = torch.float32 if device.type == "mps" else torch.float64
    return SecondMoment.zeros(layout.inputs(layer), sums, device)


class _Pass:
    """Runs texts through the blocks up to the last of `layers`."""

    def __init__(
        self,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        config: StatisticsConfig,
        layers: Sequence[int],
        processes: Processes,
    ) -> None:
        self.layout, self.tokenizer = layout, tokenizer
        self.projections = {layer: layout.projections[layer] for layer in layers}
        self.precision = cast(torch.dtype, getattr(torch, config.mom2_dtype))
        self.filler = filler_id(tokenizer, layout.model)
        self.parts = {layer: _nothing(layout, layer) for layer in layers}
        self.longest = _longest(layout, config)
        self.tokens = config.stats_batch_tokens or auto_batch_tokens(layout, layers, self.longest, processes=processes)

    def moments(self, texts: Sequence[str], seen: Mapping[int, Tensor]) -> Mapping[int, SecondMoment]:
        """The texts' moments by layer, valid until the next call; `seen` is what `inputs_of` fills."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"]
        rows = [row for row in encoded if row]
        last = self.layout.blocks[max(self.parts)]
        for part in self.parts.values():
            part.clear()
        for batch in length_sorted_batches([len(row) for row in rows], self.tokens):
            ids, mask = pad([rows[i] for i in batch], self.filler, self.layout.device)
            forward_until(self.layout.model, last, input_ids=ids, attention_mask=mask, use_cache=False)
            for layer, part in self.parts.items():
                keys = seen[layer].view(*mask.shape, -1)
                part.add(keys[mask.to(keys.device).bool()], precision=self.precision)
        return self.parts
