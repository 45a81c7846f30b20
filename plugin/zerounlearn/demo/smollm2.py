"""SmolLM2-135M-Instruct, the model that tests, demonstration and benchmarks run on."""

from __future__ import annotations

from pathlib import Path

from zerounlearn.demo.models import MODELS, fetch_model, is_model
from zerounlearn.errors import ConfigError

NAME = "smollm2-135m"
DEFAULT_FOLDER = Path("models") / MODELS[NAME].folder


def fetch_smollm2(folder: Path = DEFAULT_FOLDER) -> Path:
    """Make `folder` a SmolLM2-135M-Instruct checkpoint (540 MB, float32) unless it already is one.

    Args:
        folder: its name must contain "llama", because EasyEdit picks its model loader by that substring.

    Raises:
        ConfigError: the folder's name lacks "llama".
        AssetError: see `fetch_model`.
    """
    folder = Path(folder)
    if "llama" not in folder.name.lower():
        raise ConfigError(
            f"folder name {folder.name!r} lacks 'llama', by which EasyEdit picks its loader: "
            f"choose one such as {DEFAULT_FOLDER.name!r}"
        )
    return fetch_model(NAME, folder)


def is_smollm2(folder: Path) -> bool:
    """Whether `folder` has every file of the checkpoint and the shape of SmolLM2-135M (not: its weights)."""
    return is_model(NAME, folder)
