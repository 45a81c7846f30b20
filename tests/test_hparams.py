"""The packaged hyperparameter files fit the models that they name, whose published sizes are written here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from zerounlearn.config import read_settings
from zerounlearn.method.base import Method, load_method, methods
from zerounlearn.method.zerounlearn.method import find_layout

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "gpt2-xl": ("gpt2", "openai-community/gpt2-xl", 48),
    "gpt-j-6B": ("gptj", "EleutherAI/gpt-j-6b", 28),
    "llama2-7b": ("llama", "meta-llama/Llama-2-7b-hf", 32),
    "llama3-8b": ("llama", "meta-llama/Meta-Llama-3-8B-Instruct", 32),
    "llama3.1-8b": ("llama", "meta-llama/Llama-3.1-8B-Instruct", 32),
    "llama3.2-3b": ("llama", "meta-llama/Llama-3.2-3B-Instruct", 28),
    "mistral-7b": ("mistral", "mistralai/Mistral-7B-v0.1", 32),
    "qwen2.5-7b": ("qwen2", "Qwen/Qwen2.5-7B-Instruct", 28),
    "qwen3-4b": ("qwen3", "Qwen/Qwen3-4B", 36),
}
"""Model type, name on the hub and `num_hidden_layers` of the published configurations."""
EASYEDITS = ("gpt2-xl", "gpt-j-6B", "llama2-7b", "llama3-8b", "mistral-7b", "qwen2.5-7b")
FILES = sorted(f for f in (ROOT / "hparams").glob("*/*.yaml") if f.stem.partition("_")[0] in PUBLISHED)


@cache
def skeleton(kind: str, depth: int) -> Any:
    """A narrow model of the published depth, without weights."""
    sizes = {"vocab_size": 99, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": depth}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_a_files_layers_and_modules_are_its_models(file: Path) -> None:
    kind, name, depth = PUBLISHED[file.stem.partition("_")[0]]
    _, values = read_settings(file)
    assert values["model_name"] == name
    ours = file.parent.name in ("ZeroUnlearn", "ZeroUnlearn-GD") or issubclass(_class(file.parent.name), Method)
    presets = list(values.get("presets", {})) or [None]
    for preset in presets:
        run: Any = load_method(file, [f"preset={preset}"] if preset else []) if ours else SimpleNamespace(**values)
        layout = find_layout(skeleton(kind, depth), run)
        assert len(layout.blocks) == depth
        assert list(layout.weight_names) == run.layers
        assert getattr(run, "v_loss_layer", None) in (None, depth - 1) or file.stem not in EASYEDITS


def _class(name: str) -> Any:
    target = methods.entry(name).target
    return target if isinstance(target, type) else object


@pytest.mark.parametrize("stem", EASYEDITS)
def test_easyedits_own_models_have_a_file_of_every_method_that_larger_models_have(stem: str) -> None:
    """Layers are a like share of the depth in all files, and each says that it has not been run."""
    folders = ("ZeroUnlearn", "ZeroUnlearn-GD", "GA", "NPO", "MEMIT", "AlphaEdit", "ROME", "FT")
    _, _, depth = PUBLISHED[stem]
    for folder in folders:
        file = ROOT / "hparams" / folder / f"{stem}.yaml"
        assert "Not run on real weights." in file.read_text().partition("\n")[0]
        _, values = read_settings(file)
        layers = values.get("layers") or values["presets"]["paper"]["layers"]
        assert 0.58 < layers[-1] / depth < 0.68
    _, values = read_settings(ROOT / f"hparams/ZeroUnlearn/{stem}.yaml")
    late = values["presets"]["specific"]["layers"]
    assert len(late) == 5
    assert 0.74 < late[0] / depth < late[-1] / depth < 0.92
