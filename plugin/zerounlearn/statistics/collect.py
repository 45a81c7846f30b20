"""C = E[k kᵀ] of every edited layer, from one pass over ordinary text that several processes may share.

Where it is cached, and how little of it is held in memory: see `moment_files`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import IllPosedError, StatisticsError
from zerounlearn.methods.zerounlearn.config import ZeroUnlearnHyperParams
from zerounlearn.model.hooks import forward_until, frozen, inputs_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.lineage import Lineage
from zerounlearn.model.memory import free_memory, good_tokens
from zerounlearn.model.tokens import filler_id, length_sorted_batches, pad
from zerounlearn.statistics.files import Key, MomentFile, StoredMoments, Unfinished
from zerounlearn.statistics.processes import Processes

log = logging.getLogger(__name__)

# Texts that are tokenised, sorted by length and run before progress is counted (and can be resumed from).
_CHUNK = 64
# Chunks between two meetings of the processes: in that time a failure stops all, and uneven chunks even out.
_ROUND = 4
# The share of free memory that activations may take; others allocate too.
_MEMORY_SHARE = 0.5


def fingerprint(layout: Layout, layer: int) -> str:
    """A digest of all that keys at `layer` depend on; see `fingerprints`."""
    return fingerprints(layout, [layer])[layer]


def fingerprints(layout: Layout, layers: Sequence[int]) -> dict[int, str]:
    """For each layer a digest of all that its keys depend on, in one sweep over the weights.

    It covers shapes, dtypes and 256 spread elements of each weight below. The layer's own down projection is left
    out, since keys do not depend on it.
    """
    model = layout.model
    inputs = {id(p) for p in model.get_input_embeddings().parameters()}
    heads = [layout.norm, layout.head, *filter(None, [model.get_output_embeddings()])]
    top = {id(p) for module in heads for p in module.parameters()} - inputs  # the head may be tied to the embedding
    above = {i: top | {id(p) for block in layout.blocks[i + 1 :] for p in block.parameters()} for i in layers}
    for layer in layers:
        above[layer].add(id(layout.parameter(layer)))
    seen = {layer: hashlib.blake2b(digest_size=16) for layer in layers}
    picked: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for name, parameter in model.named_parameters():
        below = [layer for layer in layers if id(parameter) not in above[layer]]
        if not below:
            continue
        flat = layout.tensor(name).reshape(-1)
        count = min(256, flat.numel())
        spread = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        sample = flat[spread].float().cpu()
        for layer in below:
            seen[layer].update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
            picked[layer].append(sample)
    origins = Lineage.of(model).origins
    result = {}
    for layer in layers:
        seen[layer].update(torch.cat(picked[layer]).numpy().tobytes())
        found = seen[layer].hexdigest()
        result[layer] = origins.get(found, found)
    return result


def digest(C: Tensor) -> str:
    """A digest of a statistic's bytes: which text it was taken over, for a report."""
    return hashlib.blake2b(np.ascontiguousarray(C.cpu().numpy()).data, digest_size=16).hexdigest()


@contextmanager
def lineage_kept(layout: Layout, layers: Sequence[int]) -> Iterator[None]:
    """Remember, when the body has edited the weights, whose statistics the edited model goes on using.

    C is taken on the unedited model, once: a later edit of the same model must find it again.
    """
    before = fingerprints(layout, layers)
    yield
    after = fingerprints(layout, layers)
    Lineage.of(layout.model).origins |= {after[layer]: before[layer] for layer in layers}


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
    hparams: ZeroUnlearnHyperParams,
    corpus: Corpus,
    *,
    processes: Processes | None = None,
) -> Mapping[int, Tensor]:
    """C (m, m) of every edited layer, in `mom2_dtype` on the CPU; cached, or computed in one pass.

    Args:
        layout: the model.
        tokenizer: the model's.
        hparams: the run's hyperparameters.
        corpus: ordinary text.
        processes: those that each call this, with the same arguments, to take an equal part of the corpus. They
            share one file system; the main one writes.

    Returns:
        A mapping that reads one layer's C from its file whenever it is asked for it, and keeps none.

    Raises:
        StatisticsError: a cached file is unreadable, truncated or of another shape; or another process failed.
        IllPosedError: a statistic is not finite.
        OutputError: the cache cannot be written.
    """
    processes = processes or Processes()
    keys = {
        layer: Key(
            module=hparams.rewrite_module_tmp.format(layer),
            corpus=corpus.name,
            samples=hparams.mom2_n_samples,
            max_length=hparams.stats_max_length,
            dtype=hparams.mom2_dtype,
            weights=weights,
        )
        for layer, weights in fingerprints(layout, hparams.layers).items()
    }
    folders = _folders(layout, hparams, corpus)
    with processes.together():
        plan = _look_up(layout, keys, folders) if processes.main else None
    files, missing = processes.share(plan)
    with processes.together():
        if {layer: file.key for layer, file in files.items()} != keys:
            raise StatisticsError(
                f"process {processes.index} has another model than process 0: give all the same checkpoint"
            )
    if missing:
        targets = {layer: files[layer] for layer in missing}
        _collect(layout, tokenizer, hparams, corpus, targets, processes)
        if processes.main:
            for file in targets.values():
                for folder in folders[1:]:
                    file.link(folder)
    return StoredMoments(files)


def _look_up(
    layout: Layout, keys: Mapping[int, Key], folders: Sequence[Path]
) -> tuple[dict[int, MomentFile], list[int]]:
    """Where each layer's moment is or is to be, and the layers for which it has yet to be taken."""
    files: dict[int, MomentFile] = {}
    missing = []
    for layer, key in keys.items():
        names = [key.file(), key.file(unique=True)]
        places = [MomentFile(folder / name, key, layout.inputs(layer)) for name in names for folder in folders]
        found = next((file for file in places if file.fits()), None)
        if found is None:
            missing.append(layer)
            taken = (folders[0] / names[0]).exists()
            found = MomentFile(folders[0] / names[int(taken)], key, layout.inputs(layer))
        files[layer] = found
    return files, missing


def _folders(layout: Layout, hparams: ZeroUnlearnHyperParams, corpus: Corpus) -> list[Path]:
    """Where the two editions of EasyEdit keep a model's statistics: the checkout's folder, then the wheel's."""
    name = str(getattr(layout.model.config, "_name_or_path", "") or "model")
    checkout, wheel = name.rstrip("/").rsplit("/")[-1], name.replace("/", "_")
    return [Path(hparams.stats_dir) / n / f"{corpus.name}_stats" for n in dict.fromkeys((checkout, wheel))]


def _collect(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    hparams: ZeroUnlearnHyperParams,
    corpus: Corpus,
    targets: Mapping[int, MomentFile],
    processes: Processes,
) -> None:
    """One pass over the corpus for all missing layers, into their files."""
    layers = list(targets)
    with processes.together():
        texts = corpus.texts()
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randperm(len(texts), generator=generator)[: hparams.mom2_n_samples].tolist()
        if len(chosen) < hparams.mom2_n_samples:
            log.info(
                "corpus %s has %d texts, fewer than mom2_n_samples=%d",
                corpus.name, len(chosen), hparams.mom2_n_samples,
            )  # fmt: skip
        mine = chosen[processes.index :: processes.count]
        name = Unfinished.name([targets[layer].key for layer in layers], processes.index, processes.count)
        state = Unfinished(targets[layers[0]].path.with_name(name), {i: _nothing(layout, i) for i in layers})
        state.resume()
    left = -(-(len(mine) - state.done) // (_CHUNK * _ROUND))
    run = _Pass(layout, tokenizer, hparams, layers, processes)
    with (
        torch.no_grad(),
        frozen(layout.model),
        inputs_of(run.projections) as seen,
        state.kept(),
        tqdm(
            total=len(mine), initial=state.done, unit="text", disable=None if processes.main else True,
            desc="statistics" if processes.count == 1 else f"statistics, 1 of {processes.count} processes",
        ) as bar,
    ):  # fmt: skip
        for _ in range(max(processes.gather(left))):
            with processes.together(), state.kept():
                for start in range(state.done, min(state.done + _CHUNK * _ROUND, len(mine)), _CHUNK):
                    members = [texts[i] for i in mine[start : start + _CHUNK]]
                    state.add(run.moments(members, seen), len(members))
                    bar.update(len(members))
    del run, seen
    _finish(state, corpus, hparams, targets, processes)


def _finish(
    state: Unfinished,
    corpus: Corpus,
    hparams: ZeroUnlearnHyperParams,
    targets: Mapping[int, MomentFile],
    processes: Processes,
) -> None:
    """Add the processes' sums up and write them, a layer at a time; uses them up."""
    precision = cast(torch.dtype, getattr(torch, hparams.mom2_dtype))
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
        self, layout: Layout, tokenizer: PreTrainedTokenizerBase, hparams: ZeroUnlearnHyperParams,
        layers: Sequence[int], processes: Processes,
    ) -> None:  # fmt: skip
        self.layout, self.tokenizer = layout, tokenizer
        self.projections = {layer: layout.projections[layer] for layer in layers}
        self.precision = cast(torch.dtype, getattr(torch, hparams.mom2_dtype))
        self.filler = filler_id(tokenizer, layout.model)
        self.parts = {layer: _nothing(layout, layer) for layer in layers}
        limit = getattr(layout.model.config, "max_position_embeddings", None) or 10**9
        self.longest = min(hparams.stats_max_length, limit)
        self.tokens = hparams.stats_batch_tokens or auto_batch_tokens(layout, layers, self.longest, processes=processes)

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
                part.add(seen[layer][mask.to(seen[layer].device).bool()], precision=self.precision)
        return self.parts
