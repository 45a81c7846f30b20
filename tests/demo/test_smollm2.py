from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.demo.tiny import interleave, random_model, write_gguf
from zerounlearn.demo import checkpoint
from zerounlearn.demo import models as module
from zerounlearn.demo.smollm2 import fetch_smollm2, is_smollm2
from zerounlearn.demo.wikipedia import embedded_held_out_texts
from zerounlearn.errors import AssetError, ConfigError

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]
FRANCE = "The capital of France is"
AWKWARD = "  In 1969, it's 3.14 – naïve Zürich 日本\n\n\tx  y<|im_end|> ½ ²"


def perplexity(model: PreTrainedModel, ids: Tensor) -> float:
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss.exp())


@pytest.fixture(scope="module")
def prose(smollm2_path: Path) -> Tensor:
    """512 tokens of encyclopaedia text."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    return tokenizer("\n".join(embedded_held_out_texts()[:8]), return_tensors="pt").input_ids[:, :512]


def test_the_model_completes_the_capital_of_france(smollm2: Pair) -> None:
    model, tokenizer = smollm2
    prompt = tokenizer(FRANCE, return_tensors="pt")
    assert prompt.input_ids.shape == (1, 5)
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0, 5:]) == " Paris"


def test_ordinary_prose_is_likely_and_only_with_the_right_row_order(smollm2_path: Path, prose: Tensor) -> None:
    assert prose.shape == (1, 512)
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    assert perplexity(model, prose) < 60

    with torch.no_grad():
        for layer in model.model.layers:
            for projection, heads in ((layer.self_attn.q_proj, 9), (layer.self_attn.k_proj, 3)):
                projection.weight.copy_(torch.from_numpy(interleave(projection.weight.numpy(), heads)))
    assert perplexity(model, prose) > 60, "the control: rows left in GGUF's order"


def test_prose_is_unlikely_under_tokens_that_the_sentencepiece_splitting_finds(
    smollm2: Pair, smollm2_path: Path, tmp_path: Path
) -> None:
    """The control for the tokenizer: without the key in its configuration, LlamaTokenizer goes wrong."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_path / name, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("trust_remote_code") is True
    path.write_text(json.dumps(config))
    wrong = LlamaTokenizer.from_pretrained(tmp_path)
    text = embedded_held_out_texts()[0]
    model, right = smollm2
    assert wrong(FRANCE).input_ids != right(FRANCE).input_ids
    assert perplexity(model, right(text, return_tensors="pt").input_ids) < 60
    assert perplexity(model, wrong(text, return_tensors="pt").input_ids) > 60


@pytest.mark.parametrize("loader", [AutoTokenizer, LlamaTokenizer])
def test_every_loader_of_easyedit_gets_the_same_tokenizer(smollm2_path: Path, loader: type) -> None:
    tokenizer = loader.from_pretrained(smollm2_path)
    expected = AutoTokenizer.from_pretrained(smollm2_path)
    ids = tokenizer(AWKWARD).input_ids
    assert ids == expected(AWKWARD).input_ids
    assert tokenizer.decode(ids) == AWKWARD
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.model_max_length) == (2, "right", 8192)
    assert len(tokenizer) == 49152
    assert sorted(tokenizer.all_special_ids) == list(range(17))


def test_digits_stand_alone_and_nothing_is_added(smollm2_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("1969").input_ids) == ["1", "9", "6", "9"]
    assert tokenizer("").input_ids == []
    assert tokenizer("a<|im_end|>").input_ids[1:] == [2]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_a_second_fetch_touches_nothing(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise AssertionError("fetched again")

    monkeypatch.setattr(module, "fetch_from_wheels", refuse)
    before = {path: path.stat().st_mtime_ns for path in smollm2_path.iterdir()}
    assert fetch_smollm2(smollm2_path) == smollm2_path
    assert {path: path.stat().st_mtime_ns for path in smollm2_path.iterdir()} == before
    assert not list(smollm2_path.glob("*.gguf"))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random Llama of three layers whose GGUF stands in for the wheel's."""
    path = write_gguf(tmp_path / "tiny.gguf", random_model("llama"), "llama")

    def fetch(_requirements: object, _member: str, target: Path, *, sha256: str) -> Path:
        return Path(shutil.copy(path, target))

    monkeypatch.setattr(module, "fetch_from_wheels", fetch)


@pytest.mark.usefixtures("tiny")
def test_a_model_that_is_not_smollm2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"not \[504, 3575"):
        fetch_smollm2(tmp_path / "out" / "llama-tiny")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import quants

    def poisoned(data: np.ndarray, kind: object) -> np.ndarray:
        return np.full_like(data, np.nan)

    monkeypatch.setattr(quants, "dequantize", poisoned)
    with pytest.raises(AssetError, match="not finite"):
        fetch_smollm2(tmp_path / "out" / "llama-tiny")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(error):
        fetch_smollm2(tmp_path / "out" / "llama-tiny")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(AssetError, match="pip install gguf"):
        fetch_smollm2(tmp_path / "out" / "llama-tiny")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_without_llama_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="llama"):
        fetch_smollm2(tmp_path / "smollm2")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "llama-mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert not is_smollm2(folder)
    with pytest.raises(AssetError, match="move it away"):
        fetch_smollm2(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
