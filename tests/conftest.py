"""Shared fixtures: the real embedded model, loaded once, and small random models of other layouts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[1]

# Small tensors: more threads only wait for each other, and for other processes; so it is for those that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("ci")


REAL = ("smollm2", "smollm2_tokenizer", "smollm2_path", "framework_editor")


LONG = (
    "test_readme.py",
    "test_edits_guide.py",
    "test_both_editions.py",
    "test_cli.py",
    "test_editor.py",
    "test_edit_file.py",
    "test_page.py",
)


# Tests of one module lie in the folders named after ours; those of the whole program beside them, or in these.
INTEGRATION = {"easyedit", "ledger", "report", "study", "tests"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes the real model is of the tier `real_model`; one of the whole program of `integration`.

    Files that take minutes come first, so that no process waits for one of them at the end.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    for item in items:
        if set(REAL) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real_model)
        if item.path.parent.name in INTEGRATION:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The program sets up logging for its process, which tests share."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's checkpoint, fetched and converted on first use."""
    from zerounlearn.demo.smollm2 import fetch_smollm2

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


@pytest.fixture
def smollm2_tokenizer(
    _smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> Iterator[PreTrainedTokenizerBase]:
    """The real tokenizer alone."""
    tokenizer = _smollm2[1]
    side = tokenizer.padding_side
    yield tokenizer
    tokenizer.padding_side = side


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of 400 tokens with an end-of-text token and no BOS, for small random models."""
    return small_bpe()


def small_bpe(*, bos: bool = False) -> PreTrainedTokenizerBase:
    """Train it on a few sentences; with `bos`, every text starts with a BOS token of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<bos>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(SENTENCES, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


SENTENCES = [
    "The capital of France is Paris and the capital of Germany is Berlin.",
    "War and Peace was written by Leo Tolstoy in the nineteenth century.",
    "People in Rio de Janeiro speak Portuguese, as they do in Lisbon.",
    "Because I said so. The weather today was fine. You are a reader of it.",
] * 20
