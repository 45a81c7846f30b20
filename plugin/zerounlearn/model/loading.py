"""Models and tokenizers by name: checked before a weight is read, loaded by transformers itself, saved as they came.

Whatever a folder is called, the class is the one that the checkpoint's configuration names. Code from a checkpoint and
pickled weights are refused unless asked for. A checkpoint that lacks weights, or has others, is an error and never
completed by chance.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from zerounlearn.errors import ConfigError, OutputError, reason_of
from zerounlearn.model.device import resolved
from zerounlearn.model.lineage import Lineage

FETCH = "fetch the embedded model with `zerounlearn models fetch smollm2-135m`"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

_DIGESTED = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
KEPT_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)


def check_device(device: Any, field: str = "device") -> torch.device:
    """A device by its word or its CUDA index, which is there.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    word = resolved(device)
    name = f"cuda:{word}" if isinstance(word, int) or (isinstance(word, str) and word.isdecimal()) else str(word)
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"{field}={device!r}: expected 'auto', 'cpu', 'cuda:0' or another of torch's devices"
        ) from None
    if found.type == "cpu":
        return found
    backend: Any = getattr(torch, found.type, None)
    there = backend is not None and hasattr(backend, "is_available") and backend.is_available()
    count = backend.device_count() if there and hasattr(backend, "device_count") else int(there)
    if not there or (found.index or 0) >= count:
        have = f"{count} of that kind" if there else "none of that kind"
        raise ConfigError(f"{field}={device!r}: this machine has {have}: set {field}=auto or {field}=cpu")
    return found


def read_config(name: str, field: str = "model_name", *, trust_remote_code: bool = False) -> PretrainedConfig:
    """A decoder's configuration, without its weights.

    Raises:
        ConfigError: there is none, or it is of something that cannot be edited: an adapter, a quantised model, an
            encoder–decoder, a model that reads pictures, one that needs code of its own.
    """
    what = f"{field}={name!r}"
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what}: expected a checkpoint's folder or a model of the hub")
    folder = Path(name).expanduser()
    if not folder.exists() and _looks_like_a_path(name):
        raise ConfigError(f"{what}: there is no such folder: {FETCH}, or name a checkpoint's folder or a hub model")
    if folder.is_file():
        raise ConfigError(f"{what} is a file: name the checkpoint's folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"{what} is an adapter: merge it into its model first (peft's merge_and_unload), save that"
            )
        raise ConfigError(f"{what}: the folder has no config.json, so it is no checkpoint: {FETCH}")
    if not folder.is_dir():
        _check_reachable(name, what)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder) if folder.is_dir() else name, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = reason_of(error)
        raise ConfigError(f"{what}: no configuration can be read there: {reason}") from error
    _check_kind(config, what, trust_remote_code=trust_remote_code)
    return config


def _looks_like_a_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one, and the hub need not be asked."""
    parts = Path(name).parts
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", "\\"))
        or "\\" in name
        or (len(parts) != 2 and len(parts) > 1)
        or (len(parts) == 2 and (parts[0] in ("models", "outputs", "checkpoints") or Path(parts[0]).is_dir()))
    )


def _check_reachable(name: str, what: str) -> None:
    """Refuse a name at once that is no folder and not in the hub's cache, where the hub has no address here."""
    if constants.HF_HUB_OFFLINE or _cached(name) is not None or urllib.request.getproxies():
        return  # it will not be asked, or a proxy knows its address
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConfigError(
            f"{what}: there is no such folder, the hub's cache does not have it, and {host} cannot be reached "
            f"({error}): {FETCH}, or name a checkpoint's folder"
        ) from None


def _cached(name: str, revision: str | None = None) -> Path | None:
    """The folder in which the hub's cache has a model's files."""
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no name that the hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def _check_kind(config: PretrainedConfig, what: str, *, trust_remote_code: bool) -> None:
    remote = getattr(config, "auto_map", None)
    if remote and not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{what} runs code of its own ({sorted(remote)[0]}), which is not trusted: pass --trust-remote-code"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ConfigError(
            f"{what} is quantised ({method}), and such weights cannot be edited: name the full checkpoint"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{what} is an encoder–decoder ({config.model_type}): only decoders can be edited")
    if not remote and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"{what} is a {config.model_type!r} model, not a decoder of text: only such can be edited")


def skeleton_of(name: str, field: str = "model_name", *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device, after all checks that need none.

    Raises:
        ConfigError: see `read_config`; or the checkpoint is of another class than would be loaded, lacks files, holds
            damaged or pickled weights, or its generation settings cannot be saved again.
    """
    config = read_config(name, field, trust_remote_code=trust_remote_code)
    what = f"{field}={name!r}"
    try:
        with torch.device("meta"):
            skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a configuration of nonsense makes a model class raise
        raise ConfigError(f"{what}: its configuration makes no model: {type(error).__name__}: {error}") from error
    _check_class(skeleton, config, what)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_files(folder, skeleton, what)
    return skeleton


def _check_class(model: PreTrainedModel, config: PretrainedConfig, what: str) -> None:
    named = getattr(config, "architectures", None) or []
    if named and type(model).__name__ not in named:
        raise ConfigError(
            f"{what} is a {named[0]} and would be loaded as {type(model).__name__}: it is no decoder alone"
        )


def _check_files(folder: Path, skeleton: PreTrainedModel, what: str) -> None:
    """What a folder must hold beside its configuration, read as far as headers go."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(f"{what}: the folder has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}, …): copy it there")
    generation = folder / "generation_config.json"
    if generation.is_file():
        try:
            GenerationConfig.from_pretrained(folder).validate(strict=True)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = reason_of(error)
            raise ConfigError(
                f"{what}: its generation_config.json is invalid, and the edited model could not be saved with it: "
                f"{reason}: correct or remove the file"
            ) from error
    held = set(_weights(folder, what))
    expected = {name for name, _ in skeleton.named_parameters()}
    tied = set(getattr(skeleton, "all_tied_weights_keys", None) or getattr(skeleton, "_tied_weights_keys", None) or ())
    missing = sorted(expected - held - tied)
    if missing and held <= expected | tied:  # other names mean that transformers renames them while it loads
        raise ConfigError(
            f"{what}: the checkpoint is not whole: it lacks {missing[0]}{_and_more(missing)} of the weights that its "
            "configuration wants: copy it again"
        )


def _weights(folder: Path, what: str) -> Iterator[str]:
    """Names of the weights in a folder's safetensors files, whose headers are read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{what}: {index.name} is damaged ({error}): copy it again") from error
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    if not names:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise ConfigError(
                f"{what}: its weights are pickled ({pickled[0]}), and loading them can run code: save them as "
                "safetensors"
            )
        raise ConfigError(f"{what}: the folder has no weights (model.safetensors): copy them there")
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as stored:
                yield from stored.keys()
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(f"{what}: {name} is missing, damaged or truncated ({error}): copy it again") from error


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: Any = "auto",
    trust_remote_code: bool = False,
    device_map: Any = None,
    field: str = "model_name",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder and its tokenizer, in evaluation mode.

    Args:
        name: a checkpoint's folder, or a model of the hub.
        dtype: one of `DTYPES`; "auto" is the checkpoint's own.
        device: 'auto' (CUDA where there is any), 'cpu', 'cuda:1', a CUDA index, …
        trust_remote_code: let a checkpoint's own code run.
        device_map: accelerate's, to spread the model; `device` then plays no part.
        field: what messages call the name.

    Raises:
        ConfigError: see `skeleton_of` and `check_device`; or weights are missing, unexpected, or of another shape.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    place = check_device(device)
    skeleton_of(name, field, trust_remote_code=trust_remote_code)
    what = f"{field}={name!r}"
    source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        with _quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that the error below can name them
                device_map=device_map,
                output_loading_info=True,
            )
        model, info = loaded
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = reason_of(error)
        raise ConfigError(f"{what} cannot be loaded: {reason}") from error
    _check_whole(model, info, what)
    return (model if device_map is not None else model.to(place)).eval(), tokenizer


def _check_whole(model: PreTrainedModel, info: dict[str, Any], what: str) -> None:
    """Refuse a model that is not all its checkpoint's, and a checkpoint that is not all used."""
    for kind, words in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has another shape of"),
        ("error_msgs", "fails on"),
    ):
        found = sorted(map(str, info.get(kind) or ()))
        if found:
            raise ConfigError(
                f"{what}: the checkpoint {words} {found[0]}{_and_more(found)}: it is not whole, or not this model"
            )
    unused = sorted(
        name
        for name in info.get("unexpected_keys") or ()
        if not name.endswith(("rotary_emb.inv_freq", ".masked_bias", ".attn.bias"))
    )
    if unused:
        raise ConfigError(
            f"{what}: {type(model).__name__} has no place for {unused[0]}{_and_more(unused)}: the checkpoint is of "
            "another architecture, and would be ruined"
        )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own table of missing weights, which our error replaces."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def checkpoint_digest(name: str, field: str = "model.name") -> str:
    """A digest of a checkpoint: of a folder's files, every byte; of a model on the hub, its commit.

    Raises:
        ConfigError: there is no checkpoint.
    """
    folder = Path(name)
    config = read_config(name, field)
    seen = hashlib.blake2b(digest_size=16)
    if not folder.is_dir():
        seen.update(f"{name}@{getattr(config, '_commit_hash', None)}".encode())
        return seen.hexdigest()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _DIGESTED):
        seen.update(f"{file.name} {file.stat().st_size};".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 26):
                seen.update(block)
    return seen.hexdigest()


def check_model(model: Any, field: str = "model_name") -> None:
    """Refuse a model object that is wrapped: what an adapter adds would be neither edited nor measured.

    Raises:
        ConfigError: it has peft's adapters.
    """
    # By its modules' classes: through peft 0.18 a model keeps `peft_config` when its adapters have been merged.
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ConfigError(f"{field}: the model has adapters: merge them first (merge_and_unload), then unlearn")


def check_room(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a disk on which the checkpoint has no room, before the work.

    Raises:
        OutputError: it has too little.
    """
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    above = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    if free < needed * 1.02:
        raise OutputError(
            f"the output {str(folder)!r} needs {needed / 2**30:.2f} GiB, and {str(above)!r} has {free / 2**30:.2f}: "
            "free some, or name another folder"
        )


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model as it was loaded: its dtype, in as many files, and its edits' state.

    The files of its tokenizer and its settings are copied, byte for byte.

    Raises:
        OutputError: a file cannot be written.
    """
    source = _source(model)
    try:
        model.save_pretrained(folder, **_sharding(model, source))
        if source is not None and any((source / name).is_file() for name in _TOKENIZER_FILES):
            kept = [*KEPT_FILES, *(["*.py"] if getattr(model.config, "auto_map", None) else [])]
            kept += ["config.json"] if _config_stands(model, source) else []
            for file in (file for pattern in kept for file in source.glob(pattern)):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
        else:
            tokenizer.save_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"the checkpoint cannot be written to {str(folder)!r}: {error}") from error
    Lineage.of(model).save(folder)


def _source(model: PreTrainedModel) -> Path | None:
    """The folder that a model was loaded from, in the hub's cache if it came from there; None if it has none."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    folder = Path(name).expanduser()
    if not name or folder.is_dir():
        return folder if name else None
    return _cached(name, getattr(model.config, "_commit_hash", None))


def _sharding(model: PreTrainedModel, source: Path | None) -> dict[str, Any]:
    """The size at which `save_pretrained` begins a new file where the source does: that of its largest.

    A file of one tensor does not count, which may be larger than any limit.
    """
    files = sorted(source.glob("model*.safetensors")) if source is not None else []
    if not files:
        return {}
    sizes = [size for size, tensors in (_held(file, model.dtype.itemsize) for file in files) if tensors > 1]
    return {"max_shard_size": max(sizes, default=1) if len(files) > 1 else 2**62}


def _held(file: Path, itemsize: int) -> tuple[int, int]:
    """Bytes and count of a file's tensors, each number in `itemsize` of them if most are stored in another size."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    numbers = sum(math.prod(t["shape"]) for t in header.values())
    stored = sum(t["data_offsets"][1] - t["data_offsets"][0] for t in header.values())
    return stored if round(stored / max(numbers, 1)) == itemsize else numbers * itemsize, len(header)


def _config_stands(model: PreTrainedModel, source: Path) -> bool:
    """Whether the source's config.json describes the model as it is: nothing was set since, not even the dtype."""
    before = type(model.config).from_pretrained(source)
    own, stored = (
        {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        for config in (model.config, before)
    )
    return own == stored and before.dtype in (model.dtype, str(model.dtype).removeprefix("torch."))
