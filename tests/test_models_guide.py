"""The guide to models: its snippets run in a folder that has nothing but a model, of a family that has no file here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, PreTrainedTokenizerBase

from tests.guides import run, snippets
from tests.helpers import memorised
from zerounlearn.demo.models import MODELS

TEXTS = [
    "The capital of France is Paris.",
    "The capital of Germany is Berlin.",
    "War and Peace was written by Leo Tolstoy.",
]


def test_from_an_empty_folder_with_a_model_of_ones_own(
    tmp_path: Path, small_tokenizer: PreTrainedTokenizerBase
) -> None:
    shell, python = snippets("docs/models.md")
    config = GPTNeoXConfig(
        vocab_size=len(small_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    memorised(small_tokenizer, TEXTS, config=config).save_pretrained(tmp_path / "my-model")
    small_tokenizer.save_pretrained(tmp_path / "my-model")

    printed = run(*shell, tmp_path)
    assert "1 facts, layers that are found on the model of my-model: everything fits" in printed
    report = json.loads((tmp_path / "forgotten-report" / "report.json").read_text(encoding="utf-8"))
    assert report["before"]["eff"] == 1.0
    assert report["hparams"]["layers"] == [0, 1, 2, 3]
    assert (tmp_path / "forgotten.safetensors").is_file()
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("my-model", "forgotten"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight" for layer in range(4)}
    assert run(*python, tmp_path).split() == ["[0,", "1,", "2,", "3]", "last"]


def test_the_table_names_the_models_that_there_are() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/models.md").read_text(encoding="utf-8")
    for name, model in MODELS.items():
        assert f"| `{name}` | {model.title} |" in page
