"""A second moment that others took, checked against the model at hand and filed where this package and EasyEdit look.

ROME's, MEMIT's and EasyEdit's `layer_stats` write one layer a file, with Σ k kᵀ and the number of keys in it. Such a
file does not say which weights it was taken on, so a handful of this model's own keys is held against it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zerounlearn.core.moments import SecondMoment
from zerounlearn.data.corpora import Corpus
from zerounlearn.errors import StatisticsError
from zerounlearn.model.hooks import forward_until, frozen, inputs_of
from zerounlearn.model.layout import Layout
from zerounlearn.model.tokens import filler_id, pad
from zerounlearn.statistics.arrays import Arrays, check_second_moment, opened
from zerounlearn.statistics.collect import folders_of, keys_of
from zerounlearn.statistics.config import StatisticsConfig, check_statistics
from zerounlearn.statistics.files import MomentFile, check_folder

# Ordinary text of several kinds: what is compared is which of the layer's inputs are large, not how large.
_TEXTS = (
    "The old lighthouse stands at the end of the harbour, where fishing boats come in before the storm.",
    "In 1923 the council decided to build a new railway station, but the money was spent on a bridge instead.",
    "Mix the flour with two eggs and a little milk, let it rest for an hour, then bake it until it is golden.",
    "The committee said on Tuesday that prices had risen by 3.4 % over the year, more than in any other country.",
    "def area(width, height):\n    return width * height\n",
    '"I never saw him again," she said quietly, and closed the door behind her.',
    "Water is a compound of hydrogen and oxygen; it boils at 100 degrees Celsius at sea level.",
    "Contact us by e-mail or phone for more information about our products and services.",
)
# Rank correlation of the sizes of the inputs; SmolLM2 with itself 0.58 to 0.71, with another of its layers below 0.05.
_ALIKE = 0.3
_TIMES = 10.0
_TOKENS = 32


def take_moments(
    paths: Sequence[Path],
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    config: StatisticsConfig,
    corpus: Corpus,
) -> dict[int, Path]:
    """File moments that others took as this run's statistics; all of them, or none.

    Args:
        paths: npz files of ROME's, MEMIT's or EasyEdit's, one a layer, with the edited module's name in theirs.
        layout: the model.
        tokenizer: the model's.
        config: the run's; its `mom2_dataset` and `mom2_n_samples` are what the files are taken for.
        corpus: the run's; its texts are not read.

    Returns:
        By layer, where each was filed.

    Raises:
        StatisticsError: a file is no such moment, of another layer, shape, or number of texts, not finite, not
            symmetric, not positive semidefinite, or not of this model; or there is a statistic already.
        OutputError: they cannot be written.
    """
    check_statistics(config)
    own, _ = keys_of(layout, tokenizer, config, corpus)
    folder, *further = folders_of(layout, config, corpus)
    found: dict[int, SecondMoment] = {}
    for path in paths:
        layer = _layer_of(path, layout)
        if layer in found:
            raise StatisticsError(f"--from {str(path)!r}: layer {layer} is given twice: drop one")
        found[layer] = _read(path, layout.inputs(layer), own[layer].samples)
    files = {layer: MomentFile(folder / key.file(), key, layout.inputs(layer)) for layer, key in own.items()}
    for layer in found:
        if files[layer].path.exists():
            raise StatisticsError(f"{str(files[layer].path)!r} is there already: delete it, or set another stats_dir")
    keys = _keys(layout, tokenizer, list(found))
    for path, (layer, moment) in zip(paths, found.items(), strict=True):
        _check_of_this_model(path, moment, keys[layer])
    check_folder(folder)
    precision = getattr(torch, config.mom2_dtype)
    written: list[Path] = []
    try:
        for layer, moment in found.items():
            files[layer].write(SecondMoment(moment.count, moment.total.to(precision)))
            written.append(files[layer].path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for layer in found:
        for other in further:
            files[layer].link(other)
    return {layer: files[layer].path for layer in found}


def _layer_of(path: Path, layout: Layout) -> int:
    """The edited layer whose module's name is in a file's."""
    modules = {layer: name.removesuffix(".weight") for layer, name in layout.weight_names.items()}
    for layer, module in modules.items():
        if path.name.startswith((f"{module}_", f"{module}.npz")):
            return layer
    raise StatisticsError(
        f"--from {str(path)!r}: its name is of none of the layers {list(modules)}: call it MODULE.npz, as "
        f"{next(iter(modules.values()))}.npz"
    )


def _read(path: Path, size: int, wanted: int | str) -> SecondMoment:
    if not path.is_file():
        raise StatisticsError(f"--from {str(path)!r} is no file: name the npz file of one layer")
    _refuse_projections(path)
    with opened(path, what="--from", otherwise="give this model's", damaged="fetch it again") as arrays:
        if missing := {"mom2.mom2", "mom2.count"} - arrays.names:
            raise ValueError(f"it has no {min(missing)!r} but {sorted(arrays.names)[:5]}")
        moment = SecondMoment(arrays.number("mom2.count"), arrays.matrix("mom2.mom2", size))
        samples = _samples(arrays)
        if moment.count < 1:
            raise ValueError(f"it counts {moment.count} keys")
        if not moment.is_finite():
            raise ValueError("it has NaN or Inf")
        check_second_moment(moment.total)
    if samples not in (None, wanted):
        raise StatisticsError(
            f"--from {str(path)!r} was taken over {samples} texts, the run asks for {wanted}: set "
            f"mom2_n_samples={samples}"
        )
    return moment


def _samples(arrays: Arrays) -> int | None:
    return arrays.number("sample_size") if "sample_size" in arrays.names else None


def _refuse_projections(path: Path) -> None:
    """AlphaEdit's P is no moment, and none can be had from it."""
    torchs = zipfile.is_zipfile(path) and any(n.endswith("data.pkl") for n in zipfile.ZipFile(path).namelist())
    if torchs or path.suffix in (".pt", ".pth", ".bin"):
        raise StatisticsError(
            f"--from {str(path)!r} is a file of torch's, as AlphaEdit's null_space_project.pt: a projection says where "
            "the second moment is small, not what it is. Give the moment that it was made from (…_mom2_….npz)"
        )


@torch.no_grad()
def _keys(layout: Layout, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]) -> dict[int, Tensor]:
    """Keys (n, m) of a few texts by layer, in float64 on the CPU."""
    ids, mask = pad(
        tokenizer(list(_TEXTS), truncation=True, max_length=_TOKENS)["input_ids"],
        filler_id(tokenizer, layout.model),
        layout.device,
    )
    with frozen(layout.model), inputs_of({layer: layout.projections[layer] for layer in layers}) as seen:
        forward_until(layout.model, layout.blocks[max(layers)], input_ids=ids, attention_mask=mask, use_cache=False)
        return {i: seen[i][mask.to(seen[i].device).bool()].double().cpu() for i in layers}


def _check_of_this_model(path: Path, moment: SecondMoment, keys: Tensor) -> None:
    """Compare which inputs of the layer are large, and how large they are in all, with what is measured here."""
    given = (moment.mean().diagonal().double()).clamp_min(0).sqrt()
    here = keys.square().mean(0).sqrt()
    ranks = np.stack([given.argsort().argsort().numpy(), here.argsort().argsort().numpy()])
    alike = float(np.corrcoef(ranks)[0, 1])
    times = float(given.median() / here.median())
    if not (alike >= _ALIKE and 1 / _TIMES <= times <= _TIMES):
        raise StatisticsError(
            f"--from {str(path)!r} is not this model's: the sizes of the layer's inputs there and in a few texts here "
            f"have a rank correlation of {alike:.2f} ({_ALIKE} is the least), and differ {times:.2g} times"
        )
