"""An edit as a LoRA adapter of peft: the base stays as it is, and the change is switched on and off, or merged."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zerounlearn.core.factors import product_svd
from zerounlearn.errors import ConfigError, EditError
from zerounlearn.files import whole_folder
from zerounlearn.method.edit import Edit
from zerounlearn.model.layout import input_device
from zerounlearn.model.loading import skeleton_of
from zerounlearn.model.snapshot import Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What is left out of a change unasked: less than float32 can tell apart.
_EXACT = 2.0**-24
_TEXTS = (
    "The capital of France is Paris, and its longest river is the Loire.",
    "She opened the window, because it had been raining since the morning and the air was good again.",
    "def mean(values):\n    return sum(values) / len(values)",
)
"""What `adapter_gap` reads by default."""


@dataclass(frozen=True)
class ExportedWeight:
    """One weight of an adapter.

    Attributes:
        name: of the parameter.
        rank: of its adapter.
        of: the rank of the change, as far as it was looked for.
        error: relative Frobenius error of the truncation, 0 where nothing was cut off.
    """

    name: str
    rank: int
    of: int
    error: float


@dataclass(frozen=True)
class Exported:
    """What an adapter holds: its weights, and the relative Frobenius error over all of them."""

    weights: tuple[ExportedWeight, ...]
    error: float


@dataclass(frozen=True)
class _Thin:
    """A change as left (rows, r) and right (r, columns), float32; its rank, norm, and the norm of what is cut off."""

    left: Tensor
    right: Tensor
    of: int
    norm: float
    cut: float


def load_peft(what: str) -> ModuleType:
    """The package peft.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the package peft, which cannot be imported ({error}): pip install 'zerounlearn[lora]'"
        ) from error


def export_peft(
    edit: Edit,
    folder: str | Path,
    model: PreTrainedModel | str,
    *,
    rank: int | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an edit as a LoRA adapter that `PeftModel.from_pretrained(model, folder)` loads, merges and unloads.

    The files are peft's own. Every scaling is 1, so that a program which does not know `alpha_pattern` scales right.

    Args:
        edit: one whose change is of linear layers' weights.
        folder: where the adapter is to stand.
        model: the model that the edit was made on, or its name; no weight of it is read.
        rank: the most that an adapter's rank may be; by default it is exact to float32, by the edit's own thin
            factors, or by a singular value decomposition of a whole change, in float64.
        base: what the adapter calls its base model; by default nothing.
        overwrite: replace an earlier export.

    Raises:
        ConfigError: peft is not installed, or `rank` is no rank.
        EditError: the edit wraps modules, changes nothing, changes what LoRA cannot hold, or is another model's.
        OutputError: the folder is taken or cannot be written.
    """
    skeleton = _meta(model)
    check_exportable(edit, skeleton, rank)
    with whole_folder(Path(folder), overwrite=overwrite) as staged:
        return write_adapter(edit, staged, skeleton, rank=rank, base=base)


def write_adapter(
    edit: Edit, folder: Path, skeleton: PreTrainedModel, *, rank: int | None = None, base: str | None = None
) -> Exported:
    """`export_peft` into a folder that is there, by a model without weights, which is used up.

    Raises:
        ConfigError, EditError: see `export_peft`.
    """
    turned = check_exportable(edit, skeleton, rank)
    thin = {name: _thin(edit, name, rank) for name in turned}
    _write(load_peft("an adapter"), skeleton, thin, turned, folder, base)
    weights = tuple(
        ExportedWeight(name, part.left.shape[1], part.of, part.cut / part.norm) for name, part in thin.items()
    )
    total = sum(part.norm**2 for part in thin.values())
    return Exported(weights, (sum(part.cut**2 for part in thin.values()) / total) ** 0.5)


def check_exportable(edit: Edit, skeleton: PreTrainedModel, rank: int | None = None) -> dict[str, bool]:
    """The changed weights by name, and of each whether it lies the other way round, as GPT-2's Conv1D does.

    Raises:
        ConfigError, EditError: see `export_peft`.
    """
    load_peft("an adapter")
    if rank is not None and rank < 1:
        raise ConfigError(f"rank={rank}: expected a whole number >= 1")
    if edit.undo is not None:
        raise EditError(f"{edit.method} wraps modules: there is no change of weights to export")
    parts = {**edit.changes, **{name: right for name, (_, right) in edit.factors.items()}}
    changed = [name for name, part in parts.items() if bool(part.any())]
    if not changed:
        raise EditError(f"this edit by {edit.method} changes no weight: there is nothing to export")
    embedding = skeleton.get_input_embeddings().weight
    turned = {}
    for name in changed:
        owner, _, leaf = name.rpartition(".")
        try:
            module, weight = skeleton.get_submodule(owner), skeleton.get_parameter(name)
        except AttributeError:
            raise EditError(f"{type(skeleton).__name__} has no weight {name!r}: name the edit's own model") from None
        if leaf != "weight" or not isinstance(module, (nn.Linear, Conv1D)) or weight is embedding:
            raise EditError(
                f"{name} is the {leaf} of a {type(module).__name__}: LoRA holds changes of linear layers' own weights "
                "alone; hand the edit on as a file, or save the whole checkpoint"
            )
        shape = edit.shape_of(name)
        if shape != tuple(weight.shape):
            raise EditError(f"{name} is {tuple(weight.shape)} in the model, {shape} in the edit: name its own model")
        turned[name] = isinstance(module, Conv1D)
    return turned


@torch.no_grad()
def adapter_gap(
    edit: Edit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    texts: Sequence[str] = _TEXTS,
) -> float:
    """The largest absolute difference between a model's logits with the edit and with its exported adapter.

    Args:
        edit: the edit.
        model: the model that it was made on, unedited; it is left as it was.
        tokenizer: the model's.
        folder: what `export_peft` wrote.
        texts: what both read.

    Raises:
        EditError: the model's weights are not those that the edit was made on.
    """
    peft = load_peft("checking an adapter")
    ids = [tokenizer(text, return_tensors="pt")["input_ids"].to(input_device(model)) for text in texts]
    tried = replace(edit, digests=dict(edit.digests))  # `apply` takes note of what it finds
    tried.apply(model)
    try:
        wanted = [model(input_ids=one).logits.double() for one in ids]
    finally:
        tried.revert(model)
    snapshot = Snapshot(model, ())
    try:
        wrapped = peft.PeftModel.from_pretrained(model, str(folder)).eval()
        found = [wrapped(input_ids=one).logits.double() for one in ids]
    finally:
        snapshot.restore()
    return max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))


def _meta(model: PreTrainedModel | str) -> PreTrainedModel:
    """The model without weights, so that nothing is done to one that is in use."""
    if isinstance(model, str):
        return skeleton_of(model)
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def _thin(edit: Edit, name: str, rank: int | None) -> _Thin:
    """A change within the rank: its own factors where they will do, else the leading part of its SVD in float64."""
    rows, columns = edit.shape_of(name)
    if name in edit.factors:
        left, right = edit.factors[name]
        own = left.shape[1]
        if own <= min(rank or own, rows, columns):
            norm = float(torch.linalg.norm(torch.linalg.qr(left.double()).R @ right.double()))
            return _Thin(left.float(), right.float(), own, norm, 0.0)
        Q, inner, S, outer, R = product_svd(left, right)
        U, Vh = Q @ inner, outer @ R.mT
    else:
        U, S, Vh = torch.linalg.svd(edit.changes[name].double(), full_matrices=False)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()  # tails[k]: what is lost by keeping k
    full = max(1, int((tails > _EXACT * tails[0]).sum()))
    kept = min(rank or full, full)
    root = S[:kept].sqrt()
    cut = float(tails[kept]) if kept < full else 0.0
    return _Thin((U[:, :kept] * root).float(), (root[:, None] * Vh[:kept]).float(), full, float(tails[0]), cut)


def _write(
    peft: ModuleType,
    skeleton: PreTrainedModel,
    thin: dict[str, _Thin],
    turned: dict[str, bool],
    folder: Path,
    base: str | None,
) -> None:
    """Let peft write its files: an adapter on the meta device, saved with the edit's values."""
    modules = {name: name.removesuffix(".weight") for name in thin}
    ranks = {modules[name]: part.left.shape[1] for name, part in thin.items()}
    most = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != most}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=most,
        lora_alpha=most,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=sorted(ranks),
        fan_in_fan_out=any(turned.values()),
        bias="none",
        inference_mode=True,
    )
    skeleton.__dict__["name_or_path"] = base  # peft takes the base model's name from here
    wrapped: Any = peft.get_peft_model(skeleton, config, low_cpu_mem_usage=True)
    state: dict[str, Tensor] = {}
    for name, part in thin.items():
        A, B = (part.left.mT, part.right.mT) if turned[name] else (part.right, part.left)
        for part_name, value in (("A", A), ("B", B)):
            state[f"base_model.model.{modules[name]}.lora_{part_name}.default.weight"] = value.contiguous()
    shapes = {key: tuple(value.shape) for key, value in wrapped.state_dict().items() if ".lora_" in key}
    if shapes != {key: tuple(value.shape) for key, value in state.items()}:
        raise EditError(f"peft {peft.__version__} makes adapters of another form than the edit's: install another peft")
    # The values are handed over while saving: those on the meta device would pull any that are set back there.
    wrapped.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's is a form to be filled in; `zerounlearn card` writes one
