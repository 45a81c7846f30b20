"""Shared fixtures: the real embedded model, loaded once, and small random models of other layouts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's checkpoint, fetched and converted on first use."""
    from zerounlearn.assets.smollm2 import fetch_smollm2

    return fetch_smollm2(Path(os.environ.get("ZEROUNLEARN_MODELS", ROOT / "models")) / "llama-smollm2-135m")


@pytest.fixture(scope="session")
def _smollm2(smollm2_path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(smollm2_path)


@pytest.fixture
def smollm2(
    _smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """The real model and tokenizer; every weight and the padding side are put back after the test."""
    model, tokenizer = _smollm2
    saved = {name: value.detach().clone() for name, value in model.named_parameters() if "down_proj" in name}
    side = tokenizer.padding_side
    yield model, tokenizer
    with torch.no_grad():
        for name, value in saved.items():
            model.get_parameter(name).copy_(value)
    tokenizer.padding_side = side
