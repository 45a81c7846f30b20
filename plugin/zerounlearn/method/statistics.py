"""C = E[k kᵀ] of every edited layer, from one pass over ordinary text, cached in EasyEdit's own layout.

The file is `{stats_dir}/{model}/{corpus}_stats/{module}_{dtype}_mom2_{samples}.npz`, with the arrays that
EasyEdit's `layer_stats` writes and reads, so MEMIT, ROME, AlphaEdit and this package share it. Ours carry
one array more, a description of everything the statistic depends on. A file of ours whose description
does not match is left alone, and the statistic goes to a name of its own beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from zerounlearn.core.moments import SecondMoment
from zerounlearn.errors import IllPosedError, StatisticsError
from zerounlearn.files import whole_file
from zerounlearn.method.hparams import ZeroUnlearnHyperParams
from zerounlearn.method.lineage import Lineage
from zerounlearn.model.hooks import forward_until, frozen, inputs_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.tokens import filler_id, length_sorted_batches, pad

log = logging.getLogger(__name__)

_OURS = "zerounlearn"
# Texts that are tokenised, sorted by length and run before progress is counted (and can be resumed from).
_CHUNK = 64
_SAVE_EVERY = 60.0


@dataclass(frozen=True)
class Corpus:
    """Ordinary text. `name` goes into the cache's path and must change with the content."""

    name: str
    texts: Callable[[], Sequence[str]]


@dataclass(frozen=True)
class _Key:
    """Everything that a cached statistic depends on."""

    module: str
    corpus: str
    samples: int
    max_length: int
    dtype: str
    weights: str
    version: int = 1


def fingerprint(layout: Layout, layer: int) -> str:
    """A digest of all that keys at `layer` depend on: shapes, dtypes and 256 spread elements of each weight below.

    The layer's own down projection is left out, since keys do not depend on it.
    """
    above = {id(p) for block in layout.blocks[layer + 1 :] for p in block.parameters()}
    above |= {id(p) for p in layout.norm.parameters()} | {id(p) for p in layout.head.parameters()}
    above -= {id(p) for p in layout.model.get_input_embeddings().parameters()}  # which may be the head's, too
    above.add(id(layout.parameter(layer)))
    seen = hashlib.blake2b(digest_size=16)
    picked: list[Tensor] = []
    for name, parameter in layout.model.named_parameters():
        if id(parameter) in above:
            continue
        seen.update(f"{name} {tuple(parameter.shape)} {parameter.dtype};".encode())
        flat = parameter.detach().reshape(-1)
        count = min(256, flat.numel())
        spread = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        picked.append(flat[spread].float().cpu())
    seen.update(torch.cat(picked).numpy().tobytes())
    found = seen.hexdigest()
    return Lineage.of(layout.model).origins.get(found, found)


def digest(C: Tensor) -> str:
    """A digest of a statistic's bytes: which text it was taken over, for a report."""
    return hashlib.blake2b(C.contiguous().cpu().numpy().tobytes(), digest_size=16).hexdigest()


@contextmanager
def lineage_kept(layout: Layout, layers: Sequence[int]) -> Iterator[None]:
    """Remember, when the body has edited the weights, whose statistics the edited model goes on using.

    C is taken on the unedited model, once: a later edit of the same model must find it again.
    """
    before = {layer: fingerprint(layout, layer) for layer in layers}
    yield
    Lineage.of(layout.model).origins |= {fingerprint(layout, layer): before[layer] for layer in layers}


def second_moments(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    hparams: ZeroUnlearnHyperParams,
    corpus: Corpus,
) -> dict[int, Tensor]:
    """C (m, m) of every edited layer, in `mom2_dtype` on the CPU; read from the cache or computed in one pass.

    Raises:
        StatisticsError: a cached file is unreadable, truncated or of another shape.
        IllPosedError: a statistic is not finite.
        OutputError: the cache cannot be written.
    """
    keys = {
        layer: _Key(
            module=hparams.rewrite_module_tmp.format(layer),
            corpus=corpus.name,
            samples=hparams.mom2_n_samples,
            max_length=hparams.stats_max_length,
            dtype=hparams.mom2_dtype,
            weights=fingerprint(layout, layer),
        )
        for layer in hparams.layers
    }
    folders = _folders(layout, hparams, corpus)
    found: dict[int, Tensor] = {}
    targets: dict[int, Path] = {}
    for layer, key in keys.items():
        size = layout.read(layer).shape[1]
        names = [_name(key), _name(key, unique=True)]
        paths = [folder / name for name in names for folder in folders]
        for path in paths:
            if path.exists():
                moment = _load(path, key, size)
                if moment is not None:
                    found[layer] = moment.mean()
                    break
        else:
            taken = (folders[0] / names[0]).exists()
            targets[layer] = folders[0] / names[int(taken)]
    if targets:
        for layer, moment in _collect(layout, tokenizer, hparams, corpus, keys, targets).items():
            found[layer] = moment.mean()
            for folder in folders[1:]:
                _link(targets[layer], folder)
    for layer, C in found.items():
        if not torch.isfinite(C).all():
            raise IllPosedError(
                f"layer {layer}: its statistics contain NaN or Inf; delete them and check the checkpoint"
            )
    return {layer: found[layer] for layer in hparams.layers}


def _folders(layout: Layout, hparams: ZeroUnlearnHyperParams, corpus: Corpus) -> list[Path]:
    """Where the two editions of EasyEdit keep a model's statistics: the checkout's folder, then the wheel's."""
    name = str(getattr(layout.model.config, "_name_or_path", "") or "model")
    checkout, wheel = name.rstrip("/").rsplit("/")[-1], name.replace("/", "_")
    return [Path(hparams.stats_dir) / n / f"{corpus.name}_stats" for n in dict.fromkeys((checkout, wheel))]


def _name(key: _Key, *, unique: bool = False) -> str:
    suffix = hashlib.blake2b(json.dumps(asdict(key), sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{key.module}_{key.dtype}_mom2_{key.samples}{f'-{suffix}' if unique else ''}.npz"


def _load(path: Path, key: _Key, size: int) -> SecondMoment | None:
    """A cached moment; None where the file is ours and describes something else."""
    try:
        with np.load(path) as arrays:
            described = json.loads(str(arrays[_OURS])) if _OURS in arrays else None
            samples = int(arrays["sample_size"]) if "sample_size" in arrays else key.samples
            count, total = int(arrays["mom2.count"]), torch.from_numpy(arrays["mom2.mom2"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StatisticsError(
            f"statistics cache {str(path)!r} is unreadable or truncated ({error}): delete it to have it computed again"
        ) from error
    if (described is not None and described != asdict(key)) or samples != key.samples:
        log.info("%s describes another run; it is left alone", path)
        return None
    if total.shape != (size, size) or count < 1:
        raise StatisticsError(
            f"statistics cache {str(path)!r} holds a {tuple(total.shape)} moment of {count} tokens, the layer takes "
            f"{size} inputs: it belongs to another model; delete it or set another stats_dir"
        )
    return SecondMoment(count, total)


def _collect(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    hparams: ZeroUnlearnHyperParams,
    corpus: Corpus,
    keys: Mapping[int, _Key],
    targets: Mapping[int, Path],
) -> dict[int, SecondMoment]:
    """One pass over the corpus for all missing layers; ends each forward pass after the last of them."""
    layers = list(targets)
    precision = cast(torch.dtype, getattr(torch, hparams.mom2_dtype))
    sums = torch.float32 if layout.device.type == "mps" else torch.float64
    texts = corpus.texts()
    chosen = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))[: hparams.mom2_n_samples].tolist()
    if len(chosen) < hparams.mom2_n_samples:
        log.info(
            "corpus %s has %d texts, fewer than mom2_n_samples=%d",
            corpus.name,
            len(chosen),
            hparams.mom2_n_samples,
        )
    partial = targets[layers[0]].with_name(f".{_pass_name(keys, layers)}.partial.npz")
    moments, done = _resume(partial, layers)
    for layer in layers:
        size = layout.read(layer).shape[1]
        fresh = SecondMoment(0, torch.zeros(size, size, dtype=sums, device=layout.parameter(layer).device))
        moments[layer] = moments.get(layer, fresh)
        moments[layer].total = moments[layer].total.to(device=fresh.total.device, dtype=sums)
    projections = {layer: layout.projections[layer] for layer in layers}
    last = layout.blocks[max(layers)]
    filler, saved = filler_id(tokenizer), time.monotonic()
    longest = min(hparams.stats_max_length, getattr(layout.model.config, "max_position_embeddings", None) or 10**9)
    with (
        torch.no_grad(),
        frozen(layout.model),
        inputs_of(projections) as seen,
        tqdm(total=len(chosen), initial=done, desc="statistics", unit="text", disable=None) as bar,
    ):
        try:
            while done < len(chosen):
                members = chosen[done : done + _CHUNK]
                encoded = tokenizer([texts[i] for i in members], truncation=True, max_length=longest)["input_ids"]
                rows = [row for row in encoded if row]
                part = {layer: SecondMoment(0, torch.zeros_like(moments[layer].total)) for layer in layers}
                for batch in length_sorted_batches([len(row) for row in rows], hparams.stats_batch_tokens):
                    ids, mask = pad([rows[i] for i in batch], filler, layout.device)
                    forward_until(layout.model, last, input_ids=ids, attention_mask=mask, use_cache=False)
                    for layer in layers:
                        part[layer].add(seen[layer][mask.to(seen[layer].device).bool()], precision=precision)
                for layer in layers:
                    moments[layer] = moments[layer] + part[layer]
                done += len(members)
                bar.update(len(members))
                if time.monotonic() - saved > _SAVE_EVERY:
                    _save_partial(partial, moments, done)
                    saved = time.monotonic()
        except BaseException:
            if done:
                _save_partial(partial, moments, done)
            raise
    result = {}
    for layer, path in targets.items():
        moment = SecondMoment(moments[layer].count, moments[layer].total.to("cpu", precision))
        if moment.count == 0:
            raise StatisticsError(f"corpus {corpus.name!r} gave no tokens: there is no statistic to take")
        _write(path, {
            "mom2.constructor": "easyeditor.util.runningstats.SecondMoment()",
            "mom2.count": moment.count,
            "mom2.mom2": moment.total.numpy(),
            "sample_size": hparams.mom2_n_samples,
            _OURS: json.dumps(asdict(keys[layer])),
        })  # fmt: skip
        result[layer] = moment
    partial.unlink(missing_ok=True)
    return result


def _pass_name(keys: Mapping[int, _Key], layers: Sequence[int]) -> str:
    text = json.dumps([asdict(keys[layer]) for layer in layers], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _resume(path: Path, layers: Sequence[int]) -> tuple[dict[int, SecondMoment], int]:
    try:
        with np.load(path) as arrays:
            done = int(arrays["done"])
            moments = {
                layer: SecondMoment(int(arrays[f"{layer}.count"]), torch.from_numpy(arrays[f"{layer}.total"]))
                for layer in layers
            }
    except FileNotFoundError:
        return {}, 0
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is unreadable (%s); starting over", path, error)
        return {}, 0
    log.info("resuming statistics after %d texts", done)
    return moments, done


def _save_partial(path: Path, moments: Mapping[int, SecondMoment], done: int) -> None:
    arrays: dict[str, Any] = {"done": done}
    for layer, moment in moments.items():
        arrays |= {f"{layer}.count": moment.count, f"{layer}.total": moment.total.cpu().numpy()}
    _write(path, arrays)


def _link(path: Path, folder: Path) -> None:
    """Let the other edition find a file, at no cost in space; where links cannot be had it will not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).hardlink_to(path)
    except OSError as error:
        log.info("%s is not linked into %s: %s", path.name, folder, error)


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    with whole_file(path, "wb", remedy="set another stats_dir or free space") as stream:
        np.savez(stream, **arrays)
